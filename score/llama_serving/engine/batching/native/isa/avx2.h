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

#define LLAMA_INTEGERS

struct Integers {
    __m256i low, high;
};
struct Shorts {
    __m256i low, high;
};

inline Integers integers(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Integers rounded(Floats value) { return {_mm256_cvtps_epi32(value.low), _mm256_cvtps_epi32(value.high)}; }
inline Floats floats(Integers value) { return {_mm256_cvtepi32_ps(value.low), _mm256_cvtepi32_ps(value.high)}; }
inline void store(int16_t* to, Integers value) {
    const __m256i packed = _mm256_packs_epi32(value.low, value.high);
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(packed, 0xd8));
}

inline Shorts shorts(const int16_t* pairs) {
    return {_mm256_loadu_si256((const __m256i*)pairs), _mm256_loadu_si256((const __m256i*)(pairs + 16))};
}
inline Shorts shorts(const int8_t* pairs) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)pairs)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(pairs + 16)))};
}
inline __m256i half_unsigned_nibbles(const std::byte* four, int which) {
    const __m256i at = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)four), _mm256_set1_epi32(int(0x88888888)));
    const __m256i low = which ? _mm256_srli_epi16(at, 4 * which) : at;
    return which == 3 ? low : _mm256_and_si256(low, _mm256_set1_epi16(15));
}
inline Shorts unsigned_nibbles(const std::byte* four, int which) {
    return {half_unsigned_nibbles(four, which), half_unsigned_nibbles(four + 32, which)};
}
inline void store_pairs(int16_t* to, Shorts value) {
    _mm256_storeu_si256((__m256i*)to, value.low);
    _mm256_storeu_si256((__m256i*)(to + 16), value.high);
}
inline Shorts broadcast(const int16_t* pair) {
    int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return {_mm256_set1_epi32(both), _mm256_set1_epi32(both)};
}
inline Integers dot(Integers sum, Shorts a, Shorts b) {
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)),
            _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}

constexpr int INTEGER_SUMS = 4;   // 8 of the 16 registers

}  // namespace llama
