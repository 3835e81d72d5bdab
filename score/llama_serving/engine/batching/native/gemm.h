// Products with weights, y = x · Wᵀ, fused with the operation on y.
//
// A tile register holds 16 rows of 64 bytes. `tdpbf16ps` adds to 16 × 16 float32 the product of 16 rows of x (32 numbers
// each) and 16 columns of Wᵀ. It sums in the same order whatever else is in the tile, so a row of y has the same bits
// in any batch.
#pragma once
#include "vectors.h"

namespace llama {

// --- weights, a tile of columns at a time: [DEPTH / 2][TILE][2] -----------------------------------------------

template <bool FROM_MEMORY>   // or from the cache, after other rows have used them
struct Plain {
    const bf16* at;   // a panel: [inputs / DEPTH][PANEL / TILE][DEPTH / 2][TILE][2]

    const bf16* tiles(int depth, int column, int count) const {
        const bf16* first = at + (depth * (PANEL / TILE) + column) * tile::SIZE;
        if (FROM_MEMORY) prefetch(first + 2 * PANEL * DEPTH, count * tile::SIZE * int(sizeof(bf16)));
        return first;
    }
};

// int8 are widened to bf16, which holds them exactly.
inline void widen(const int8_t* from, bf16* to, int count) {
    for (int i = 0; i < count; i += 32) {
        const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + i))));
        const __m512 high =
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + i + 16))));
        _mm512_store_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

struct Quantised {
    const int8_t* at;
    bf16* room;   // two times PANEL × DEPTH: one half is read while the other is written

    const bf16* tiles(int depth, int column, int count) const {
        const int8_t* first = at + (depth * (PANEL / TILE) + column) * tile::SIZE;
        prefetch(first + 4 * PANEL * DEPTH, count * tile::SIZE);
        bf16* to = room + (depth % 2) * PANEL * DEPTH;
        widen(first, to, count * tile::SIZE);
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
        tile::load<4>(x + depth * tile::SIZE);
        tile::load<5>(w);
        tile::multiply<0, 4, 5>();
        tile::load<6>(w + 1 * tile::SIZE);
        tile::multiply<1, 4, 6>();
        tile::load<7>(w + 2 * tile::SIZE);
        tile::multiply<2, 4, 7>();
        tile::load<5>(w + 3 * tile::SIZE);
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
        tile::load<4>(x + depth * tile::SIZE);
        tile::load<5>(x + (depths + depth) * tile::SIZE);
        tile::multiply<0, 4, 6>();
        tile::multiply<2, 5, 6>();
        tile::load<7>(w + tile::SIZE);
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

// --- operations on y: (row, PANEL) float32, columns of the given panel -------------------------------------

struct Write {
    bf16* to;
    int stride;

    void operator()(int row, int panel, const float* y) const {
        for (int i = 0; i < PANEL; i += 16) store(to + row * stride + panel * PANEL + i, load(y + i));
    }
};

struct Add {
    float* to;
    int stride;

    void operator()(int row, int panel, const float* y) const {
        float* sum = to + row * stride + panel * PANEL;
        for (int i = 0; i < PANEL; i += 16) store(sum + i, _mm512_add_ps(load(sum + i), load(y + i)));
    }
};

// silu(gate) · up, of 16 columns of the one and 16 of the other: half as many columns as the product has, in tiles
struct Gate {
    bf16* to;
    int columns;

    void operator()(int row, int panel, const float* y) const {
        bf16* half = to + tiled(row, panel * (PANEL / 2), columns);
        store(half, _mm512_mul_ps(silu(load(y)), load(y + 16)));
        store(half + 16, _mm512_mul_ps(silu(load(y + 32)), load(y + 48)));
    }
};

struct Logits {
    float* to;
    int vocab;

    void operator()(int row, int panel, const float* y) const {
        const int columns = vocab - panel * PANEL < PANEL ? vocab - panel * PANEL : PANEL;
        std::memcpy(to + int64_t(row) * vocab + panel * PANEL, y, columns * sizeof(float));
    }
};

// --- the whole product: panels are divided among the threads ------------------------------------------------

inline void scale(float* y, const float* scales) {
    for (int i = 0; i < PANEL; i += 16) store(y + i, _mm512_mul_ps(load(y + i), load(scales + i)));
}

// x: (rows, inputs) in tiles, with as many as `ROWS_TOGETHER` make full; room: of this thread, for a panel of int8
template <class Finish>
inline void product(const bf16* x, int rows, const Matrix& w, bf16* room, const Finish& finish) {
    const int panels = filled(w.outputs, PANEL) / PANEL, depths = filled(w.inputs, DEPTH) / DEPTH;
    const int64_t size = int64_t(depths) * DEPTH * PANEL;
#pragma omp for schedule(static)
    for (int panel = 0; panel < panels; panel++) {
        alignas(64) float y[ROWS_TOGETHER * PANEL];
        const bf16* plain = w.scales ? room : (const bf16*)w.weights + panel * size;
        const int8_t* quantised = (const int8_t*)w.weights + panel * size;
        if (w.scales && rows > ROWS_TOGETHER) widen(quantised, room, int(size));
        for (int row = 0; row < rows; row += ROWS_TOGETHER) {
            const int count = rows - row < ROWS_TOGETHER ? rows - row : ROWS_TOGETHER;
            const bf16* part = x + tiled(row, 0, w.inputs);
            if (w.scales && rows <= ROWS_TOGETHER)
                multiply(part, count, Quantised{quantised, room}, depths, y);
            else if (w.scales || row)
                multiply(part, count, Plain<false>{plain}, depths, y);
            else
                multiply(part, count, Plain<true>{plain}, depths, y);
            for (int i = 0; i < count; i++) {
                if (w.scales) scale(y + i * PANEL, w.scales + panel * PANEL);
                finish(row + i, panel, y + i * PANEL);
            }
        }
    }
}

}  // namespace llama
