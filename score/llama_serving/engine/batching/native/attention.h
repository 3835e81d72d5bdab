// Attention of each query over the keys and values of its sequence, up to its own position.
//
// A generated token is one query per head: a matrix times a vector, bound by memory, computed with `vdpbf16ps`. Tokens of
// a prompt are computed 64 at a time: a matrix times a matrix, with tiles. The two round differently, so the choice depends
// only on the token's kind (`Span::prompt`). Both read the keys in the same order wherever the rows are, so a row's result
// has the same bits in any batch and in any part of its prompt.
#pragma once
#include <cfloat>
#include <cmath>

#include "rope.h"

namespace llama {

constexpr int QUERIES = 64;            // of a prompt, computed together
constexpr int TOGETHER = 4;            // blocks whose scores are computed before their values are mixed
constexpr int TOKENS = TOGETHER * BLOCK_TOKENS;

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
inline void score_block(const bf16* query, const bf16* keys, const bf16* next, __m512 factor, float* scores) {
    __m512 even[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, odd[2] = {even[0], even[0]};
    for (int pair = 0; pair < D / 2; pair += 2) {
        int32_t q[2];
        std::memcpy(q, query + 2 * pair, sizeof q);
        const auto q0 = (__m512bh)_mm512_set1_epi32(q[0]), q1 = (__m512bh)_mm512_set1_epi32(q[1]);
        for (int half = 0; half < 2; half++) {
            const int at = half * TILE * D + pair * 2 * TILE;
            const bf16* k = keys + at;
            prefetch(next + at, 2 * 64);
            even[half] = _mm512_dpbf16_ps(even[half], q0, (__m512bh)_mm512_loadu_si512(k));
            odd[half] = _mm512_dpbf16_ps(odd[half], q1, (__m512bh)_mm512_loadu_si512(k + 2 * TILE));
        }
    }
    for (int half = 0; half < 2; half++)
        store(scores + half * TILE, _mm512_mul_ps(_mm512_add_ps(even[half], odd[half]), factor));
}

// (tokens,) scores -> bf16 weights in the first half of the same memory; returns their sum
inline float soften(float* scores, int tokens) {
    const int until = filled(tokens, BLOCK_TOKENS);
    for (int i = tokens; i < until; i++) scores[i] = -FLT_MAX;
    __m512 most = load(scores);
    for (int i = 16; i < until; i += 16) most = _mm512_max_ps(most, load(scores + i));
    const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 sum = _mm512_setzero_ps();
    auto* weights = (bf16*)scores;
    for (int i = 0; i < until; i += 16) {
        const __m512 weight = exp2(_mm512_sub_ps(load(scores + i), highest));
        sum = _mm512_add_ps(sum, weight);
        store(weights + i, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

// weights · values of all blocks -> (D,) from a column on
template <int D>
inline void mix(const bf16* weights, float sum, const Memory& memory, const Look& look, bf16* mixed, int column,
                int columns) {
    __m512 even[D / 16], odd[D / 16];
    for (int d = 0; d < D / 16; d++) even[d] = odd[d] = _mm512_setzero_ps();
    const int blocks = look.position / BLOCK_TOKENS + 1;
    for (int b = 0; b < blocks; b++) {
        const bf16* v = memory.values + look.blocks[b] * memory.stride;
        const bf16* next = memory.values + look.blocks[b + 1 < blocks ? b + 1 : b] * memory.stride;
        for (int pair = 0; pair < BLOCK_TOKENS / 2; pair += 2) {
            int32_t w[2];
            std::memcpy(w, weights + b * BLOCK_TOKENS + 2 * pair, sizeof w);
            const auto w0 = (__m512bh)_mm512_set1_epi32(w[0]), w1 = (__m512bh)_mm512_set1_epi32(w[1]);
            for (int d = 0; d < D / 16; d++) {
                const bf16* at = v + pair * 2 * D + d * 2 * 16;
                prefetch(at + (next - v), 64);
                prefetch(at + (next - v) + 2 * D, 64);
                even[d] = _mm512_dpbf16_ps(even[d], w0, (__m512bh)_mm512_loadu_si512(at));
                odd[d] = _mm512_dpbf16_ps(odd[d], w1, (__m512bh)_mm512_loadu_si512(at + 2 * D));
            }
        }
    }
    const __m512 share = _mm512_set1_ps(1.f / sum);
    for (int d = 0; d < D / 16; d++)
        store(mixed + tiled(look.row, column + d * 16, columns),
              _mm512_mul_ps(_mm512_add_ps(even[d], odd[d]), share));
}

// scores: memory for `group` times the tokens, padded
template <int D>
inline void look_from_token(const Model& model, int layer, const Look& look, const bf16* qkv, int stride_qkv,
                            bf16* mixed, float* scores) {
    const int group = model.heads / model.kv_heads, tokens = look.position + 1;
    const int until = filled(tokens, BLOCK_TOKENS);
    const Memory memory(model, layer, look.head);
    const bf16* queries = qkv + int64_t(look.row) * stride_qkv + look.head * group * D;
    const __m512 factor = _mm512_set1_ps(LOG2_E / std::sqrt(float(D)));
    for (int at = 0; at < until; at += BLOCK_TOKENS) {
        const int32_t* block = look.blocks + at / BLOCK_TOKENS;
        const bf16* k = memory.keys + block[0] * memory.stride;
        const bf16* next = at + BLOCK_TOKENS < until ? memory.keys + block[1] * memory.stride
                                                     : memory.values + look.blocks[0] * memory.stride;
        for (int g = 0; g < group; g++) score_block<D>(queries + g * D, k, next, factor, scores + g * until + at);
    }
    for (int g = 0; g < group; g++) {
        const float sum = soften(scores + g * until, tokens);
        mix<D>((bf16*)(scores + g * until), sum, memory, look, mixed,
               (look.head * group + g) * D, model.heads * D);
    }
}

// --- up to 64 tokens of a prompt -------------------------------------------------------------------------------

template <int D>
struct alignas(64) Prompt {
    bf16 queries[QUERIES * D];
    float scores[QUERIES * TOKENS];
    bf16 weights[QUERIES * TOKENS];
    float mixed[QUERIES * D];
    float highest[QUERIES], sum[QUERIES];
};

// 32 queries · keys of a block (two tiles of 16 tokens) -> (32, 32) scores
template <int D>
inline void score_tiles(const bf16* queries, const bf16* keys, float* scores) {
    tile::zero<0>();
    tile::zero<1>();
    tile::zero<2>();
    tile::zero<3>();
    for (int d = 0; d < D; d += DEPTH) {
        tile::load<4>(queries + d, D * sizeof(bf16));
        tile::load<5>(queries + TILE * D + d, D * sizeof(bf16));
        tile::load<6>(keys + d * TILE);
        tile::load<7>(keys + TILE * D + d * TILE);
        tile::multiply<0, 4, 6>();
        tile::multiply<1, 4, 7>();
        tile::multiply<2, 5, 6>();
        tile::multiply<3, 5, 7>();
    }
    tile::store<0>(scores, TOKENS * sizeof(float));
    tile::store<1>(scores + TILE, TOKENS * sizeof(float));
    tile::store<2>(scores + TILE * TOKENS, TOKENS * sizeof(float));
    tile::store<3>(scores + TILE * TOKENS + TILE, TOKENS * sizeof(float));
}

// (32, tokens of the blocks) weights · values -> (32, 32 of D), added
template <int D>
inline void mix_tiles(const bf16* weights, const bf16* const* values, int blocks, float* mixed) {
    tile::load<0>(mixed, D * sizeof(float));
    tile::load<1>(mixed + TILE, D * sizeof(float));
    tile::load<2>(mixed + TILE * D, D * sizeof(float));
    tile::load<3>(mixed + TILE * D + TILE, D * sizeof(float));
    for (int b = 0; b < blocks; b++) {
        tile::load<4>(weights + b * BLOCK_TOKENS, TOKENS * sizeof(bf16));
        tile::load<5>(weights + TILE * TOKENS + b * BLOCK_TOKENS, TOKENS * sizeof(bf16));
        tile::load<6>(values[b], 2 * D * sizeof(bf16));
        tile::load<7>(values[b] + 2 * TILE, 2 * D * sizeof(bf16));
        tile::multiply<0, 4, 6>();
        tile::multiply<1, 4, 7>();
        tile::multiply<2, 5, 6>();
        tile::multiply<3, 5, 7>();
    }
    tile::store<0>(mixed, D * sizeof(float));
    tile::store<1>(mixed + TILE, D * sizeof(float));
    tile::store<2>(mixed + TILE * D, D * sizeof(float));
    tile::store<3>(mixed + TILE * D + TILE, D * sizeof(float));
}

// One query's scores of up to 128 tokens -> weights relative to the highest so far; values mixed before are rescaled
// to match. seen: number of tokens that it attends to.
template <int D>
inline void soften_row(Prompt<D>& prompt, int query, int seen, int tokens, __m512 factor) {
    const float* scores = prompt.scores + query * TOKENS;
    bf16* weights = prompt.weights + query * TOKENS;
    const __m512 none = _mm512_set1_ps(-FLT_MAX);
    __m512 x[TOKENS / 16], most = none;
    for (int i = 0; i < tokens; i += 16) {
        const __mmask16 mask = seen - i >= 16 ? 0xffff : seen - i <= 0 ? 0 : __mmask16((1u << (seen - i)) - 1);
        x[i / 16] = _mm512_mask_mul_ps(none, mask, load(scores + i), factor);
        most = _mm512_max_ps(most, x[i / 16]);
    }
    const float before = prompt.highest[query], highest = std::fmax(before, _mm512_reduce_max_ps(most));
    if (highest > before) {
        const __m512 less = exp2(_mm512_set1_ps(before - highest));
        float* mixed = prompt.mixed + query * D;
        for (int d = 0; d < D; d += 16) store(mixed + d, _mm512_mul_ps(load(mixed + d), less));
        prompt.sum[query] *= _mm512_cvtss_f32(less);
        prompt.highest[query] = highest;
    }
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < tokens; i += 16) {
        const __m512 weight = exp2(_mm512_sub_ps(x[i / 16], _mm512_set1_ps(highest)));
        sum = _mm512_add_ps(sum, weight);
        store(weights + i, weight);
    }
    prompt.sum[query] += _mm512_reduce_add_ps(sum);
}

template <int D>
inline void look_from_prompt(const Model& model, int layer, const Look& look, const bf16* qkv, int stride_qkv,
                             bf16* mixed, Prompt<D>& prompt) {
    const int head = look.head / (model.heads / model.kv_heads), last = look.position + look.count;
    const Memory memory(model, layer, head);
    const __m512 factor = _mm512_set1_ps(LOG2_E / std::sqrt(float(D)));
    const int rows = filled(look.count, 2 * TILE);
    for (int i = 0; i < rows; i++) {
        bf16* to = prompt.queries + i * D;
        if (i < look.count)
            std::memcpy(to, qkv + int64_t(look.row + i) * stride_qkv + look.head * D, D * sizeof(bf16));
        else
            std::memset(to, 0, D * sizeof(bf16));
        std::memset(prompt.mixed + i * D, 0, D * sizeof(float));
        std::memset(prompt.weights + i * TOKENS, 0, TOKENS * sizeof(bf16));
        prompt.highest[i] = -FLT_MAX;
        prompt.sum[i] = 0;
    }
    for (int at = 0; at < last; at += TOKENS) {
        const int tokens = last - at < TOKENS ? filled(last - at, BLOCK_TOKENS) : TOKENS, blocks = tokens / BLOCK_TOKENS;
        const bf16* values[TOGETHER];
        for (int b = 0; b < blocks; b++) {
            const int64_t block = look.blocks[at / BLOCK_TOKENS + b] * memory.stride;
            values[b] = memory.values + block;
            for (int i = 0; i < rows; i += 2 * TILE)
                score_tiles<D>(prompt.queries + i * D, memory.keys + block, prompt.scores + i * TOKENS + b * BLOCK_TOKENS);
        }
        const int ahead = last - at - TOKENS;
        for (int i = 0; i < look.count; i++) {
            soften_row(prompt, i, look.position + i + 1 - at, tokens, factor);
            // Prefetch the next blocks meanwhile, a part of them with each row.
            for (int part = i; part < TOKENS && part < ahead; part += look.count) {
                const int64_t line = look.blocks[(at + TOKENS + part) / BLOCK_TOKENS] * memory.stride + part % BLOCK_TOKENS * D;
                prefetch<_MM_HINT_T1>(memory.keys + line, D * int(sizeof(bf16)));
                prefetch<_MM_HINT_T1>(memory.values + line, D * int(sizeof(bf16)));
            }
        }
        for (int i = 0; i < rows; i += 2 * TILE)
            for (int d = 0; d < D; d += 2 * TILE) {
                const bf16* columns[TOGETHER];
                for (int b = 0; b < blocks; b++) columns[b] = values[b] + 2 * d;
                mix_tiles<D>(prompt.weights + i * TOKENS, columns, blocks, prompt.mixed + i * D + d);
            }
    }
    for (int i = 0; i < look.count; i++) {
        const __m512 share = _mm512_set1_ps(1.f / prompt.sum[i]);
        for (int d = 0; d < D; d += 16)
            store(mixed + tiled(look.row + i, look.head * D + d, model.heads * D),
                  _mm512_mul_ps(load(prompt.mixed + i * D + d), share));
    }
}

// qkv: (rows, heads + 2 kv_heads, D) -> mixed: (rows, heads · D) in tiles
template <int D>
inline void attend(const Model& model, int layer, const Look* looks, int count, const bf16* qkv,
                   int stride_qkv, bf16* mixed, float* scores) {
    Prompt<D> prompt;
#pragma omp for schedule(dynamic, 1)
    for (int n = 0; n < count; n++)
        if (looks[n].prompt)
            look_from_prompt<D>(model, layer, looks[n], qkv, stride_qkv, mixed, prompt);
        else
            look_from_token<D>(model, layer, looks[n], qkv, stride_qkv, mixed, scores);
}

}  // namespace llama
