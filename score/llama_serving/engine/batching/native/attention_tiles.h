// Scores and mixed values of a prompt's queries, with tiles: 32 queries at a time.
#pragma once
#include "prompt.h"
#include "tiles.h"

namespace llama {

constexpr int QUERY_ROWS = 2 * TILE;   // queries of a prompt are filled up to a multiple of it

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

// queries · keys of the b-th block
template <int D>
inline void score(Prompt<D>& prompt, int rows, const bf16* keys, int b) {
    for (int i = 0; i < rows; i += 2 * TILE)
        score_tiles<D>(prompt.queries + i * D, keys, prompt.scores + i * TOKENS + b * BLOCK_TOKENS);
}

// weights · values of the blocks, added
template <int D>
inline void mix(Prompt<D>& prompt, int rows, const bf16* const* values, int blocks) {
    for (int i = 0; i < rows; i += 2 * TILE)
        for (int d = 0; d < D; d += 2 * TILE) {
            const bf16* columns[TOGETHER];
            for (int b = 0; b < blocks; b++) columns[b] = values[b] + 2 * d;
            mix_tiles<D>(prompt.weights + i * TOKENS, columns, blocks, prompt.mixed + i * D + d);
        }
}

}  // namespace llama
