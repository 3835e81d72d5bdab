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

// int8 are widened to bf16, which holds them exactly; int4 are multiplied with their scales and rounded.
struct Quantised {
    const std::byte* at;
    const bf16* scales;   // of int4
    bf16* room;           // two times PANEL × DEPTH: one half is read while the other is written
    int bits;

    const bf16* tiles(int depth, int column, int count) const {
        const int size = TILE_SIZE * bits / 8;
        const std::byte* first = at + (int64_t(depth) * (PANEL / TILE) + column) * size;
        prefetch(first + 8192, count * size);
        bf16* to = room + (depth % 2) * PANEL * DEPTH;
        for (int i = 0; i < count; i++)
            widen(first + i * size, after(scales, depth * PANEL + (column + i) * TILE), to + i * TILE_SIZE);
        return to;
    }

    void widen(const std::byte* tile, const bf16* scale, bf16* to) const {
        for (int pair = 0; pair < DEPTH / 2; pair++)
            store(to + pair * 2 * TILE, bits == 8 ? part<0>((const int8_t*)tile + pair * 2 * TILE)
                                                  : scaled_pairs(nibbles<0>(tile + pair / 4 * 64, pair % 4), load(scale)));
    }

    // of a whole panel
    void widen(int depths, bf16* to) const {
        for (int64_t tile = 0; tile < depths * (PANEL / TILE); tile++)
            widen(at + tile * (TILE_SIZE * bits / 8), after(scales, tile * TILE), to + tile * TILE_SIZE);
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

// room: of this thread, for a panel of int8 or int4
struct PanelProduct {
    Quantised quantised;
    const bf16* plain;
    int depths;
    bool few;

    PanelProduct(const Matrix& w, int number, int rows, bf16* room)
        : depths(filled(w.inputs, DEPTH) / DEPTH), few(rows <= ROWS_TOGETHER) {
        const auto* own = (const std::byte*)w.weights + number * int64_t(depths) * PANEL * DEPTH * w.bits / 8;
        quantised = {own, after(w.bits == 4 ? (const bf16*)w.scales : nullptr, int64_t(number) * depths * PANEL), room, w.bits};
        plain = w.bits < 16 ? room : (const bf16*)own;
        if (w.bits < 16 && !few) quantised.widen(depths, room);
    }

    // x: in tiles, from row `row` on; as many as `ROWS_TOGETHER` make full can be read
    void operator()(const bf16* x, int inputs, int row, int rows, float* y) const {
        const bf16* part = x + tiled(row, 0, inputs);
        if (quantised.bits < 16 && few)
            multiply(part, rows, quantised, depths, y);
        else if (quantised.bits < 16 || row)
            multiply(part, rows, Plain<false>{plain}, depths, y);
        else
            multiply(part, rows, Plain<true>{plain}, depths, y);
    }
};

}  // namespace llama
