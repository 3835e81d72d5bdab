// Rows times columns with tiles (AMX): 16 or 32 rows at a time.
//
// A tile register holds 16 rows of 64 bytes. `tdpbf16ps` adds to 16 × 16 float32 the product of 16 rows of x (32 numbers
// each) and 16 columns of Wᵀ. It sums in the same order whatever else is in the tile, so a row of y has the same bits
// in any batch.
#pragma once
#include "tiles.h"
#include "vectors.h"

namespace llama {

// --- weights, a tile of columns at a time: [DEPTH / 2][TILE][2] -----------------------------------------------

template <bool FROM_MEMORY>   // or from the cache, after other rows have used them
struct Plain {
    const bf16* at;   // a panel: [inputs / DEPTH][PANEL / TILE][DEPTH / 2][TILE][2]

    const bf16* tiles(int depth, int column, int count) const {
        const bf16* first = at + (depth * (PANEL / TILE) + column) * TILE_SIZE;
        if (FROM_MEMORY) prefetch(first + 2 * PANEL * DEPTH, count * TILE_SIZE * int(sizeof(bf16)));
        return first;
    }
};

// int8 are widened to bf16, which holds them exactly.
inline void widen(const int8_t* from, bf16* to, int count) {
    for (int i = 0; i < count; i += 2 * TILE) store(to + i, part<0>(from + i));
}

struct Quantised {
    const int8_t* at;
    bf16* room;   // two times PANEL × DEPTH: one half is read while the other is written

    const bf16* tiles(int depth, int column, int count) const {
        const int8_t* first = at + (depth * (PANEL / TILE) + column) * TILE_SIZE;
        prefetch(first + 4 * PANEL * DEPTH, count * TILE_SIZE);
        bf16* to = room + (depth % 2) * PANEL * DEPTH;
        widen(first, to, count * TILE_SIZE);
        return to;
    }
};

// --- 16 rows × 64 columns, and 32 rows × 32 columns ------------------------------------------------------------

// x is in tiles: (16, inputs) · panel -> (16, PANEL)
template <class Weights>
inline void multiply_16(const bf16* x, const Weights& weights, int depths, float* y) {
    tile::zero<0>();
    tile::zero<1>();
    tile::zero<2>();
    tile::zero<3>();
    for (int depth = 0; depth < depths; depth++) {
        const bf16* w = weights.tiles(depth, 0, 4);
        tile::load<4>(x + depth * TILE_SIZE);
        tile::load<5>(w);
        tile::multiply<0, 4, 5>();
        tile::load<6>(w + 1 * TILE_SIZE);
        tile::multiply<1, 4, 6>();
        tile::load<7>(w + 2 * TILE_SIZE);
        tile::multiply<2, 4, 7>();
        tile::load<5>(w + 3 * TILE_SIZE);
        tile::multiply<3, 4, 5>();
    }
    tile::store<0>(y, PANEL * sizeof(float));
    tile::store<1>(y + 16, PANEL * sizeof(float));
    tile::store<2>(y + 32, PANEL * sizeof(float));
    tile::store<3>(y + 48, PANEL * sizeof(float));
}

// (32, inputs) · half a panel -> (32, PANEL / 2), written among the columns of the whole
template <class Weights>
inline void multiply_32(const bf16* x, const Weights& weights, int depths, int column, float* y) {
    tile::zero<0>();
    tile::zero<1>();
    tile::zero<2>();
    tile::zero<3>();
    for (int depth = 0; depth < depths; depth++) {
        const bf16* w = weights.tiles(depth, column, 2);
        tile::load<6>(w);
        tile::load<4>(x + depth * TILE_SIZE);
        tile::load<5>(x + (depths + depth) * TILE_SIZE);
        tile::multiply<0, 4, 6>();
        tile::multiply<2, 5, 6>();
        tile::load<7>(w + TILE_SIZE);
        tile::multiply<1, 4, 7>();
        tile::multiply<3, 5, 7>();
    }
    float* to = y + column * TILE;
    tile::store<0>(to, PANEL * sizeof(float));
    tile::store<1>(to + TILE, PANEL * sizeof(float));
    tile::store<2>(to + TILE * PANEL, PANEL * sizeof(float));
    tile::store<3>(to + TILE * PANEL + TILE, PANEL * sizeof(float));
}

template <class Weights>
inline void multiply(const bf16* x, int rows, const Weights& weights, int depths, float* y) {
    if (rows <= TILE) {
        multiply_16(x, weights, depths, y);
    } else {
        multiply_32(x, weights, depths, 0, y);
        multiply_32(x, weights, depths, 2, y);
    }
}

// room: of this thread, for a panel of int8
struct PanelProduct {
    const bf16* plain;
    const int8_t* quantised;   // or null
    bf16* room;
    int depths;
    bool few;

    PanelProduct(const Matrix& w, int number, int rows, bf16* room)
        : quantised(nullptr), room(room), depths(filled(w.inputs, DEPTH) / DEPTH), few(rows <= ROWS_TOGETHER) {
        const int64_t size = int64_t(depths) * DEPTH * PANEL;
        plain = w.scales ? room : (const bf16*)w.weights + number * size;
        if (!w.scales) return;
        quantised = (const int8_t*)w.weights + number * size;
        if (!few) widen(quantised, room, int(size));
    }

    // x: in tiles, from row `row` on; as many as `ROWS_TOGETHER` make full can be read
    void operator()(const bf16* x, int inputs, int row, int rows, float* y) const {
        const bf16* part = x + tiled(row, 0, inputs);
        if (quantised && few)
            multiply(part, rows, Quantised{quantised, room}, depths, y);
        else if (quantised || row)
            multiply(part, rows, Plain<false>{plain}, depths, y);
        else
            multiply(part, rows, Plain<true>{plain}, depths, y);
    }
};

}  // namespace llama
