// Rows times columns of int8 or int4, by instructions that multiply integers of 16 bits and add two products.
//
// Activations are rounded to 16 bits, in groups of 32 with a scale each. The error is 1/65,534 of a group's largest number at most;
// that of bf16 is 1/256 of each number at most. So numbers above 1/128 of the largest are rounded more finely than by bf16, those
// below 1/256 of it more coarsely. The sum of a group's products is exact; sums of groups are float32, added in the order of the inputs
// whatever the number of rows, so a row has the same bits in any batch.
#pragma once
#include <cmath>

#include "model.h"
#include "vectors.h"

namespace llama {

constexpr int INT16_MOST = 32767;

// Activations as integers, in tiles.
struct Rounded {
    int16_t* numbers;   // (rows, inputs)
    float* scales;      // [rows / TILE][inputs / DEPTH][TILE]
    int32_t* sums;      // of each group's numbers, in the order of the scales
};

// Index of a group of 32 numbers of a row.
inline int64_t grouped(int row, int depth, int depths) { return (int64_t(row / TILE) * depths + depth) * TILE + row % TILE; }

// Rounds a group. One with a number that is not finite gets a scale that is none, so that nothing is hidden.
inline void round_group(const float* from, int16_t* to, float& scale, int32_t& sum) {
    const Floats both[2] = {load(from), load(from + 16)};
    const Floats sizes[2] = {max(both[0], zeros() - both[0]), max(both[1], zeros() - both[1])};
    const float largest = max_of(max(sizes[0], sizes[1]));
    const float factor = largest < 1e-30f ? 0 : INT16_MOST / largest;
    Floats total = zeros();
    for (int i = 0; i < 2; i++) {
        const Integers numbers = rounded(both[i] * all(factor));
        store(to + i * 16, numbers);
        total = total + floats(numbers);
    }
    scale = (largest < 1e-30f ? 0 : largest / INT16_MOST) + sum_of((both[0] - both[0]) + (both[1] - both[1]));
    sum = std::isfinite(scale) ? int32_t(sum_of(total)) : 0;   // (else the total may be none of 32 bits)
}

// x: (rows, inputs) in tiles
inline void round_rows(const float* x, int rows, int inputs, const Rounded& to) {
    const int depths = filled(inputs, DEPTH) / DEPTH;
#pragma omp for schedule(static)
    for (int depth = 0; depth < depths; depth++)
        for (int row = 0; row < rows; row++) {
            const int64_t group = grouped(row, depth, depths), at = tiled(row, depth * DEPTH, inputs);
            round_group(x + at, to.numbers + at, to.scales[group], to.sums[group]);
        }
}

// Some rows of them, each from its first group on.
struct RoundedRows {
    const int16_t* numbers[ROWS_TOGETHER];
    const float* scales[ROWS_TOGETHER];
    const int32_t* sums[ROWS_TOGETHER];
};

// --- weights as pairs of 16 bits, 16 columns at a time -----------------------------------------------------------

// A panel in memory, in the order of `Matrix`. int4 have 8 added, which `OFFSET` times a group's sum takes away again.
template <int BITS>
struct PackedPanel {
    const std::byte* first;

    static constexpr int OFFSET = BITS == 4 ? 8 : 0, TILE_BYTES = TILE_SIZE * BITS / 8, AHEAD = 16384;
    static constexpr int EACH = 64 * 16 / TILE_BYTES;   // pairs in a line of the cache
    static constexpr int offset(int depth, int pair, int column) {
        return (depth * (PANEL / TILE) + column) * TILE_BYTES + pair / EACH * 64;
    }
    Shorts part(int depth, int pair, int column) const {
        const std::byte* tile = first + (int64_t(depth) * (PANEL / TILE) + column) * TILE_BYTES;
        if constexpr (BITS == 4)
            return unsigned_nibbles(tile + pair / 4 * 64, pair % 4);
        else
            return shorts((const int8_t*)tile + pair * 2 * TILE);
    }
    void ahead(int depth, int pair, int column) const {
        if (pair % EACH == 0) prefetch(first + offset(depth, pair, column) + AHEAD, 64);
    }
    PackedPanel from(int column) const { return {first + column * TILE_BYTES}; }
    PackedPanel of_group(int, int, int) const { return *this; }
};

// A part of it after `unpack`, in the first cache, while each group of rows prefetches its share of the panel's next part
template <int BITS>
struct UnpackedPanel {
    const int16_t* first;
    const std::byte* next;
    int share = 256;   // in 256ths

    using Packed = PackedPanel<BITS>;
    static constexpr int OFFSET = Packed::OFFSET;
    Shorts part(int depth, int pair, int column) const {
        return shorts(first + (depth * (PANEL / TILE) + column) * TILE_SIZE + pair * 2 * TILE);
    }
    void ahead(int depth, int pair, int column) const {
        if (pair % Packed::EACH == 0) prefetch(next + (Packed::offset(depth, pair, column) * share >> 8), 64);
    }
    UnpackedPanel from(int column) const {
        return {first + column * TILE_SIZE, next + (Packed::offset(0, 0, column) * share >> 8), share};
    }
    UnpackedPanel of_group(int group, int groups, int depths) const {
        return {first, next + group * Packed::offset(depths, 0, 0) / groups, 256 / groups};
    }
};

constexpr int UNPACKED_DEPTHS = 4;   // at a time

template <int BITS>
inline void unpack(const PackedPanel<BITS>& from, int depth, int count, int16_t* to) {
    for (int n = 0; n < count; n++)
        for (int column = 0; column < PANEL / TILE; column++)
            for (int four = 0; four < DEPTH / 2; four += 4)
#pragma GCC unroll 4
                for (int pair = four; pair < four + 4; pair++)
                    store_pairs(to + (n * (PANEL / TILE) + column) * TILE_SIZE + pair * 2 * TILE,
                                from.part(depth + n, pair, column));
}

// --- products ------------------------------------------------------------------------------------------------------

// R rows times 16 · C columns: added to y. `scales`, of each depth and column of the panel, is null for int8, whose scales are applied
// at the end.
template <int R, int C, class Columns>
inline __attribute__((always_inline)) void accumulate_integers(const RoundedRows& x, int first, const Columns& columns,
                                                               const bf16* scales, int depth, int depths, float* y) {
    for (int n = 0; n < depths; n++) {
        const int64_t group = int64_t(depth + n) * TILE, at = int64_t(depth + n) * TILE_SIZE;
        Integers sums[R][C];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) sums[r][c] = integers(Columns::OFFSET ? -Columns::OFFSET * x.sums[first + r][group] : 0);
        for (int four = 0; four < DEPTH / 2; four += 4)
#pragma GCC unroll 4
            for (int pair = four; pair < four + 4; pair++) {
                Shorts w[C];
                for (int c = 0; c < C; c++) {
                    columns.ahead(n, pair, c);
                    w[c] = columns.part(n, pair, c);
                }
                for (int r = 0; r < R; r++) {
                    const Shorts operand = broadcast(x.numbers[first + r] + at + 2 * pair);
                    for (int c = 0; c < C; c++) sums[r][c] = dot(sums[r][c], w[c], operand);
                }
            }
        for (int r = 0; r < R; r++) {
            const Floats own = all(x.scales[first + r][group]);
            for (int c = 0; c < C; c++) {
                float* to = y + r * PANEL + c * TILE;
                const Floats factor = scales ? own * load(scales + int64_t(depth + n) * PANEL + c * TILE) : own;
                store(to, fma(floats(sums[r][c]), factor, load(to)));
            }
        }
    }
}

template <int R, class Columns>
__attribute__((noinline)) void accumulate_integers(const RoundedRows& x, int first, const Columns& columns, const bf16* scales,
                                                   int depth, int depths, float* y) {
    constexpr int C = R * 4 <= INTEGER_SUMS ? 4 : R * 2 <= INTEGER_SUMS ? 2 : 1;
    for (int column = 0; column < PANEL / TILE; column += C)
        accumulate_integers<R, C>(x, first, columns.from(column), after(scales, column * TILE), depth, depths,
                                  y + first * PANEL + column * TILE);
}

constexpr int INTEGER_ROWS = 6;   // at a time

template <class Columns>
inline void accumulate_integers(const RoundedRows& x, int rows, const Columns& columns, const bf16* scales, int depth, int depths,
                                float* y) {
    const int groups = (rows + INTEGER_ROWS - 1) / INTEGER_ROWS;
    for (int group = 0, row = 0; group < groups; group++) {
        const int count = (rows - row + groups - group - 1) / (groups - group);
        const Columns own = columns.of_group(group, groups, depths);
        switch (count) {
            case 1: accumulate_integers<1>(x, row, own, scales, depth, depths, y); break;
            case 2: accumulate_integers<2>(x, row, own, scales, depth, depths, y); break;
            case 3: accumulate_integers<3>(x, row, own, scales, depth, depths, y); break;
            case 4: accumulate_integers<4>(x, row, own, scales, depth, depths, y); break;
            case 5: accumulate_integers<5>(x, row, own, scales, depth, depths, y); break;
            default: accumulate_integers<6>(x, row, own, scales, depth, depths, y); break;
        }
        row += count;
    }
}

template <int BITS>
inline void multiply_integers(const RoundedRows& x, int rows, const PackedPanel<BITS>& panel, const bf16* scales, int depths,
                              float* y) {
    if (rows <= INTEGER_ROWS) {
        accumulate_integers(x, rows, panel, scales, 0, depths, y);
        return;
    }
    alignas(64) int16_t room[UNPACKED_DEPTHS * PANEL * DEPTH];
    for (int depth = 0; depth < depths; depth += UNPACKED_DEPTHS) {
        const int count = depths - depth < UNPACKED_DEPTHS ? depths - depth : UNPACKED_DEPTHS;
        unpack(panel, depth, count, room);
        const std::byte* next = panel.first + PackedPanel<BITS>::offset(depth + count, 0, 0);
        accumulate_integers(x, rows, UnpackedPanel<BITS>{room, next}, scales, depth, count, y);
    }
}

// x: (rows, inputs), from row `row` on, times a panel of int8 or int4 -> y: (rows, PANEL); int8 without their scales
inline void multiply_integers(const Rounded& x, int row, int rows, const Matrix& w, int number, float* y) {
    const int depths = filled(w.inputs, DEPTH) / DEPTH;
    RoundedRows own;
    for (int i = 0; i < rows; i++) {
        const int64_t group = grouped(row + i, 0, depths);
        own.numbers[i] = x.numbers + tiled(row + i, 0, w.inputs);
        own.scales[i] = x.scales + group;
        own.sums[i] = x.sums + group;
    }
    const std::byte* panel = (const std::byte*)w.weights + number * int64_t(depths) * PANEL * DEPTH * w.bits / 8;
    std::memset(y, 0, rows * PANEL * sizeof(float));
    if (w.bits == 4)
        multiply_integers(own, rows, PackedPanel<4>{panel}, (const bf16*)w.scales + int64_t(number) * depths * PANEL, depths, y);
    else
        multiply_integers(own, rows, PackedPanel<8>{panel}, nullptr, depths, y);
}

}  // namespace llama
