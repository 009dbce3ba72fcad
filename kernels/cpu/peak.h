// The most that the kernels' instructions can multiply and read: what any matrix product on them is held against.
//
// Every thread runs CHAINS chains, all in registers, independent of one another and enough to hide an instruction's
// latency. Chain k starts at k in every lane, k < CHAINS, and a round does, by lane,
//
//   float   a <- a / 2 + 1, one multiply-add; after n rounds a = 2 + (k - 2) / 2^n
//   bf16    a <- a + 1 * 1 + 1 * 1/2, two; a = k + 1.5 n
//
// No value is ever a denormal, nor infinite, which some processors are slower with. The sum over chains and lanes is
// an output, so that nobody can leave the work out.
//
// Reading: every thread sums its part of the data again and again, in order. Nothing is prefetched by instruction: a
// Zen 4 core then reads L3 at 74 GB/s instead of 85.
#pragma once

#include "panel.h"

namespace fusedmdn {
namespace {

constexpr int CHAINS = 4 * ROWS;  // as many accumulators as a product's tile has

inline V turn(V a, float) { return fma(a, splat(0.5f), splat(1.0f)); }
inline V turn(V a, bf16) { return multiply_pairs(U{} + 0x3f003f80u, 0x3f803f80u, a); }

// Its own function: inlined into a lambda of `parallel`, the accumulators might not stay in registers.
template <class E>
__attribute__((noinline)) float chains(int64_t rounds) {
    V a[CHAINS];
#pragma GCC unroll 24
    for (int k = 0; k < CHAINS; ++k) a[k] = splat(static_cast<float>(k));
    for (int64_t n = 0; n < rounds; ++n)
#pragma GCC unroll 24
        for (int k = 0; k < CHAINS; ++k) a[k] = turn(a[k], E{});
    V sum{};
#pragma GCC unroll 24
    for (int k = 0; k < CHAINS; ++k) sum += a[k];
    float total = 0.0f;
    for (int lane = 0; lane < LANES; ++lane) total += sum[lane];
    return total;
}

// sums (threads): of each thread. Returns the multiply-adds done; 0, sums untouched, where bf16 has no instruction.
inline int64_t peak(bool is_bf16, int threads, int64_t rounds, float* sums) {
#if !defined(__AVX512BF16__)
    if (is_bf16) return 0;
#endif
    parallel(threads, [=](int part, int) { sums[part] = is_bf16 ? chains<bf16>(rounds) : chains<float>(rounds); });
    return int64_t{threads} * rounds * CHAINS * LANES * (is_bf16 ? 2 : 1);
}

// The sum of the `count` floats at data, read `rounds` times.
__attribute__((noinline)) inline float read_again(const float* data, int64_t count, int64_t rounds) {
    constexpr int NV = 8;
    V sum[NV] = {};
    for (int64_t n = 0; n < rounds; ++n) {
        int64_t k = 0;
        for (; k + NV * LANES <= count; k += NV * LANES)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) sum[v] += load(data + k + v * LANES);
        for (; k < count; k += LANES) sum[0] += load_first(data + k, count - k);
    }
    float total = 0.0f;
    for (int v = 0; v < NV; ++v)
        for (int lane = 0; lane < LANES; ++lane) total += sum[v][lane];
    return total;
}

// sums (threads): of each thread's part of the `count` floats.
inline void read_all(const float* data, int64_t count, int threads, int64_t rounds, float* sums) {
    parallel(threads, [=](int part, int parts) {
        const int64_t first = part * count / parts, end = (part + 1) * count / parts;
        sums[part] = read_again(data + first, end - first, rounds);
    });
}

}  // namespace
}  // namespace fusedmdn
