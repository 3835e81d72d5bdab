// y = x / √(mean of x² + ε) · w, separately for each row.
#pragma once
#include <cmath>

#include "model.h"
#include "vectors.h"

namespace llama {

// x: (rows, hidden) float32, w: (hidden,) -> y: (rows, hidden) operands in tiles. `from` selects rows of x; null is all of
// them in order.
inline void norm(const float* x, int stride_x, const int32_t* from, const bf16* w, float epsilon, int hidden, int rows,
                 Operand* y) {
#pragma omp for schedule(static)
    for (int row = 0; row < rows; row++) {
        const float* own = x + int64_t(from ? from[row] : row) * stride_x;
        Floats squares = zeros();
        for (int i = 0; i < hidden; i += 16) squares = fma(load(own + i), load(own + i), squares);
        const Floats factor = all(1.f / std::sqrt(sum_of(squares) / float(hidden) + epsilon));
        for (int i = 0; i < hidden; i += 16)
            store(y + tiled(row, i, hidden), load(own + i) * factor * load(w + i));
        for (int i = hidden; i < filled(hidden, DEPTH); i += 16) store(y + tiled(row, i, hidden), zeros());
    }
}

}  // namespace llama
