// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011).
//
//   key     = (seed low, seed high)
//   counter = (sample index low, sample index high, step, 0)
//   u       = ((word >> 9) + 1/2) 2^-23                      exact in float32, never 0 or 1
//   n1, n2  = sqrt(-2 ln u2) (cos, sin)(2 pi u3)             Box-Muller on words 2 and 3
#pragma once

#include <cmath>
#include <cstdint>

namespace fusedmdn {
namespace {

struct Words {
    std::uint32_t w[4];
};

inline Words philox4x32(Words c, std::uint32_t k0, std::uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c.w[0];
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c.w[2];
        c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<std::uint32_t>(p1),
              static_cast<std::uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<std::uint32_t>(p0)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

inline Words block(std::uint64_t seed, std::uint64_t index, std::uint32_t step) {
    return philox4x32({{static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), step, 0u}},
                      static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
}

inline float uniform(std::uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }

inline void box_muller(float u2, float u3, float& n1, float& n2) {
    const float radius = std::sqrt(-2.0f * std::log(u2)), angle = 6.28318530717958647692f * u3;
    n1 = radius * std::cos(angle);
    n2 = radius * std::sin(angle);
}

}  // namespace
}  // namespace fusedmdn
