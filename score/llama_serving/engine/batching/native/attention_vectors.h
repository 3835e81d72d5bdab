// Scores and mixed values of a prompt's queries, with vectors.
#pragma once
#include "gemm_vectors.h"
#include "prompt.h"

namespace llama {

constexpr int QUERY_ROWS = 1;   // queries of a prompt are filled up to a multiple of it

// A block's keys: [BLOCK_TOKENS / 16][D / 2][16 tokens][2]
template <int D>
struct KeyColumns {
    const bf16* first;

    static constexpr bool GROUPED = false;
    const bf16* at(int depth) const { return first + depth * TILE_SIZE; }
    template <int P>
    Part part(const bf16* at, int pair, int column) const {
        return llama::part<P>(at + pair * 2 * TILE + column * TILE * D);
    }
    void ahead(int, int, int) const {}
    KeyColumns from(int column) const { return {first + column * TILE * D}; }
    KeyColumns of_group(int, int) const { return *this; }
};

// The values of some blocks, each [BLOCK_TOKENS / 2][D][2 tokens]: a block is what is summed over in one depth
template <int D>
struct ValueColumns {
    const bf16* const* blocks;
    int first;

    static constexpr bool GROUPED = false;
    const bf16* at(int block) const { return blocks[block] + first; }
    template <int P>
    Part part(const bf16* at, int pair, int column) const {
        return llama::part<P>(at + pair * 2 * D + column * 2 * TILE);
    }
    void ahead(int, int, int) const {}
    ValueColumns from(int column) const { return {blocks, first + column * 2 * TILE}; }
    ValueColumns of_group(int, int) const { return *this; }
};
static_assert(BLOCK_TOKENS == DEPTH);

inline void pointers(const Operand* first, int rows, int distance, const Operand** to) {
    for (int i = 0; i < rows; i++) to[i] = first + i * distance;
}

// queries · keys of the b-th block
template <int D>
inline void score(Prompt<D>& prompt, int rows, const bf16* keys, int b) {
    const Operand* queries[QUERIES];
    pointers(prompt.queries, rows, D, queries);
    float* scores = prompt.scores + b * BLOCK_TOKENS;
    for (int i = 0; i < rows; i++) std::memset(scores + i * TOKENS, 0, BLOCK_TOKENS * sizeof(float));
    accumulate(queries, rows, DEPTH, KeyColumns<D>{keys}, BLOCK_TOKENS, D / DEPTH, scores, TOKENS);
}

// weights · values of the blocks, added
template <int D>
inline void mix(Prompt<D>& prompt, int rows, const bf16* const* values, int blocks) {
    const Operand* weights[QUERIES];
    pointers(prompt.weights, rows, TOKENS, weights);
    accumulate(weights, rows, DEPTH, ValueColumns<D>{values, 0}, D, blocks, prompt.mixed, D);
}

}  // namespace llama
