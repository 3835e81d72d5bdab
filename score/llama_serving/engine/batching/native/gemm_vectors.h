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
// Columns has: at(depth), the first pair of the first column; PAIR and COLUMN, the distances to the next pair and to the
// next 16 columns; ahead(depth, offset), which prefetches what is needed later; of_group, of a group of rows.
template <int R, int C, class Columns>
inline __attribute__((always_inline)) void accumulate(const Operand* const* x, int64_t step, const Columns& columns,
                                                      int depths, float* y, int stride) {
    Floats sums[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c] = load(y + r * stride + c * 16);
    for (int depth = 0; depth < depths; depth++) {
        const auto* at = columns.at(depth);
        const int64_t offset = depth * step;
        const auto add = [&](auto part_, int pair) __attribute__((always_inline)) {
            constexpr int P = decltype(part_)::value;
            Part w[C];
            for (int c = 0; c < C; c++) w[c] = part<P>(at + pair * Columns::PAIR + c * Columns::COLUMN);
            for (int r = 0; r < R; r++) {
                const Part operand = broadcast<P>(x[r] + offset + 2 * pair);
                for (int c = 0; c < C; c++) sums[r][c] = dot(sums[r][c], w[c], operand);
            }
        };
        for (int pair = 0; pair < DEPTH / 2; pair++) {
            for (int c = 0; c < C; c++) columns.ahead(depth, pair * Columns::PAIR + c * Columns::COLUMN);
            add(std::integral_constant<int, 0>(), pair);
            if constexpr (PARTS > 1) add(std::integral_constant<int, 1>(), pair);
        }
    }
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

constexpr int AHEAD = 4;   // depths to prefetch ahead

// [depths][PANEL / TILE][DEPTH / 2][TILE][2] in memory
template <class T>
struct PanelColumns {
    const T* first;

    static constexpr int PAIR = 2 * TILE, COLUMN = TILE_SIZE;
    const T* at(int depth) const { return first + depth * (PANEL * DEPTH); }
    void ahead(int depth, int offset) const { prefetch(at(depth + AHEAD) + offset, PAIR * int(sizeof(T))); }
    PanelColumns from(int column) const { return {first + column * COLUMN}; }
    PanelColumns of_group(int, int) const { return *this; }
};

// The same in the cache as operands, while each group of rows prefetches its share of the panel's next part
template <class T>
struct UnpackedColumns {
    const Operand* first;
    const T* next;
    int count;         // of `next`
    int share = 256;   // in 256ths

    static constexpr int PAIR = 2 * TILE, COLUMN = TILE_SIZE;
    const Operand* at(int depth) const { return first + depth * (PANEL * DEPTH); }
    void ahead(int depth, int offset) const {
        prefetch(next + ((depth * (PANEL * DEPTH) + offset) * share >> 8), PAIR * int(sizeof(T)));
    }
    UnpackedColumns from(int column) const { return {first + column * COLUMN, next + (column * COLUMN * share >> 8), count, share}; }
    UnpackedColumns of_group(int group, int groups) const { return {first, next + group * count / groups, count, 256 / groups}; }
};

// Parts are computed once for all rows: of so many depths, to stay in the first cache.
constexpr int UNPACKED = 16384 / (PANEL * DEPTH * int(sizeof(Operand)));

template <class T>
inline void unpack(const T* from, int depths, Operand* to) {
    for (int i = 0; i < depths * PANEL * DEPTH; i += 2 * TILE) {
        store(to + i, part<0>(from + i));
        if constexpr (PARTS > 1) store(to + i + TILE, part<1>(from + i));
    }
}

// rows of x, in tiles, · panel -> y: (rows, PANEL)
template <class T>
inline void multiply_panel(const Operand* const* x, int rows, const T* panel, int depths, float* y) {
    std::memset(y, 0, rows * PANEL * sizeof(float));
    if (rows <= ROWS_MOST) {
        accumulate(x, rows, TILE_SIZE, PanelColumns<T>{panel}, PANEL, depths, y, PANEL);
        return;
    }
    alignas(64) Operand room[UNPACKED * PANEL * DEPTH];
    for (int depth = 0; depth < depths; depth += UNPACKED) {
        const int count = depths - depth < UNPACKED ? depths - depth : UNPACKED;
        const T* from = panel + int64_t(depth) * PANEL * DEPTH;
        const Operand* here[ROWS_TOGETHER];
        for (int row = 0; row < rows; row++) here[row] = x[row] + depth * TILE_SIZE;
        const Operand* columns = room;
        if constexpr (std::is_same_v<T, Operand>)
            columns = from;
        else
            unpack(from, count, room);
        accumulate(here, rows, TILE_SIZE, UnpackedColumns<T>{columns, from + count * PANEL * DEPTH, count * PANEL * DEPTH}, PANEL, count, y, PANEL);
    }
}

struct PanelProduct {
    const std::byte* panel;
    int depths;
    bool int8;

    PanelProduct(const Matrix& w, int number, int, bf16*) : depths(filled(w.inputs, DEPTH) / DEPTH), int8(w.scales) {
        panel = (const std::byte*)w.weights + number * int64_t(depths) * DEPTH * PANEL * (int8 ? 1 : sizeof(bf16));
    }

    // x: in tiles, from row `row` on
    void operator()(const Operand* x, int inputs, int row, int rows, float* y) const {
        const Operand* at[ROWS_TOGETHER];
        for (int i = 0; i < rows; i++) at[i] = x + tiled(row + i, 0, inputs);
        if (int8)
            multiply_panel(at, rows, (const int8_t*)panel, depths, y);
        else
            multiply_panel(at, rows, (const bf16*)panel, depths, y);
    }
};

}  // namespace llama
