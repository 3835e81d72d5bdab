// y = x / √(mean of x² + ε) · w, separately for each row.
#pragma once
#include <cmath>

#include "vectors.h"

namespace llama {

// x: (rows, hidden) float32, w: (hidden,) -> y: (rows, hidden) bf16 in tiles. `from` selects rows of x; null is all of them in order.
inline void norm(const float* x, int stride_x, const int32_t* from, const bf16* w, float epsilon, int hidden, int rows,
                 bf16* y) {
#pragma omp for schedule(static)
    for (int row = 0; row < rows; row++) {
        const float* own = x + int64_t(from ? from[row] : row) * stride_x;
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < hidden; i += 16) squares = _mm512_fmadd_ps(load(own + i), load(own + i), squares);
        const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(_mm512_reduce_add_ps(squares) / float(hidden) + epsilon));
        for (int i = 0; i < hidden; i += 16)
            store(y + tiled(row, i, hidden), _mm512_mul_ps(_mm512_mul_ps(load(own + i), factor), load(w + i)));
        for (int i = hidden; i < filled(hidden, DEPTH); i += 16) store(y + tiled(row, i, hidden), _mm512_setzero_ps());
    }
}

}  // namespace llama
