// Weights from a checkpoint's order, (outputs, inputs), into that of `Matrix`.
#pragma once
#include <algorithm>
#include <cstring>

#include "model.h"
#include "vectors.h"

namespace llama {

// size: bytes of a number
inline void pack(const std::byte* from, int64_t outputs, int64_t inputs, int size, std::byte* to) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL, depths = (inputs + DEPTH - 1) / DEPTH;
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t depth = 0; depth < depths; depth++)
            for (int column = 0; column < PANEL; column++) {
                const int64_t output = panel * PANEL + column;
                std::byte* own = to + (((panel * depths + depth) * (PANEL / TILE) + column / TILE) * TILE_SIZE +
                                        column % TILE * 2) * size;
                for (int pair = 0; pair < DEPTH / 2; pair++) {
                    const int64_t input = depth * DEPTH + pair * 2;
                    const int64_t count = output < outputs ? std::clamp<int64_t>(inputs - input, 0, 2) : 0;
                    std::byte* at = own + pair * TILE * 2 * size;
                    std::memset(at, 0, 2 * size);
                    if (count) std::memcpy(at, from + (output * inputs + input) * size, count * size);
                }
            }
}

// --- 4 bits ----------------------------------------------------------------------------------------------------

// A group of 32 weights as integers from -8 to 7 times a scale.
struct Group {
    Floats numbers[2];
    float scale, error;   // the sum of squares
};

inline bf16 bf16_of(float value) {
    bf16 many[16];
    store(many, all(value));
    return many[0];
}

inline float widened(bf16 value) {
    const uint32_t bits = uint32_t(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline Group rounded(const Floats* weights, float scale) {
    const Floats magic = all(12582912.f);   // 1.5 · 2^23: adding it rounds to an integer
    Group made{{}, widened(bf16_of(scale)), 0};
    const Floats inverse = all(1 / made.scale);
    Floats squares = zeros();
    for (int i = 0; i < 2; i++) {
        const Floats nearest = weights[i] * inverse + magic - magic;
        made.numbers[i] = zeros() - max(zeros() - max(nearest, all(-8)), all(-7));
        const Floats off = fms(made.numbers[i], all(made.scale), weights[i]);
        squares = fma(off, off, squares);
    }
    made.error = sum_of(squares);
    return made;
}

// The scale at which the squared error is least: some are tried, each fitted to its integers by least squares.
inline Group quantize(const float* weights) {
    const Floats w[2] = {load(weights), load(weights + 16)};
    float farthest = 0;
    for (int i = 0; i < DEPTH; i++)
        if (std::fabs(weights[i]) > std::fabs(farthest)) farthest = weights[i];
    Group best{{zeros(), zeros()}, 1, 0};
    if (std::fabs(farthest) < 1e-30f) return best;
    best.error = FLT_MAX;
    for (float steps : {-8.f, -9.f, -7.5f, -7.f, -6.5f, 7.f, 8.f}) {   // to the number that is farthest from 0
        const Group first = rounded(w, farthest / steps);
        const float squares = sum_of(fma(first.numbers[0], first.numbers[0], first.numbers[1] * first.numbers[1]));
        const float fitted = sum_of(fma(first.numbers[0], w[0], first.numbers[1] * w[1])) / squares;
        const Group second = rounded(w, fitted);
        if (second.error < best.error) best = second;
    }
    return best;
}

// Calls `each` with panel, depth, column, output and input of each group of 32 weights.
template <class Each>
inline void each_group(int64_t outputs, int64_t inputs, const Each& each) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL, depths = (inputs + DEPTH - 1) / DEPTH;
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t depth = 0; depth < depths; depth++)
            for (int column = 0; column < PANEL; column++)
                each(panel * depths + depth, column, panel * PANEL + column, depth * DEPTH);
}

// 32 integers of a column of a part, in 4 bits each
inline void place(const int* numbers, int64_t part, int column, std::byte* to) {
    std::byte* own = to + (part * PANEL * DEPTH + column / TILE * TILE_SIZE) / 2 + column % TILE * 4;
    for (int four = 0; four < DEPTH; four += 8) {   // numbers: four pairs
        uint32_t eight = 0;
        for (int i = 0; i < 8; i++) eight |= (uint32_t(numbers[four + i]) & 15) << (i % 2 * 16 + i / 2 * 4);
        std::memcpy(own + four * TILE / 2, &eight, sizeof eight);
    }
}

// scales: [outputs / PANEL][inputs / DEPTH][PANEL]
inline void pack_int4(const bf16* from, int64_t outputs, int64_t inputs, std::byte* to, bf16* scales) {
    each_group(outputs, inputs, [&](int64_t part, int column, int64_t output, int64_t input) {
        float weights[DEPTH] = {}, rounded[DEPTH];
        int numbers[DEPTH];
        for (int i = 0; i < DEPTH && output < outputs && input + i < inputs; i++)
            weights[i] = widened(from[output * inputs + input + i]);
        const Group group = quantize(weights);
        store(rounded, group.numbers[0]);
        store(rounded + 16, group.numbers[1]);
        std::copy(rounded, rounded + DEPTH, numbers);
        scales[part * PANEL + column] = bf16_of(group.scale);
        place(numbers, part, column, to);
    });
}

inline void pack_integers(const int8_t* from, int64_t outputs, int64_t inputs, std::byte* to) {
    each_group(outputs, inputs, [&](int64_t part, int column, int64_t output, int64_t input) {
        int numbers[DEPTH] = {};
        for (int i = 0; i < DEPTH && output < outputs && input + i < inputs; i++)
            numbers[i] = from[output * inputs + input + i];
        place(numbers, part, column, to);
    });
}

}  // namespace llama
