// The face of the extension: chooses the instruction set, and hands every call to its kernels.
#include "face.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace fusedmdn {

#if defined(FUSEDMDN_X86)
extern const Kernels kernels_avx512bf16, kernels_avx512, kernels_avx2;
#endif
extern const Kernels kernels_baseline;

namespace {

// This processor's kernels, best first.
std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> all;
#if defined(FUSEDMDN_X86)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) all.push_back(&kernels_avx512bf16);
    if (avx512) all.push_back(&kernels_avx512);
    if (avx2) all.push_back(&kernels_avx2);
#endif
    all.push_back(&kernels_baseline);
    return all;
}

const std::vector<const Kernels*>& here() {
    static const std::vector<const Kernels*> all = supported();
    return all;
}

std::atomic<const Kernels*>& current() {
    static std::atomic<const Kernels*> kernels{here().front()};
    return kernels;
}

struct Packed {
    const Kernels* kernels;
    bool bf16;
    void* network;
};

// kernel(a, layout) for an `a` that has T, B, lengths and packed.
template <class A>
int with_layout(int (*kernel)(const A&, Layout), const A& a) {
    try {
        std::vector<std::int64_t> order(a.B), offset(a.T);
        std::iota(order.begin(), order.end(), 0);
        const auto longer = [&](auto x, auto y) { return a.lengths[x] > a.lengths[y]; };
        if (a.lengths) std::stable_sort(order.begin(), order.end(), longer);
        std::int64_t next = 0, alive = a.B;
        for (std::int64_t t = 0; t < a.T; ++t) {
            while (a.packed && a.lengths[alive - 1] <= t) --alive;
            offset[t] = next;
            next += alive;
        }
        return kernel(a, {order.data(), offset.data()});
    } catch (const std::bad_alloc&) {
        return FUSEDMDN_NO_MEMORY;
    }
}

// Eight chains, each a bijection of its words: any single change shows, and sign bits do not cancel (the rotation).
std::uint64_t checksum(const unsigned char* data, std::size_t bytes, std::uint64_t seed) {
    constexpr std::uint64_t prime = 0x9E3779B185EBCA87u;
    std::uint64_t chain[8], tail[8] = {};
    for (int k = 0; k < 8; ++k) chain[k] = seed + prime * (k + 1);
    const auto mix = [&](const unsigned char* block) {
        for (int k = 0; k < 8; ++k) {
            std::uint64_t word;
            std::memcpy(&word, block + 8 * k, 8);
            chain[k] = (chain[k] ^ word) * prime;
            chain[k] = chain[k] << 31 | chain[k] >> 33;
        }
    };
    const std::size_t whole = bytes / 64 * 64;
    for (std::size_t at = 0; at < whole; at += 64) mix(data + at);
    if (bytes > whole) std::memcpy(tail, data + whole, bytes - whole);
    mix(reinterpret_cast<const unsigned char*>(tail));
    std::uint64_t sum = bytes * prime;
    for (int k = 0; k < 8; ++k) {
        sum = (sum ^ chain[k]) * prime;
        sum ^= sum >> 29;
    }
    return sum;
}

}  // namespace
}  // namespace fusedmdn

using namespace fusedmdn;

// The k-th instruction set that this processor and this build have, best first; null past the last.
FUSEDMDN_API const char* fusedmdn_isa(std::int32_t k) {
    return k >= 0 && k < static_cast<std::int32_t>(here().size()) ? here()[k]->isa : nullptr;
}

FUSEDMDN_API const char* fusedmdn_isa_in_use() { return current().load()->isa; }

// FUSEDMDN_INVALID if this processor or build has no such instruction set.
FUSEDMDN_API std::int32_t fusedmdn_use_isa(const char* name) {
    for (const Kernels* kernels : here())
        if (!std::strcmp(kernels->isa, name)) {
            current().store(kernels);
            return FUSEDMDN_OK;
        }
    return FUSEDMDN_INVALID;
}

// sizeof of the k-th struct of face.h, so that a stale binding is found out before it passes one.
FUSEDMDN_API std::int64_t fusedmdn_sizeof(std::int32_t k) {
    constexpr std::int64_t sizes[] = {sizeof(fusedmdn_lstm), sizeof(fusedmdn_lstm_backward), sizeof(fusedmdn_mdn),
                                      sizeof(fusedmdn_network), sizeof(fusedmdn_generate)};
    return k >= 0 && k < 5 ? sizes[k] : -1;
}

FUSEDMDN_API std::int32_t fusedmdn_run_lstm(const fusedmdn_lstm* a) {
    return with_layout(current().load()->lstm, *a);
}

FUSEDMDN_API std::int32_t fusedmdn_run_lstm_backward(const fusedmdn_lstm_backward* a) {
    return with_layout(current().load()->lstm_backward, *a);
}

FUSEDMDN_API std::int32_t fusedmdn_run_mdn_nll(const fusedmdn_mdn* a) { return current().load()->mdn_nll(*a); }

FUSEDMDN_API std::int32_t fusedmdn_run_mdn_nll_backward(const fusedmdn_mdn* a) {
    return current().load()->mdn_nll_backward(*a);
}

// A packed copy of the weights for `fusedmdn_run_generate`, of the instruction set now in use; null: no memory.
FUSEDMDN_API void* fusedmdn_pack(const fusedmdn_network* n) {
    auto* packed = new (std::nothrow) Packed{current().load(), n->bf16 != 0, nullptr};
    if (!packed) return nullptr;
    packed->network = packed->kernels->pack(*n);
    if (packed->network) return packed;
    delete packed;
    return nullptr;
}

FUSEDMDN_API void fusedmdn_release(void* handle) {
    auto* packed = static_cast<Packed*>(handle);
    packed->kernels->release(packed->network, packed->bf16);
    delete packed;
}

FUSEDMDN_API std::int32_t fusedmdn_run_generate(const void* handle, const fusedmdn_generate* a) {
    const auto* packed = static_cast<const Packed*>(handle);
    return packed->kernels->generate(packed->network, packed->bf16, *a);
}

// Multiply-adds in registers, by so many threads (peak.h): how many were done; sums (threads) is what came out of each.
// 0 where the instruction set in use has none of bf16.
FUSEDMDN_API std::int64_t fusedmdn_peak(std::int32_t bf16, std::int32_t threads, std::int64_t rounds, float* sums) {
    return current().load()->peak(bf16 != 0, threads, rounds, sums);
}

// The `count` floats at data read again and again, by so many threads (peak.h); sums (threads): of each one's part.
FUSEDMDN_API void fusedmdn_read(const float* data, std::int64_t count, std::int32_t threads, std::int64_t rounds,
                                float* sums) {
    current().load()->read(data, count, threads, rounds, sums);
}

// Memory as threads.h has it, for whoever keeps outputs to use them again.
FUSEDMDN_API void* fusedmdn_allocate(std::int64_t bytes) { return allocate(static_cast<std::size_t>(bytes)); }

FUSEDMDN_API void fusedmdn_free(void* memory) { release(memory); }

// A checksum of the contents of `count` buffers, whatever the number of threads.
FUSEDMDN_API std::uint64_t fusedmdn_checksum(const void* const* data, const std::int64_t* bytes, std::int32_t count,
                                             std::int32_t threads) {
    constexpr std::int64_t piece = std::int64_t{1} << 18;
    std::vector<std::int64_t> first(count + 1);  // of each buffer's pieces
    for (int k = 0; k < count; ++k) first[k + 1] = first[k] + (bytes[k] + piece - 1) / piece;
    std::vector<std::uint64_t> sums(first[count]);
    parallel(threads, [&](int part, int parts) {
        for (int k = 0; k < count; ++k)
            for (std::int64_t p = first[k]; p < first[k + 1]; ++p) {
                if (p % parts != part) continue;
                const std::int64_t at = (p - first[k]) * piece;
                const auto* from = static_cast<const unsigned char*>(data[k]) + at;
                sums[p] = checksum(from, static_cast<std::size_t>(std::min(piece, bytes[k] - at)), p);
            }
    });
    return checksum(reinterpret_cast<const unsigned char*>(sums.data()), sums.size() * 8, count);
}
