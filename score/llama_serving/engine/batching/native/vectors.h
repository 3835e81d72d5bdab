// Sixteen numbers at a time, in any instruction set. Each file in `isa/` has:
//
//   Floats      16 float32, with + - * /, zeros, all, load and store of float32 and bf16 (rounded to the nearest),
//               fma (a · b + c), fms (a · b - c), max, sum_of, max_of; first(n, a, b): the first n of a, the rest of b
//   fraction, scaled   x - ⌊x⌋, and y · 2^⌊x⌋: what `exp2` is made of
//   Operand     the type of what is multiplied with weights, keys and values: bf16 where there are products of bf16, else float32
//   Part        one operand of an instruction that multiplies; 16 pairs of bf16 are PARTS of them: the pairs as they are,
//               or the first of each pair and then the second, as float32
//   part<P>     16 pairs of bf16, int8, or parts that `store` wrote -> part
//   nibbles<P>  16 times four pairs of 4-bit integers, in the order of `Matrix` -> part of one of the four
//   broadcast<P>   a pair of operands -> part with 16 copies
//   dot         adds the product of two parts to a sum
//   SUMS        how many Floats leave registers free for operands
//
// Where integers of 16 bits are multiplied faster, LLAMA_INTEGERS is defined, and there are:
//
//   Integers    16 int32: integers (all the same), rounded (from Floats), floats (to Floats); stored as int16, the nearest it holds
//   Shorts      16 pairs of int16: shorts, of int8 or int16 in memory; unsigned_nibbles, as `nibbles`, each with 8 added; broadcast
//   dot         adds a pair's two products to each sum
//   INTEGER_SUMS   as SUMS
#pragma once
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include "isa/avx512.h"
#elif defined(__AVX2__)
#include "isa/avx2.h"
#else
#include "isa/neon.h"
#endif

namespace llama {

// 2 to the power of x: a polynomial for the fraction (relative error below 4e-6), the integer part as exponent.
inline Floats exp2(Floats x) {
    const Floats part = fraction(x);
    Floats y = all(1.3534167e-2f);
    y = fma(y, part, all(5.2011464e-2f));
    y = fma(y, part, all(2.4144275e-1f));
    y = fma(y, part, all(6.9300383e-1f));
    y = fma(y, part, all(1.0000026f));
    return scaled(y, x);
}

constexpr float LOG2_E = 1.44269504f;

// x / (1 + e⁻ˣ)
inline Floats silu(Floats x) { return x / (all(1.f) + exp2(x * all(-LOG2_E))); }

// Calls with each part's number as a constant.
template <class Call>
inline __attribute__((always_inline)) void each_part(const Call& call) {
    call(std::integral_constant<int, 0>());
    if constexpr (PARTS > 1) call(std::integral_constant<int, 1>());
}

// Rounds 16 operands to bf16, which they may be already.
inline void narrow(const float* from, bf16* to) { store(to, load(from)); }
inline void narrow(const bf16* from, bf16* to) { std::memcpy(to, from, 16 * sizeof(bf16)); }

// Prefetch into the first or, with `LEVEL` 2, the second cache. (GCC drops calls to a function that only prefetches.)
template <int LEVEL = 1>
inline __attribute__((always_inline)) void prefetch(const void* from, int bytes) {
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)from + at, 0, 4 - LEVEL);
}

}  // namespace llama
