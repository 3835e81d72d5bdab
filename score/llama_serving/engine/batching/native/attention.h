// Attention of each query over the keys and values of its sequence, up to its own position.
//
// A generated token is one query per head: a matrix times a vector, bound by memory. Tokens of a prompt are computed 64 at a
// time: a matrix times a matrix (`attention_tiles.h` or `attention_vectors.h`). The two round differently, so the choice
// depends only on the token's kind (`Span::prompt`). Both read the keys in the same order wherever the rows are, so a row's
// result has the same bits in any batch and in any part of its prompt.
#pragma once
#include <cfloat>
#include <cmath>

#ifdef LLAMA_TILES
#include "attention_tiles.h"
#else
#include "attention_vectors.h"
#endif
#include "rope.h"

namespace llama {

// One thread's unit of work: a head, or for a generated token all heads that share a key head.
struct Look {
    int row, count;      // queries
    int position;        // of the first
    int head;            // query head for a prompt, else key head
    bool prompt;
    const int32_t* blocks;

    int64_t work() const { return int64_t(position + count) * count; }
};

// --- one generated token ---------------------------------------------------------------------------------------

// query · keys of a block -> 32 scores; four sums at a time, since each takes some cycles. `next` follows the keys in
// memory: it is prefetched line by line meanwhile, since only few lines can be in flight at a time
template <int D>
inline void score_block(const Operand* query, const bf16* keys, const bf16* next, Floats factor, float* scores) {
    Floats even[2] = {zeros(), zeros()}, odd[2] = {zeros(), zeros()};
    for (int pair = 0; pair < D / 2; pair += 2) {
        for (int half = 0; half < 2; half++) {
            const int at = half * TILE * D + pair * 2 * TILE;
            const bf16* k = keys + at;
            prefetch(next + at, 2 * 64);
            each_part([&](auto P) {
                even[half] = dot(even[half], part<P.value>(k), broadcast<P.value>(query + 2 * pair));
                odd[half] = dot(odd[half], part<P.value>(k + 2 * TILE), broadcast<P.value>(query + 2 * pair + 2));
            });
        }
    }
    for (int half = 0; half < 2; half++) store(scores + half * TILE, (even[half] + odd[half]) * factor);
}

// (tokens,) scores -> operands in the same memory; returns their sum
inline float soften(float* scores, int tokens) {
    const int until = filled(tokens, BLOCK_TOKENS);
    for (int i = tokens; i < until; i++) scores[i] = -FLT_MAX;
    Floats most = load(scores);
    for (int i = 16; i < until; i += 16) most = max(most, load(scores + i));
    const Floats highest = all(max_of(most));
    Floats sum = zeros();
    auto* weights = (Operand*)scores;
    for (int i = 0; i < until; i += 16) {
        const Floats weight = exp2(load(scores + i) - highest);
        sum = sum + weight;
        store(weights + i, weight);
    }
    return sum_of(sum);
}

// weights · values of all blocks -> (D,) from a column on, as many columns at a time as registers can hold two sums of
template <int D>
inline void mix(const Operand* weights, float sum, const Memory& memory, const Look& look, Operand* mixed, int column,
                int columns) {
    constexpr int TOGETHER_16 = D / 16 * 2 <= SUMS ? D / 16 : 2;
    const Floats share = all(1.f / sum);
    const int blocks = look.position / BLOCK_TOKENS + 1;
    for (int first = 0; first < D; first += TOGETHER_16 * 16) {
        Floats even[TOGETHER_16], odd[TOGETHER_16];
        for (int d = 0; d < TOGETHER_16; d++) even[d] = odd[d] = zeros();
        for (int b = 0; b < blocks; b++) {
            const bf16* v = memory.values + look.blocks[b] * memory.stride + 2 * first;
            const bf16* next = memory.values + look.blocks[b + 1 < blocks ? b + 1 : b] * memory.stride + 2 * first;
            for (int pair = 0; pair < BLOCK_TOKENS / 2; pair += 2) {
                const Operand* w = weights + b * BLOCK_TOKENS + 2 * pair;
                for (int d = 0; d < TOGETHER_16; d++) {
                    const bf16* at = v + pair * 2 * D + d * 2 * 16;
                    prefetch(at + (next - v), 64);
                    prefetch(at + (next - v) + 2 * D, 64);
                    each_part([&](auto P) {
                        even[d] = dot(even[d], part<P.value>(at), broadcast<P.value>(w));
                        odd[d] = dot(odd[d], part<P.value>(at + 2 * D), broadcast<P.value>(w + 2));
                    });
                }
            }
        }
        for (int d = 0; d < TOGETHER_16; d++)
            store(mixed + tiled(look.row, column + first + d * 16, columns), (even[d] + odd[d]) * share);
    }
}

// scores: memory for `group` times the tokens, padded
template <int D>
inline void look_from_token(const Model& model, int layer, const Look& look, const Operand* qkv, int stride_qkv,
                            Operand* mixed, float* scores) {
    const int group = model.heads / model.kv_heads, tokens = look.position + 1;
    const int until = filled(tokens, BLOCK_TOKENS);
    const Memory memory(model, layer, look.head);
    const Operand* queries = qkv + int64_t(look.row) * stride_qkv + look.head * group * D;
    const Floats factor = all(LOG2_E / std::sqrt(float(D)));
    for (int at = 0; at < until; at += BLOCK_TOKENS) {
        const int32_t* block = look.blocks + at / BLOCK_TOKENS;
        const bf16* k = memory.keys + block[0] * memory.stride;
        const bf16* next = at + BLOCK_TOKENS < until ? memory.keys + block[1] * memory.stride
                                                     : memory.values + look.blocks[0] * memory.stride;
        for (int g = 0; g < group; g++) score_block<D>(queries + g * D, k, next, factor, scores + g * until + at);
    }
    for (int g = 0; g < group; g++) {
        const float sum = soften(scores + g * until, tokens);
        mix<D>((Operand*)(scores + g * until), sum, memory, look, mixed,
               (look.head * group + g) * D, model.heads * D);
    }
}

// --- up to 64 tokens of a prompt -------------------------------------------------------------------------------

// One query's scores of up to 128 tokens -> weights relative to the highest so far; values mixed before are rescaled
// to match. seen: number of tokens that it attends to.
template <int D>
inline void soften_row(Prompt<D>& prompt, int query, int seen, int tokens, Floats factor) {
    const float* scores = prompt.scores + query * TOKENS;
    Operand* weights = prompt.weights + query * TOKENS;
    const Floats none = all(-FLT_MAX);
    Floats x[TOKENS / 16], most = none;
    for (int i = 0; i < tokens; i += 16) {
        x[i / 16] = first(seen - i, load(scores + i) * factor, none);
        most = max(most, x[i / 16]);
    }
    const float before = prompt.highest[query], highest = std::fmax(before, max_of(most));
    if (highest > before) {
        const Floats less = exp2(all(before - highest));
        float* mixed = prompt.mixed + query * D;
        for (int d = 0; d < D; d += 16) store(mixed + d, load(mixed + d) * less);
        prompt.sum[query] *= max_of(less);
        prompt.highest[query] = highest;
    }
    Floats sum = zeros();
    for (int i = 0; i < tokens; i += 16) {
        const Floats weight = exp2(x[i / 16] - all(highest));
        sum = sum + weight;
        store(weights + i, weight);
    }
    prompt.sum[query] += sum_of(sum);
}

template <int D>
inline void look_from_prompt(const Model& model, int layer, const Look& look, const Operand* qkv, int stride_qkv,
                             Operand* mixed, Prompt<D>& prompt) {
    const int head = look.head / (model.heads / model.kv_heads), last = look.position + look.count;
    const Memory memory(model, layer, head);
    const Floats factor = all(LOG2_E / std::sqrt(float(D)));
    const int rows = filled(look.count, QUERY_ROWS);
    for (int i = 0; i < rows; i++) {
        Operand* to = prompt.queries + i * D;
        if (i < look.count)
            std::memcpy(to, qkv + int64_t(look.row + i) * stride_qkv + look.head * D, D * sizeof(Operand));
        else
            std::memset(to, 0, D * sizeof(Operand));
        std::memset(prompt.mixed + i * D, 0, D * sizeof(float));
        std::memset(prompt.weights + i * TOKENS, 0, TOKENS * sizeof(Operand));
        prompt.highest[i] = -FLT_MAX;
        prompt.sum[i] = 0;
    }
    for (int at = 0; at < last; at += TOKENS) {
        const int tokens = last - at < TOKENS ? filled(last - at, BLOCK_TOKENS) : TOKENS, blocks = tokens / BLOCK_TOKENS;
        const bf16* values[TOGETHER];
        for (int b = 0; b < blocks; b++) {
            const int64_t block = look.blocks[at / BLOCK_TOKENS + b] * memory.stride;
            values[b] = memory.values + block;
            score(prompt, rows, memory.keys + block, b);
        }
        const int ahead = last - at - TOKENS;
        for (int i = 0; i < look.count; i++) {
            soften_row(prompt, i, look.position + i + 1 - at, tokens, factor);
            // Prefetch the next blocks meanwhile, a part of them with each row.
            for (int part = i; part < TOKENS && part < ahead; part += look.count) {
                const int64_t line = look.blocks[(at + TOKENS + part) / BLOCK_TOKENS] * memory.stride + part % BLOCK_TOKENS * D;
                prefetch<2>(memory.keys + line, D * int(sizeof(bf16)));
                prefetch<2>(memory.values + line, D * int(sizeof(bf16)));
            }
        }
        mix(prompt, rows, values, blocks);
    }
    for (int i = 0; i < look.count; i++) {
        const Floats share = all(1.f / prompt.sum[i]);
        for (int d = 0; d < D; d += 16)
            store(mixed + tiled(look.row + i, look.head * D + d, model.heads * D),
                  load(prompt.mixed + i * D + d) * share);
    }
}

// qkv: (rows, heads + 2 kv_heads, D) -> mixed: (rows, heads · D) in tiles
template <int D>
inline void attend(const Model& model, int layer, const Look* looks, int count, const Operand* qkv,
                   int stride_qkv, Operand* mixed, float* scores) {
    Prompt<D> prompt;
#pragma omp for schedule(dynamic, 1)
    for (int n = 0; n < count; n++)
        if (looks[n].prompt)
            look_from_prompt<D>(model, layer, looks[n], qkv, stride_qkv, mixed, prompt);
        else
            look_from_token<D>(model, layer, looks[n], qkv, stride_qkv, mixed, scores);
}

}  // namespace llama
