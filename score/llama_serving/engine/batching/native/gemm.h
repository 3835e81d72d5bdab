// Products with weights, y = x · Wᵀ, fused with the operation on y. `gemm_tiles.h` and `gemm_vectors.h` have the two ways to
// multiply a panel.
#pragma once
#ifdef LLAMA_TILES
#include "gemm_tiles.h"
#else
#include "gemm_vectors.h"
#endif
#ifdef LLAMA_INTEGERS
#include "gemm_integers.h"
#endif

namespace llama {

// --- operations on y: (row, PANEL) float32, columns of the given panel -------------------------------------

struct Write {
    Operand* to;
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
        for (int i = 0; i < PANEL; i += 16) store(sum + i, load(sum + i) + load(y + i));
    }
};

// silu(gate) · up, of 16 columns of the one and 16 of the other: half as many columns as the product has, in tiles
struct Gate {
    Operand* to;
    int columns;

    void operator()(int row, int panel, const float* y) const {
        Operand* half = to + tiled(row, panel * (PANEL / 2), columns);
        store(half, silu(load(y)) * load(y + 16));
        store(half + 16, silu(load(y + 32)) * load(y + 48));
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
    for (int i = 0; i < PANEL; i += 16) store(y + i, load(y + i) * load(scales + i));
}

// Room for what a product with int8 or int4 makes on its way.
struct Scratch {
    bf16* panel;   // of this thread: a panel of the widest matrix
#ifdef LLAMA_INTEGERS
    Rounded rounded;   // of all threads
#endif
};

// x: (rows, inputs) in tiles, with as many as `ROWS_TOGETHER` make full
template <class Finish>
inline void product(const Operand* x, int rows, const Matrix& w, const Scratch& scratch, const Finish& finish) {
    const int panels = filled(w.outputs, PANEL) / PANEL;
#ifdef LLAMA_INTEGERS
    if (w.bits < 16) {
        round_rows(x, rows, w.inputs, scratch.rounded);
#pragma omp for schedule(static)
        for (int panel = 0; panel < panels; panel++) {
            alignas(64) float y[ROWS_TOGETHER * PANEL];
            for (int row = 0; row < rows; row += ROWS_TOGETHER) {
                const int count = rows - row < ROWS_TOGETHER ? rows - row : ROWS_TOGETHER;
                multiply_integers(scratch.rounded, row, count, w, panel, y);
                for (int i = 0; i < count; i++) {
                    if (w.bits == 8) scale(y + i * PANEL, (const float*)w.scales + panel * PANEL);
                    finish(row + i, panel, y + i * PANEL);
                }
            }
        }
        return;
    }
#endif
#pragma omp for schedule(static)
    for (int panel = 0; panel < panels; panel++) {
        alignas(64) float y[ROWS_TOGETHER * PANEL];
        const PanelProduct multiply(w, panel, rows, scratch.panel);
        for (int row = 0; row < rows; row += ROWS_TOGETHER) {
            const int count = rows - row < ROWS_TOGETHER ? rows - row : ROWS_TOGETHER;
            multiply(x, w.inputs, row, count, y);
            for (int i = 0; i < count; i++) {
                if (w.bits == 8) scale(y + i * PANEL, (const float*)w.scales + panel * PANEL);
                finish(row + i, panel, y + i * PANEL);
            }
        }
    }
}

}  // namespace llama
