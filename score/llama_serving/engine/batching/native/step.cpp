// One step of the model: rows of token ids in, logits out. C symbols, for ctypes.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "norm.h"
#include "pack.h"
#include "tiles.h"

namespace llama {
namespace {

// Whether any matrix has weights of less than 16 bits.
bool narrow(const Model& model) {
    bool found = model.head.bits < 16;
    for (int n = 0; n < model.layers; n++)
        for (const Matrix* w : {&model.layer[n].qkv, &model.layer[n].o, &model.layer[n].gate_up, &model.layer[n].down})
            found |= w->bits < 16;
    return found;
}

// Buffers of a step, in one allocation.
struct Room {
    float* x;        // (rows, hidden): activations between layers
    Operand* h;         // (rows, hidden) in tiles: normed
    Operand* qkv;       // (rows, heads + 2 kv_heads, D)
    Operand* mixed;     // (rows, heads · D) in tiles
    Operand* gated;     // (rows, ffn) in tiles
    float* scores;   // (threads, tokens of the longest · heads of a group)
    Scratch scratch;   // `panel` is of the first thread
    int64_t scores_each, panel_each, bytes;

    Room(const Model& model, int rows, int tokens, std::byte* at) {
        const int D = model.head_dim, threads = omp_get_max_threads(), many = filled(rows, ROWS_TOGETHER);
        const int widest = std::max({model.hidden, model.ffn, model.heads * D});
        scores_each = int64_t(filled(tokens, BLOCK_TOKENS)) * (model.heads / model.kv_heads);
        panel_each = narrow(model) ? int64_t(filled(widest, DEPTH)) * PANEL : 0;
        std::byte* const begin = at;
        // (A product writes whole panels, which may be wider than the part that is read.)
        x = taken<float>(at, many * int64_t(filled(model.hidden, PANEL)));
        h = taken<Operand>(at, many * int64_t(filled(model.hidden, DEPTH)));
        qkv = taken<Operand>(at, many * int64_t(filled((model.heads + 2 * model.kv_heads) * D, PANEL)));
        mixed = taken<Operand>(at, many * int64_t(model.heads * D));
        gated = taken<Operand>(at, many * int64_t(filled(model.ffn, DEPTH)));
        scores = taken<float>(at, threads * scores_each);
        scratch.panel = taken<bf16>(at, threads * panel_each);
#ifdef LLAMA_INTEGERS
        const int64_t numbers = narrow(model) ? many * int64_t(filled(widest, DEPTH)) : 0;
        scratch.rounded = {taken<int16_t>(at, numbers), taken<float>(at, numbers / DEPTH), taken<int32_t>(at, numbers / DEPTH)};
#endif
        bytes = at - begin;
    }

    template <class T>
    static T* taken(std::byte*& at, int64_t count) {
        auto* own = (T*)at;
        at += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return own;
    }
};

// Attention's work of the first spans in a layer of this step, the longest first, since the last to finish determines the time.
std::vector<Look> looks_of(const Model& model, const Step& step, int spans) {
    std::vector<Look> looks;
    for (int n = 0; n < spans; n++) {
        const Span& span = step.span[n];
        const int32_t* blocks = step.tables + span.table;
        const int together = span.prompt ? QUERIES : 1, heads = span.prompt ? model.heads : model.kv_heads;
        for (int i = 0; i < span.count; i += together)
            for (int head = 0; head < heads; head++)
                looks.push_back({span.first + i, std::min(together, span.count - i), span.start + i, head,
                                 span.prompt != 0, blocks});
    }
    std::stable_sort(looks.begin(), looks.end(), [](const Look& a, const Look& b) { return a.work() > b.work(); });
    return looks;
}

// Activations before the first layer, or those that an earlier step has left.
void begin(const Model& model, const Step& step, float* x, int stride_x) {
    const int new_rows = step.layer ? step.rows_at(0) : step.rows;
#pragma omp for schedule(static)
    for (int row = 0; row < step.rows; row++) {
        if (row >= new_rows) {
            std::memcpy(x + int64_t(row) * stride_x, step.between + int64_t(row - new_rows) * model.hidden,
                        model.hidden * sizeof(float));
            continue;
        }
        const bf16* from = model.embedding + int64_t(step.ids[row]) * filled(model.hidden, DEPTH);
        for (int i = 0; i < model.hidden; i += 16) store(x + int64_t(row) * stride_x + i, load(from + i));
    }
}

// Leaves the activations of the rows that go on in a later step.
void leave(const Model& model, const Step& step, const float* x, int stride_x) {
    const int whole = step.rows_at(model.layers);
#pragma omp for schedule(static)
    for (int row = whole; row < step.rows; row++)
        std::memcpy(step.between + int64_t(row - whole) * model.hidden, x + int64_t(row) * stride_x,
                    model.hidden * sizeof(float));
}

template <int D>
void run(const Model& model, const Step& step, const Room& room) {
    const std::vector<Look> all = looks_of(model, step, step.spans), first = looks_of(model, step, step.whole);
    const int hidden = model.hidden;
    const int stride_x = filled(hidden, PANEL);
    const int stride_qkv = filled((model.heads + 2 * model.kv_heads) * D, PANEL);
#pragma omp parallel
    {
        tile::begin();
        float* scores = room.scores + omp_get_thread_num() * room.scores_each;
        Scratch scratch = room.scratch;
        scratch.panel += omp_get_thread_num() * room.panel_each;
        begin(model, step, room.x, stride_x);
        for (int n = 0; n < model.layers; n++) {
            const Layer& layer = model.layer[n];
            const int rows = step.rows_at(n);
            const std::vector<Look>& looks = rows < step.rows ? first : all;
            if (!rows) continue;
            norm(room.x, stride_x, nullptr, layer.before, model.epsilon, hidden, rows, room.h);
            product(room.h, rows, layer.qkv, scratch, Write{room.qkv, stride_qkv});
            remember(model, n, step, room.qkv, stride_qkv);
            attend<D>(model, n, looks.data(), int(looks.size()), room.qkv, stride_qkv, room.mixed,
                      scores);
            product(room.mixed, rows, layer.o, scratch, Add{room.x, stride_x});
            norm(room.x, stride_x, nullptr, layer.between, model.epsilon, hidden, rows, room.h);
            product(room.h, rows, layer.gate_up, scratch, Gate{room.gated, model.ffn});
            product(room.gated, rows, layer.down, scratch, Add{room.x, stride_x});
        }
        if (step.layer_end < model.layers) leave(model, step, room.x, stride_x);
        norm(room.x, stride_x, step.want, model.norm, model.epsilon, hidden, step.wanted, room.h);
        product(room.h, step.wanted, model.head, scratch, Logits{step.logits, model.vocab});
        tile::end();
    }
}

int longest(const Step& step) {
    int tokens = 1;
    for (int n = 0; n < step.spans; n++) tokens = std::max(tokens, step.span[n].start + step.span[n].count);
    return tokens;
}

}  // namespace
}  // namespace llama

extern "C" {

// Returns 0 if this process may use the tiles.
int llama_allow() { return llama::tile::allow(); }

// Bytes of scratch memory that a step needs.
int64_t llama_room(const llama::Model* model, const llama::Step* step) {
    return llama::Room(*model, step->rows, llama::longest(*step), nullptr).bytes;
}

// Runs one step. room: `llama_room` bytes, aligned to 64. Returns 0, or 1 if the head size is not one that this was
// compiled for.
int llama_step(const llama::Model* model, const llama::Step* step, std::byte* room) {
    const llama::Room buffers(*model, step->rows, llama::longest(*step), room);
    switch (model->head_dim) {
        case 64: llama::run<64>(*model, *step, buffers); return 0;
        case 128: llama::run<128>(*model, *step, buffers); return 0;
    }
    return 1;
}

// Packs a matrix of bf16 or int8, (outputs, inputs), into the order of `Matrix`.
void llama_pack(const std::byte* from, int64_t outputs, int64_t inputs, int bits, std::byte* to) {
    llama::pack(from, outputs, inputs, bits / 8, to);
}

// Quantizes a matrix of bf16, (outputs, inputs), to 4 bits, and packs it and its scales into the order of `Matrix`.
void llama_pack_int4(const uint16_t* from, int64_t outputs, int64_t inputs, std::byte* to, uint16_t* scales) {
    llama::pack_int4(from, outputs, inputs, to, scales);
}

// Packs a matrix of integers from -8 to 7, (outputs, inputs), in 4 bits each, into the order of `Matrix`.
void llama_pack_integers(const int8_t* from, int64_t outputs, int64_t inputs, std::byte* to) {
    llama::pack_integers(from, outputs, inputs, to);
}

}
