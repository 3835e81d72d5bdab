// AVX-512 (F, BW, DQ, VL); products of bf16 where it is compiled for AVX512-BF16. See `vectors.h` for the interface.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstring>

#include "../model.h"

namespace llama {

using Floats = __m512;   // (has the operators + - * / in GCC and Clang)

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats all(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load(const bf16* from) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}
inline void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }

inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fms(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline float sum_of(Floats a) { return _mm512_reduce_add_ps(a); }
inline float max_of(Floats a) { return _mm512_reduce_max_ps(a); }
inline Floats fraction(Floats x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Floats scaled(Floats y, Floats x) { return _mm512_scalef_ps(y, x); }

inline Floats first(int count, Floats a, Floats b) {
    return _mm512_mask_mov_ps(b, count >= 16 ? 0xffff : count <= 0 ? 0 : __mmask16((1u << count) - 1), a);
}

#ifdef __AVX512BF16__

inline void store(bf16* to, Floats value) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(value));
}

using Operand = bf16;
using Part = __m512bh;
constexpr int PARTS = 1;

template <int P>
inline Part part(const bf16* pairs) {
    return (__m512bh)_mm512_loadu_si512(pairs);
}
template <int P>
inline Part part(const int8_t* pairs) {   // bf16 holds them exactly
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)pairs)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(pairs + 16))));
    return _mm512_cvtne2ps_pbh(high, low);
}
template <int P>
inline Part nibbles(const std::byte* four, int which) {
    const __m512i at = _mm512_srli_epi32(_mm512_loadu_si512(four), 4 * which);
    const __m256i values = _mm256_setr_epi16(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, int16_t(0xc100),
                                             int16_t(0xc0e0), int16_t(0xc0c0), int16_t(0xc0a0), int16_t(0xc080),
                                             int16_t(0xc040), int16_t(0xc000), int16_t(0xbf80));
    return (__m512bh)_mm512_permutexvar_epi16(at, _mm512_broadcast_i64x4(values));   // (the lowest bits choose)
}
inline void store(bf16* to, Part value) { _mm512_storeu_si512(to, (__m512i)value); }

// Each column's pair times its scale, rounded to the nearest
inline Part scaled_pairs(Part pairs, Floats scales) {
    const __m512i both = (__m512i)pairs, half = _mm512_set1_epi32(0x8000), high = _mm512_set1_epi32(int(0xffff0000));
    const __m512i first = (__m512i)((Floats)_mm512_slli_epi32(both, 16) * scales);
    const __m512i second = (__m512i)((Floats)_mm512_and_si512(both, high) * scales);
    return (__m512bh)_mm512_or_si512(_mm512_srli_epi32(_mm512_add_epi32(first, half), 16),
                                     _mm512_and_si512(_mm512_add_epi32(second, half), high));
}

template <int P>
inline Part broadcast(const bf16* pair) {
    int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}
inline Floats dot(Floats sum, Part a, Part b) { return _mm512_dpbf16_ps(sum, a, b); }

#else

inline void store(bf16* to, Floats value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

using Operand = float;
using Part = Floats;
constexpr int PARTS = 2;

template <int P>
inline Part part(const bf16* pairs) {
    const __m512i both = _mm512_loadu_si512(pairs);
    return _mm512_castsi512_ps(P ? _mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000)))
                                 : _mm512_slli_epi32(both, 16));
}
template <int P>
inline Part part(const int8_t* pairs) {
    const __m512i both = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)pairs));
    return _mm512_cvtepi32_ps(P ? _mm512_srai_epi32(both, 8) : _mm512_srai_epi32(_mm512_slli_epi32(both, 24), 24));
}
template <int P>
inline Part nibbles(const std::byte* four, int which) {
    const __m512i at = _mm512_srli_epi32(_mm512_loadu_si512(four), 4 * which + 16 * P);
    return _mm512_permutexvar_ps(at, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1));
}   // (the lowest bits choose)
template <int P>
inline Part part(const float* pairs) {
    return load(pairs + P * 16);
}

template <int P>
inline Part broadcast(const float* pair) {
    return all(pair[P]);
}
inline Floats dot(Floats sum, Part a, Part b) { return fma(a, b, sum); }

#ifdef __AVX512VNNI__
#define LLAMA_INTEGERS

using Integers = __m512i;
using Shorts = __m512i;

inline Integers integers(int32_t value) { return _mm512_set1_epi32(value); }
inline Integers rounded(Floats value) { return _mm512_cvtps_epi32(value); }
inline Floats floats(Integers value) { return _mm512_cvtepi32_ps(value); }
inline void store(int16_t* to, Integers value) { _mm256_storeu_si256((__m256i*)to, _mm512_cvtsepi32_epi16(value)); }

inline Shorts shorts(const int16_t* pairs) { return _mm512_loadu_si512(pairs); }
inline Shorts shorts(const int8_t* pairs) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)pairs)); }
inline Shorts unsigned_nibbles(const std::byte* four, int which) {
    const __m512i at = _mm512_xor_si512(_mm512_loadu_si512(four), _mm512_set1_epi32(int(0x88888888)));
    const __m512i low = which ? _mm512_srli_epi16(at, 4 * which) : at;
    return which == 3 ? low : _mm512_and_si512(low, _mm512_set1_epi16(15));
}
inline void store_pairs(int16_t* to, Shorts value) { _mm512_storeu_si512(to, value); }
inline Shorts broadcast(const int16_t* pair) {
    int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return _mm512_set1_epi32(both);
}
inline Integers dot(Integers sum, Shorts a, Shorts b) { return _mm512_dpwssd_epi32(sum, a, b); }

constexpr int INTEGER_SUMS = 24;   // of the 32 registers

#endif
#endif


constexpr int SUMS = 24;   // of the 32 registers

}  // namespace llama
