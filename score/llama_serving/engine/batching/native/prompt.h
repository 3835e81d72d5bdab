// Up to 64 tokens of a prompt that one head attends from.
#pragma once
#include "vectors.h"

namespace llama {

constexpr int QUERIES = 64;            // of a prompt, computed together
constexpr int TOGETHER = 4;            // blocks whose scores are computed before their values are mixed
constexpr int TOKENS = TOGETHER * BLOCK_TOKENS;

template <int D>
struct alignas(64) Prompt {
    Operand queries[QUERIES * D];
    float scores[QUERIES * TOKENS];
    Operand weights[QUERIES * TOKENS];
    float mixed[QUERIES * D];
    float highest[QUERIES], sum[QUERIES];
};

}  // namespace llama
