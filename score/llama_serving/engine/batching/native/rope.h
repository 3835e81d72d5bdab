// Rotate queries and keys by their position, and write keys and values to the cache.
#pragma once
#include "model.h"
#include "vectors.h"

namespace llama {

// (D,) in place: numbers i and i + D/2 are the coordinates of a point that is rotated
inline void turn(Operand* x, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; i += 16) {
        const Floats a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
        store(x + i, fms(a, c, b * s));
        store(x + half + i, fma(b, c, a * s));
    }
}

// The keys and values of one head in one layer, block by block.
struct Memory {
    bf16 *keys, *values;   // of block 0
    int64_t stride;        // from a block to the next

    Memory(const Model& model, int layer, int head)
        : stride(int64_t(model.layers) * 2 * model.kv_heads * BLOCK_TOKENS * model.head_dim) {
        const int64_t one = int64_t(BLOCK_TOKENS) * model.head_dim;
        keys = model.cache + (int64_t(layer) * 2 * model.kv_heads + head) * one;
        values = keys + model.kv_heads * one;
    }
};

inline void write_key(bf16* block, int token, const Operand* key, int D) {
    bf16* to = block + token / TILE * TILE * D + token % TILE * 2;
    for (int i = 0; i < D; i += TILE) {
        bf16 own[TILE];
        narrow(key + i, own);
        for (int j = 0; j < TILE; j += 2) std::memcpy(to + (i + j) * TILE, own + j, 2 * sizeof(bf16));
    }
}

inline void write_value(bf16* block, int token, const Operand* value, int D) {
    bf16* to = block + token / 2 * 2 * D + token % 2;
    for (int i = 0; i < D; i += TILE) {
        bf16 own[TILE];
        narrow(value + i, own);
        for (int j = 0; j < TILE; j++) to[2 * (i + j)] = own[j];
    }
}

// qkv: (rows, heads + 2 kv_heads, D): queries are rotated in place, the rest is written to the cache
inline void remember(const Model& model, int layer, const Step& step, Operand* qkv, int stride_qkv) {
    const int D = model.head_dim, group = model.heads / model.kv_heads;
#pragma omp for collapse(2) schedule(static)
    for (int head = 0; head < model.kv_heads; head++)
        for (int n = 0; n < step.spans_at(layer); n++) {
            const Span& span = step.span[n];
            const Memory memory(model, layer, head);
            for (int i = 0; i < span.count; i++) {
                const int row = span.first + i, position = span.start + i;
                const float* cosines = step.cosines + int64_t(row) * (D / 2);
                const float* sines = step.sines + int64_t(row) * (D / 2);
                Operand* own = qkv + int64_t(row) * stride_qkv;
                Operand* key = own + (model.heads + head) * D;
                for (int q = head * group; q < (head + 1) * group; q++) turn(own + q * D, cosines, sines, D / 2);
                turn(key, cosines, sines, D / 2);
                const int64_t block = step.tables[span.table + position / BLOCK_TOKENS] * memory.stride;
                write_key(memory.keys + block, position % BLOCK_TOKENS, key, D);
                write_value(memory.values + block, position % BLOCK_TOKENS, key + model.kv_heads * D, D);
            }
        }
}

}  // namespace llama
