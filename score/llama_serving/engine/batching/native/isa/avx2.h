// AVX2 with FMA: two registers for 16 numbers. See `vectors.h` for the interface.
#pragma once
#include <immintrin.h>

#include "../model.h"

namespace llama {

struct Floats {
    __m256 low, high;
};

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline __m256 widened(__m128i eight) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}
inline Floats load(const bf16* from) {
    return {widened(_mm_loadu_si128((const __m128i*)from)), widened(_mm_loadu_si128((const __m128i*)(from + 8)))};
}
inline void store(float* to, Floats value) {
    _mm256_storeu_ps(to, value.low);
    _mm256_storeu_ps(to + 8, value.high);
}

inline Floats operator+(Floats a, Floats b) { return {a.low + b.low, a.high + b.high}; }
inline Floats operator-(Floats a, Floats b) { return {a.low - b.low, a.high - b.high}; }
inline Floats operator*(Floats a, Floats b) { return {a.low * b.low, a.high * b.high}; }
inline Floats operator/(Floats a, Floats b) { return {a.low / b.low, a.high / b.high}; }
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats fms(Floats a, Floats b, Floats c) {
    return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline float sum_of(Floats a) {
    const __m256 eight = a.low + a.high;
    const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
    const __m128 two = four + _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_of(Floats a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// (The second operand is the result where one is NaN.)
inline __m256 bounded(__m256 x) {
    return _mm256_min_ps(_mm256_set1_ps(128.f), _mm256_max_ps(_mm256_set1_ps(-127.f), x));
}
inline __m256 fraction(__m256 x) { return bounded(x) - _mm256_floor_ps(bounded(x)); }
inline __m256 scaled(__m256 y, __m256 x) {   // by 2 to the power of -127 to 128, where the bits make 0 and infinity
    const __m256i power = _mm256_cvtps_epi32(_mm256_floor_ps(bounded(x)));
    return y * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(power, _mm256_set1_epi32(127)), 23));
}
inline Floats fraction(Floats x) { return {fraction(x.low), fraction(x.high)}; }
inline Floats scaled(Floats y, Floats x) { return {scaled(y.low, x.low), scaled(y.high, x.high)}; }

inline Floats first(int count, Floats a, Floats b) {
    const __m256 places = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 low = _mm256_cmp_ps(places, _mm256_set1_ps(float(count)), _CMP_LT_OQ);
    const __m256 high = _mm256_cmp_ps(places, _mm256_set1_ps(float(count - 8)), _CMP_LT_OQ);
    return {_mm256_blendv_ps(b.low, a.low, low), _mm256_blendv_ps(b.high, a.high, high)};
}

inline __m128i narrowed(__m256 eight) {
    const __m256i bits = _mm256_castps_si256(eight);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 nan = _mm256_cmp_ps(eight, eight, _CMP_UNORD_Q);
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
    const __m256i halves = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}
inline void store(bf16* to, Floats value) {
    _mm_storeu_si128((__m128i*)to, narrowed(value.low));
    _mm_storeu_si128((__m128i*)(to + 8), narrowed(value.high));
}

using Operand = float;
using Part = Floats;
constexpr int PARTS = 2;

template <int P>
inline __m256 half_part(const bf16* pairs) {
    const __m256i both = _mm256_loadu_si256((const __m256i*)pairs);
    return _mm256_castsi256_ps(P ? _mm256_and_si256(both, _mm256_set1_epi32(int(0xffff0000)))
                                 : _mm256_slli_epi32(both, 16));
}
template <int P>
inline __m256 half_part(const int8_t* pairs) {
    const __m256i both = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)pairs));
    return _mm256_cvtepi32_ps(P ? _mm256_srai_epi32(both, 8) : _mm256_srai_epi32(_mm256_slli_epi32(both, 24), 24));
}
template <int P, class T>
inline Part part(const T* pairs) {
    return {half_part<P>(pairs), half_part<P>(pairs + 16)};
}
template <int P>
inline __m256 half_nibbles(const std::byte* four, int which) {
    const __m256i high = _mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)four), 28 - 4 * which - 16 * P);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(high, 28));
}
template <int P>
inline Part nibbles(const std::byte* four, int which) {
    return {half_nibbles<P>(four, which), half_nibbles<P>(four + 32, which)};
}
template <int P>
inline Part part(const float* pairs) {
    return load(pairs + P * 16);
}

template <int P>
inline Part broadcast(const float* pair) {
    return all(pair[P]);
}
inline Floats dot(Floats sum, Part a, Part b) { return fma(a, b, sum); }

constexpr int SUMS = 6;   // 12 of the 16 registers

}  // namespace llama
