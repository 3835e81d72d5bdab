// The kernels' inputs. `native/bindings.py` declares the same structures, and `backends/native.py` fills them.
//
// Names of sizes, in every comment of this folder:
//   rows    tokens of all sequences in a step
//   hidden, ffn, heads, kv_heads, vocab   of the model
//   D       size of a head
// A size that is "filled up" is padded with zeros to the next multiple of what a tile holds.
#pragma once
#include <cstddef>
#include <cstdint>

namespace llama {

using bf16 = uint16_t;

constexpr int TILE = 16;            // rows of a tile; columns too, where they are float32
constexpr int DEPTH = 32;           // bf16 numbers in a row of a tile, which one instruction sums over
constexpr int TILE_SIZE = TILE * DEPTH;
constexpr int PANEL = 64;           // columns of a product that are computed together
constexpr int BLOCK_TOKENS = 32;    // tokens in a block of the cache
constexpr int ROWS_TOGETHER = 32;   // rows of a product at a time: buffers hold a multiple of it

// y = x · Wᵀ. `weights` is [outputs / PANEL][inputs / DEPTH][PANEL / TILE][DEPTH / 2][TILE][2], filled up: the
// operands of one instruction are contiguous, in the order of use. They have so many bits:
//   16   bf16; there are no scales
//    8   integers; `scales` is float32, (outputs,) filled up
//    4   integers; `scales` is bf16, [outputs / PANEL][inputs / DEPTH][PANEL]: one for each output and group of 32 inputs.
//        Four pairs of a column share 32 bits: four times the first of a pair, from the lowest bits on, then the second
struct Matrix {
    const void* weights;
    const void* scales;
    int32_t outputs, inputs, bits;
};

// Scales of groups from a number on; null stays null.
inline const bf16* after(const bf16* scales, int64_t numbers) { return scales ? scales + numbers : nullptr; }

struct Layer {
    const bf16* before;    // (hidden,) of the norm before attention
    Matrix qkv;            // (heads + 2 kv_heads) D outputs
    Matrix o;
    const bf16* between;   // (hidden,) of the norm before the feed-forward part
    Matrix gate_up;        // 16 outputs of the gate, 16 of up, and so on
    Matrix down;
};

struct Model {
    int32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab;
    float epsilon;
    const Layer* layer;
    const bf16* embedding;   // (vocab, hidden filled up)
    const bf16* norm;        // (hidden,)
    Matrix head;
    // [blocks][layers][keys, values][kv_heads][BLOCK_TOKENS · D]: a block of all layers is contiguous, so that a new
    // one does not take a large page for each layer. Within a head
    //   keys are    [BLOCK_TOKENS / 16][D / 2][16 tokens][2]
    //   values are  [BLOCK_TOKENS / 2][D][2 tokens]
    bf16* cache;
};

// Consecutive tokens of one sequence.
struct Span {
    int32_t first, count;   // of the step's rows
    int32_t start;          // position of the first
    int32_t table;          // index of its first block in `Step::tables`
    int32_t prompt;         // 1: prompt tokens, 0: one generated token
};

struct Step {
    int32_t rows, spans, wanted;
    const int32_t* ids;      // (rows,)
    const float* cosines;    // (rows, D / 2)
    const float* sines;
    const Span* span;
    const int32_t* tables;
    const int32_t* want;     // (wanted,) rows
    float* logits;           // (wanted, vocab)
    // The first spans go through all layers. The others go from `layer` up to `layer_end`, and on in a later step: `between`,
    // (their rows, hidden), holds their activations meanwhile.
    int32_t whole, layer, layer_end;
    float* between;

    int rows_at(int n) const { return whole < spans && (n < layer || n >= layer_end) ? span[whole].first : rows; }
    int spans_at(int n) const { return n < layer || n >= layer_end ? whole : spans; }
};

inline int filled(int size, int multiple) { return (size + multiple - 1) / multiple * multiple; }

// Index of a number in activations that will be multiplied. They are stored in tiles, [rows / TILE][columns / DEPTH]
// [TILE][DEPTH]: rows at a distance of a power of two would map to the same cache set.
inline int64_t tiled(int row, int column, int columns) {
    const int64_t tile = int64_t(row / TILE) * (filled(columns, DEPTH) / DEPTH) + column / DEPTH;
    return tile * TILE_SIZE + row % TILE * DEPTH + column % DEPTH;
}

}  // namespace llama
