// Sixteen numbers at a time.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "tiles.h"

namespace llama {

inline float widened(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }

inline __m512 load(const bf16* from) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}

inline void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }

inline void store(bf16* to, __m512 value) {  // rounded to the nearest
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(value));
}

// 2 to the power of x: a polynomial for the fraction (relative error below 4e-6), the integer part as exponent.
inline __m512 exp2(__m512 x) {
    const __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_set1_ps(1.3534167e-2f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.2011464e-2f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4144275e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9300383e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0000026f));
    return _mm512_scalef_ps(y, x);
}

constexpr float LOG2_E = 1.44269504f;

// x / (1 + e⁻ˣ)
inline __m512 silu(__m512 x) {
    const __m512 e = exp2(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.f), e));
}

// Prefetch; `HINT` is the cache level.
template <_mm_hint HINT = _MM_HINT_T0>
inline void prefetch(const void* from, int bytes) {
    for (int at = 0; at < bytes; at += 64) _mm_prefetch((const char*)from + at, HINT);
}

}  // namespace llama
