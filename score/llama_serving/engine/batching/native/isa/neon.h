// NEON (AArch64): four registers for 16 numbers; products of bf16 where it is compiled for them. See `vectors.h` for the
// interface.
#pragma once
#include <arm_neon.h>

#include <cstring>

#include "../model.h"

namespace llama {

struct Floats {
    float32x4_t at[4];
};

template <class F>
inline Floats each(const F& of) {
    return {of(0), of(1), of(2), of(3)};
}

inline Floats all(float value) {
    return each([&](int) { return vdupq_n_f32(value); });
}
inline Floats zeros() { return all(0); }
inline Floats load(const float* from) {
    return each([&](int i) { return vld1q_f32(from + 4 * i); });
}
inline Floats load(const bf16* from) {
    return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from + 4 * i), 16)); });
}
inline void store(float* to, Floats value) {
    for (int i = 0; i < 4; i++) vst1q_f32(to + 4 * i, value.at[i]);
}
inline void store(bf16* to, Floats value) {
    for (int i = 0; i < 4; i++) {
        const uint32x4_t bits = vreinterpretq_u32_f32(value.at[i]);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        const uint32x4_t number = vceqq_f32(value.at[i], value.at[i]);
        vst1_u16(to + 4 * i, vshrn_n_u32(vbslq_u32(number, rounded, vdupq_n_u32(0x7fc00000)), 16));
    }
}

inline Floats operator+(Floats a, Floats b) {
    return each([&](int i) { return vaddq_f32(a.at[i], b.at[i]); });
}
inline Floats operator-(Floats a, Floats b) {
    return each([&](int i) { return vsubq_f32(a.at[i], b.at[i]); });
}
inline Floats operator*(Floats a, Floats b) {
    return each([&](int i) { return vmulq_f32(a.at[i], b.at[i]); });
}
inline Floats operator/(Floats a, Floats b) {
    return each([&](int i) { return vdivq_f32(a.at[i], b.at[i]); });
}
inline Floats fma(Floats a, Floats b, Floats c) {
    return each([&](int i) { return vfmaq_f32(c.at[i], a.at[i], b.at[i]); });
}
inline Floats fms(Floats a, Floats b, Floats c) {
    return each([&](int i) { return vfmaq_f32(vnegq_f32(c.at[i]), a.at[i], b.at[i]); });
}
inline Floats max(Floats a, Floats b) {
    return each([&](int i) { return vmaxq_f32(a.at[i], b.at[i]); });
}
inline float sum_of(Floats a) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(a.at[0], a.at[1]), vaddq_f32(a.at[2], a.at[3])));
}
inline float max_of(Floats a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.at[0], a.at[1]), vmaxq_f32(a.at[2], a.at[3])));
}

inline float32x4_t bounded(float32x4_t x) {
    return vminq_f32(vdupq_n_f32(128.f), vmaxq_f32(vdupq_n_f32(-127.f), x));
}
inline Floats fraction(Floats x) {
    return each([&](int i) { return vsubq_f32(bounded(x.at[i]), vrndmq_f32(bounded(x.at[i]))); });
}
inline Floats scaled(Floats y, Floats x) {   // by 2 to the power of -127 to 128, where the bits make 0 and infinity
    return each([&](int i) {
        const int32x4_t power = vcvtmq_s32_f32(bounded(x.at[i]));
        return vmulq_f32(y.at[i], vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(power, vdupq_n_s32(127)), 23)));
    });
}

inline Floats first(int count, Floats a, Floats b) {
    const int32_t start[4] = {0, 1, 2, 3};
    const int32x4_t places = vld1q_s32(start);
    return each([&](int i) { return vbslq_f32(vcltq_s32(places, vdupq_n_s32(count - 4 * i)), a.at[i], b.at[i]); });
}

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC

using Operand = bf16;
struct Part {
    bfloat16x8_t at[4];
};
constexpr int PARTS = 1;

template <int P>
inline Part part(const bf16* pairs) {
    return {vreinterpretq_bf16_u16(vld1q_u16(pairs)), vreinterpretq_bf16_u16(vld1q_u16(pairs + 8)),
            vreinterpretq_bf16_u16(vld1q_u16(pairs + 16)), vreinterpretq_bf16_u16(vld1q_u16(pairs + 24))};
}
inline bfloat16x8_t widened(const int8_t* eight) {   // bf16 holds them exactly
    const int16x8_t wide = vmovl_s8(vld1_s8(eight));
    const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(wide));
    return vreinterpretq_bf16_u16(vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high)));
}
template <int P>
inline Part part(const int8_t* pairs) {
    return {widened(pairs), widened(pairs + 8), widened(pairs + 16), widened(pairs + 24)};
}
template <int P>
inline Part nibbles(const std::byte* four, int which) {
    alignas(16) static constexpr uint8_t high[16] = {0, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40,
                                                     0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf};
    alignas(16) static constexpr uint8_t low[16] = {0, 0x80, 0, 0x40, 0x80, 0xa0, 0xc0, 0xe0,
                                                    0, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0, 0x80};
    const uint8x16_t highs = vld1q_u8(high), lows = vld1q_u8(low);
    Part made;
    for (int i = 0; i < 4; i++) {
        const uint16x8_t both = vreinterpretq_u16_u8(vld1q_u8((const uint8_t*)four + 16 * i));
        const uint16x8_t at = vandq_u16(vshlq_u16(both, vdupq_n_s16(int16_t(-4 * which))), vdupq_n_u16(15));
        const uint16x8_t top = vreinterpretq_u16_u8(vqtbl1q_u8(highs, vreinterpretq_u8_u16(at)));
        const uint16x8_t bottom = vreinterpretq_u16_u8(vqtbl1q_u8(lows, vreinterpretq_u8_u16(at)));
        made.at[i] = vreinterpretq_bf16_u16(vsliq_n_u16(bottom, top, 8));
    }
    return made;
}
inline void store(bf16* to, Part value) {
    for (int i = 0; i < 4; i++) vst1q_u16(to + 8 * i, vreinterpretq_u16_bf16(value.at[i]));
}

template <int P>
inline Part broadcast(const bf16* pair) {
    uint32_t both;
    std::memcpy(&both, pair, sizeof both);
    const bfloat16x8_t one = vreinterpretq_bf16_u32(vdupq_n_u32(both));
    return {one, one, one, one};
}
inline Floats dot(Floats sum, Part a, Part b) {
    return each([&](int i) { return vbfdotq_f32(sum.at[i], a.at[i], b.at[i]); });
}

#else

using Operand = float;
using Part = Floats;
constexpr int PARTS = 2;

template <int P>
inline Part part(const bf16* pairs) {
    return each([&](int i) {
        const uint32x4_t both = vreinterpretq_u32_u16(vld1q_u16(pairs + 8 * i));
        return vreinterpretq_f32_u32(P ? vandq_u32(both, vdupq_n_u32(0xffff0000)) : vshlq_n_u32(both, 16));
    });
}
template <int P>
inline Part part(const int8_t* pairs) {
    return each([&](int i) {
        const int32x4_t both = vmovl_s16(vreinterpret_s16_s8(vld1_s8(pairs + 8 * i)));
        return vcvtq_f32_s32(P ? vshrq_n_s32(both, 8) : vshrq_n_s32(vshlq_n_s32(both, 24), 24));
    });
}
template <int P>
inline Part nibbles(const std::byte* four, int which) {
    return each([&](int i) {
        const int32x4_t both = vreinterpretq_s32_u8(vld1q_u8((const uint8_t*)four + 16 * i));
        return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(both, vdupq_n_s32(28 - 4 * which - 16 * P)), 28));
    });
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

#endif

constexpr int SUMS = 6;   // 24 of the 32 registers

}  // namespace llama
