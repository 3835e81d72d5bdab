// Steps of the kernels on a random model, the same on every machine: prints the logits. For architectures without a Python.
//
//   kernel_steps HIDDEN FFN HEADS KV_HEADS HEAD_DIM VOCAB BITS
#include "step.cpp"

#include <cstdio>
#include <cstdlib>
#include <memory>

using namespace llama;

namespace {

constexpr int LAYERS = 2, BLOCKS_EACH = 7;

struct Random {
    uint64_t state = 1;
    float operator()() {   // -1 to 1
        state = state * 6364136223846793005u + 1442695040888963407u;
        return float(int32_t(state >> 32)) / 2147483648.f;
    }
} random_number;

std::vector<std::unique_ptr<std::byte[]>> kept;

template <class T>
T* room(int64_t count) {
    kept.emplace_back(new std::byte[count * sizeof(T) + 64]());
    return (T*)((uintptr_t(kept.back().get()) + 63) / 64 * 64);
}

bf16* numbers(int64_t count, float size, float least = 0) {
    bf16* to = room<bf16>(count);
    for (int64_t i = 0; i < count; i++) {
        const float value = least + size * random_number();
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        to[i] = bf16(bits >> 16);
    }
    return to;
}

int8_t* integers(int64_t count, float most) {
    int8_t* to = room<int8_t>(count);
    for (int64_t i = 0; i < count; i++) to[i] = int8_t(std::floor(most * random_number()));
    return to;
}

Matrix matrix(int outputs, int inputs, int bits) {
    const int64_t count = int64_t(outputs) * inputs;
    const int64_t size = int64_t(filled(outputs, PANEL)) * filled(inputs, DEPTH);
    const float one = 1 / std::sqrt(float(inputs));
    std::byte* weights = room<std::byte>(size * bits / 8);
    const void* scales = nullptr;
    if (bits == 4) {
        bf16* own = room<bf16>(size / DEPTH);
        llama_pack_int4(numbers(count, 1.7f * one), outputs, inputs, weights, own);
        scales = own;
    } else if (bits == 8) {
        llama_pack((std::byte*)integers(count, 127), outputs, inputs, 8, weights);
        float* own = room<float>(filled(outputs, PANEL));
        for (int i = 0; i < outputs; i++) own[i] = (1.5f + random_number()) / 127 * one;
        scales = own;
    } else {
        llama_pack((std::byte*)numbers(count, 1.7f * one), outputs, inputs, 16, weights);
    }
    return {weights, scales, outputs, inputs, bits};
}

Model model_of(char** sizes, int bits) {
    int of[6];
    for (int i = 0; i < 6; i++) of[i] = std::atoi(sizes[i]);
    const auto [hidden, ffn, heads, kv_heads, head_dim, vocab] = of;
    Layer* layers = room<Layer>(LAYERS);
    for (int n = 0; n < LAYERS; n++) {
        const bf16 *before = numbers(hidden, 0.5f, 1), *between = numbers(hidden, 0.5f, 1);
        const int qkv = (heads + 2 * kv_heads) * head_dim;
        layers[n] = {before, matrix(qkv, hidden, bits), matrix(hidden, heads * head_dim, bits), between,
                     matrix(2 * filled(ffn, DEPTH), hidden, bits), matrix(hidden, ffn, bits)};
    }
    return {LAYERS, hidden, ffn, heads, kv_heads, head_dim, vocab, 1e-5f, layers,
            numbers(int64_t(vocab) * filled(hidden, DEPTH), 1), numbers(hidden, 0.5f, 1), matrix(vocab, hidden, bits),
            room<bf16>(int64_t(40) * BLOCKS_EACH * LAYERS * 2 * kv_heads * BLOCK_TOKENS * head_dim)};
}

struct Part {   // of a text, in a sequence's blocks
    int text, sequence, start, count, prompt;
};

void print(const Model& model, const std::vector<Part>& parts) {
    std::vector<Span> spans;
    std::vector<int32_t> ids, tables, want;
    std::vector<float> cosines, sines;
    for (int n = 0; n < int(parts.size()); n++) {
        const auto [text, sequence, start, count, prompt] = parts[n];
        spans.push_back({int32_t(ids.size()), count, start, int32_t(tables.size()), prompt});
        for (int position = start; position < start + count; position++) {
            ids.push_back((text * 7919 + position * position * 31 + position) % model.vocab);
            for (int i = 0; i < model.head_dim / 2; i++) {
                const double angle = position * std::pow(1e4, -2. * i / model.head_dim);
                cosines.push_back(float(std::cos(angle)));
                sines.push_back(float(std::sin(angle)));
            }
        }
        for (int block = 0; block < BLOCKS_EACH; block++) tables.push_back(sequence * BLOCKS_EACH + block);
        want.push_back(int32_t(ids.size()) - 1);
    }
    std::vector<float> logits(want.size() * model.vocab);
    const Step step{int32_t(ids.size()), int32_t(spans.size()), int32_t(want.size()), ids.data(), cosines.data(),
                    sines.data(), spans.data(), tables.data(), want.data(), logits.data()};
    if (llama_allow() || llama_step(&model, &step, room<std::byte>(llama_room(&model, &step)))) std::exit(1);
    for (float value : logits) std::printf("%.9g\n", double(value));
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 8) return 2;
    const Model model = model_of(arguments + 1, std::atoi(arguments[7]));
    print(model, {{0, 0, 0, 31, 1}, {1, 1, 0, 1, 1}, {2, 2, 0, 3, 1}});
    print(model, {{0, 0, 31, 1, 0}, {1, 1, 1, 1, 0}, {2, 2, 3, 130, 1}});
    print(model, {{0, 0, 32, 1, 0}, {1, 1, 2, 1, 0}, {2, 2, 133, 65, 1}});
    print(model, {{0, 0, 33, 1, 0}, {2, 2, 198, 1, 0}, {3, 3, 0, 1, 0}, {4, 4, 0, 1, 0}, {5, 5, 0, 1, 0}, {6, 6, 0, 1, 0},
                  {7, 7, 0, 1, 0}});
    // The same text at once and alone: the last rows have the bits of those above.
    print(model, {{2, 8, 0, 198, 1}});
    print(model, {{2, 8, 198, 1, 0}});
}
