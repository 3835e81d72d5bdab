// Rounds groups of 32 numbers to 16 bits, one number of each being infinite or NaN. Exits with 0 if each scale shows it and each sum is 0.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "gemm_integers.h"

int main() {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float odd : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()})
        for (int at = 0; at < 32; at++) {
            alignas(64) float from[32];
            alignas(64) int16_t to[32];
            for (int i = 0; i < 32; i++) from[i] = i == at ? odd : float(i);
            float scale = 0;
            int32_t sum = 1;
            llama::round_group(from, to, scale, sum);
            if (std::isfinite(scale) || sum != 0) return 1;
        }
    return 0;
}
