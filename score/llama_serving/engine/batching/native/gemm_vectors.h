// Rows times columns with vectors: up to 6 rows and 64 columns at a time, whose sums stay in registers.
//
// Each sum adds its products in the order of the inputs, whatever the number of rows, so a row has the same bits in any batch.
#pragma once
#include "model.h"
#include "vectors.h"

namespace llama {

constexpr int ROWS_MOST = 6;

constexpr int columns_together(int rows) { return rows * 4 <= SUMS ? 4 : rows * 2 <= SUMS ? 2 : 1; }

// Of each of R rows, `depths` times 32 operands with a distance of `step`, times 16 · C columns: added to y.
// Columns has: at(depth); part<P>(at, pair, column), of 16 columns; ahead(depth, pair, column), which prefetches what is needed
// later; of_group, of a group of rows; GROUPED: each depth's sum is multiplied with scale(depth, column).
template <int R, int C, class Columns>
inline __attribute__((always_inline)) void accumulate(const Operand* const* x, int64_t step, const Columns& columns,
                                                      int depths, float* y, int stride) {
    Floats sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = Columns::GROUPED ? zeros() : load(y + r * stride + c * 16);
    for (int depth = 0; depth < depths; depth++) {
        const auto* at = columns.at(depth);
        const int64_t offset = depth * step;
        const auto add = [&](auto P, int pair) __attribute__((always_inline)) {
            Part w[C];
            for (int c = 0; c < C; c++) w[c] = columns.template part<P.value>(at, pair, c);
            for (int r = 0; r < R; r++) {
                const Part operand = broadcast<P.value>(x[r] + offset + 2 * pair);
                for (int c = 0; c < C; c++) sums[r][c] = dot(sums[r][c], w[c], operand);
            }
        };
        for (int four = 0; four < DEPTH / 2; four += 4)
#pragma GCC unroll 4
            for (int pair = four; pair < four + 4; pair++) {
                for (int c = 0; c < C; c++) columns.ahead(depth, pair, c);
                each_part([&](auto P) __attribute__((always_inline)) { add(P, pair); });
            }
        if constexpr (Columns::GROUPED)
            for (int c = 0; c < C; c++) {
                const Floats scale = columns.scale(depth, c);
                for (int r = 0; r < R; r++) {
                    float* to = y + r * stride + c * 16;
                    store(to, fma(sums[r][c], scale, load(to)));
                    sums[r][c] = zeros();
                }
            }
    }
    if constexpr (!Columns::GROUPED)
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) store(y + r * stride + c * 16, sums[r][c]);
}

template <int R, class Columns>
__attribute__((noinline)) void accumulate_rows(const Operand* const* x, int64_t step, const Columns& columns, int width,
                                               int depths, float* y, int stride) {
    constexpr int C = columns_together(R);
    int column = 0;
    for (; column + C * 16 <= width; column += C * 16)
        accumulate<R, C>(x, step, columns.from(column / 16), depths, y + column, stride);
    if constexpr (C > 2)
        if (column < width) accumulate<R, 2>(x, step, columns.from(column / 16), depths, y + column, stride);
}

// x: of each row; y: (rows, width) float32 with a distance of `stride`. width is a multiple of 32.
template <class Columns>
inline void accumulate(const Operand* const* x, int rows, int64_t step, const Columns& columns, int width, int depths,
                       float* y, int stride) {
    const int groups = (rows + ROWS_MOST - 1) / ROWS_MOST;
    for (int group = 0, row = 0; group < groups; group++) {
        const int count = (rows - row + groups - group - 1) / (groups - group);
        const Operand* const* from = x + row;
        float* to = y + row * stride;
        const Columns own = columns.of_group(group, groups);
        switch (count) {
            case 1: accumulate_rows<1>(from, step, own, width, depths, to, stride); break;
            case 2: accumulate_rows<2>(from, step, own, width, depths, to, stride); break;
            case 3: accumulate_rows<3>(from, step, own, width, depths, to, stride); break;
            case 4: accumulate_rows<4>(from, step, own, width, depths, to, stride); break;
            case 5: accumulate_rows<5>(from, step, own, width, depths, to, stride); break;
            default: accumulate_rows<6>(from, step, own, width, depths, to, stride); break;
        }
        row += count;
    }
}

// --- panels of weights -----------------------------------------------------------------------------------------

constexpr int PANEL_DEPTH = PANEL * DEPTH;
constexpr int bytes_of(int numbers, int bits) { return numbers * bits / 8; }

template <int P, int BITS>
inline Part part_of(const std::byte* tile, int pair) {
    const std::byte* at = tile + bytes_of((BITS == 4 ? pair / 4 * 4 : pair) * 2 * TILE, BITS);
    if constexpr (BITS == 4)
        return nibbles<P>(at, pair % 4);
    else if constexpr (BITS == 8)
        return part<P>((const int8_t*)at);
    else
        return part<P>((const bf16*)at);
}

// In memory, in the order of `Matrix`
template <int BITS>
struct PanelColumns {
    const std::byte* first;
    const bf16* scales;

    static constexpr bool GROUPED = BITS == 4;
    static constexpr int AHEAD = 16384, TILE_BYTES = bytes_of(TILE_SIZE, BITS), LINES = TILE_BYTES / 64;
    const std::byte* at(int depth) const { return first + int64_t(depth) * bytes_of(PANEL_DEPTH, BITS); }
    template <int P>
    Part part(const std::byte* at, int pair, int column) const {
        return part_of<P, BITS>(at + column * TILE_BYTES, pair);
    }
    void ahead(int depth, int pair, int column) const {
        if (pair % (16 / LINES) == 0) prefetch(at(depth) + AHEAD + column * TILE_BYTES + pair * TILE_BYTES / 16, 64);
    }
    Floats scale(int depth, int column) const { return load(scales + depth * PANEL + column * TILE); }
    PanelColumns from(int column) const { return {first + column * TILE_BYTES, after(scales, column * TILE)}; }
    PanelColumns of_group(int, int) const { return *this; }
};

// The same in the cache as operands, while each group of rows prefetches its share of the panel's next part
template <int BITS>
struct UnpackedColumns {
    const Operand* first;
    const bf16* scales;
    const std::byte* next;
    int bytes;         // of `next`
    int share = 256;   // in 256ths

    static constexpr bool GROUPED = BITS == 4;
    const Operand* at(int depth) const { return first + depth * PANEL_DEPTH; }
    template <int P>
    Part part(const Operand* at, int pair, int column) const {
        return llama::part<P>(at + column * TILE_SIZE + pair * 2 * TILE);
    }
    void ahead(int depth, int pair, int column) const {
        const int numbers = depth * PANEL_DEPTH + column * TILE_SIZE + pair * 2 * TILE;
        prefetch(next + (bytes_of(numbers, BITS) * share >> 8), 64);
    }
    Floats scale(int depth, int column) const { return load(scales + depth * PANEL + column * TILE); }
    UnpackedColumns from(int column) const {
        return {first + column * TILE_SIZE, after(scales, column * TILE),
                next + (bytes_of(column * TILE_SIZE, BITS) * share >> 8), bytes, share};
    }
    UnpackedColumns of_group(int group, int groups) const {
        return {first, scales, next + group * bytes / groups, bytes, 256 / groups};
    }
};

// Parts are computed once for all rows: of so many depths, to stay in the first cache.
constexpr int UNPACKED = 16384 / (PANEL_DEPTH * int(sizeof(Operand)));

template <int BITS>
inline void unpack(const std::byte* from, int depths, Operand* to) {
    for (int tile = 0; tile < depths * (PANEL / TILE); tile++)
        for (int pair = 0; pair < DEPTH / 2; pair++)
            each_part([&](auto P) {
                store(to + tile * TILE_SIZE + pair * 2 * TILE + P.value * TILE,
                      part_of<P.value, BITS>(from + tile * bytes_of(TILE_SIZE, BITS), pair));
            });
}

struct PanelProduct {
    const std::byte* panel;
    const bf16* scales;   // of groups
    int depths, bits;

    PanelProduct(const Matrix& w, int number, int, bf16*) : depths(filled(w.inputs, DEPTH) / DEPTH), bits(w.bits) {
        panel = (const std::byte*)w.weights + number * int64_t(depths) * bytes_of(PANEL_DEPTH, bits);
        scales = after(bits == 4 ? (const bf16*)w.scales : nullptr, int64_t(number) * depths * PANEL);
    }

    // x: in tiles, from row `row` on -> y: (rows, PANEL)
    void operator()(const Operand* x, int inputs, int row, int rows, float* y) const {
        const Operand* at[ROWS_TOGETHER];
        for (int i = 0; i < rows; i++) at[i] = x + tiled(row + i, 0, inputs);
        std::memset(y, 0, rows * PANEL * sizeof(float));
        switch (bits) {
            case 4: multiply<4>(at, rows, y); break;
            case 8: multiply<8>(at, rows, y); break;
            default: multiply<16>(at, rows, y);
        }
    }

    template <int BITS>
    void multiply(const Operand** x, int rows, float* y) const {
        if (rows <= ROWS_MOST) {
            accumulate(x, rows, TILE_SIZE, PanelColumns<BITS>{panel, scales}, PANEL, depths, y, PANEL);
            return;
        }
        alignas(64) Operand room[UNPACKED * PANEL_DEPTH];
        for (int depth = 0; depth < depths; depth += UNPACKED) {
            const int count = depths - depth < UNPACKED ? depths - depth : UNPACKED;
            const int bytes = count * bytes_of(PANEL_DEPTH, BITS);
            const std::byte* from = panel + int64_t(depth) * bytes_of(PANEL_DEPTH, BITS);
            const Operand* columns = room;
            if constexpr (BITS == 16 && std::is_same_v<Operand, bf16>)
                columns = (const Operand*)from;
            else
                unpack<BITS>(from, count, room);
            accumulate(x, rows, TILE_SIZE, UnpackedColumns<BITS>{columns, after(scales, depth * PANEL), from + bytes, bytes},
                       PANEL, count, y, PANEL);
            for (int row = 0; row < rows; row++) x[row] += count * TILE_SIZE;
        }
    }
};

}  // namespace llama
