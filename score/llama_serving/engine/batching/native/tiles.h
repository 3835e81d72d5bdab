// The eight tile registers (AMX), each of 16 rows of 64 bytes.
//
// The compiler's own intrinsics are not used: GCC's do not declare that they read memory, so it may omit writes that only
// a tile reads.
#pragma once
#include "model.h"

#if defined(LLAMA_TILES_IN_SOFTWARE)  // for sanitizers, which cannot check the instructions' reads, and for tests on other CPUs
#include <immintrin.h>

#include <cstring>
#elif defined(LLAMA_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace llama::tile {

constexpr long BYTES = 64;   // in a row

#ifndef LLAMA_TILES

inline int allow() { return 0; }
inline void begin() {}
inline void end() {}

#elif !defined(LLAMA_TILES_IN_SOFTWARE)

struct alignas(64) Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES};
    uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
};

// Request permission to use the tiles; returns 0 if it is granted.
inline int allow() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    return int(syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA));
}

// A thread may use its tiles between these two calls.
inline void begin() {
    static constexpr Config config;
    asm volatile("ldtilecfg %0" ::"m"(config));
}
inline void end() { asm volatile("tilerelease"); }

template <int T>
inline void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

// 16 rows at a distance of `stride` bytes
template <int T>
inline void load(const void* from, long stride = BYTES) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
}
template <int T>
inline void store(void* to, long stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
}

// sum (16 × 16 float32) += a (16 rows × 32 bf16) · b (16 pairs × 16 columns × 2 bf16)
template <int SUM, int A, int B>
inline void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

#else

struct alignas(64) Tile {
    unsigned char at[TILE][BYTES];
};
inline thread_local Tile tiles[8];

inline int allow() { return 0; }
inline void begin() {}
inline void end() {}

template <int T>
inline void zero() {
    std::memset(&tiles[T], 0, sizeof(Tile));
}
template <int T>
inline void load(const void* from, long stride = BYTES) {
    for (int row = 0; row < TILE; row++) std::memcpy(tiles[T].at[row], (const char*)from + row * stride, BYTES);
}
template <int T>
inline void store(void* to, long stride) {
    for (int row = 0; row < TILE; row++) std::memcpy((char*)to + row * stride, tiles[T].at[row], BYTES);
}
template <int SUM, int A, int B>
inline void multiply() {
    for (int row = 0; row < TILE; row++) {
        __m512 sum = _mm512_load_ps(tiles[SUM].at[row]);
        for (int pair = 0; pair < DEPTH / 2; pair++) {
            int32_t a;
            std::memcpy(&a, tiles[A].at[row] + 4 * pair, sizeof a);
            const auto b = (__m512bh)_mm512_load_si512(tiles[B].at[pair]);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(a), b);
        }
        _mm512_store_ps(tiles[SUM].at[row], sum);
    }
}

#endif

}  // namespace llama::tile
