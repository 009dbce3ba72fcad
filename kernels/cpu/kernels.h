// The kernels of one instruction set, as the face sees them.
#pragma once

#include "face.h"

namespace fusedmdn {

// Where rows lie: order (B) has the sequences, longest first; the row of step t of sequence b is offset[t] + b.
struct Layout {
    const std::int64_t *order, *offset;
};

struct Kernels {
    const char* isa;
    int (*lstm)(const fusedmdn_lstm&, Layout);
    int (*lstm_backward)(const fusedmdn_lstm_backward&, Layout);
    int (*mdn_nll)(const fusedmdn_mdn&);
    int (*mdn_nll_backward)(const fusedmdn_mdn&);
    void* (*pack)(const fusedmdn_network&);  // null: no memory
    void (*release)(void* network, bool bf16);
    int (*generate)(const void* network, bool bf16, const fusedmdn_generate&);
    std::int64_t (*peak)(bool bf16, int threads, std::int64_t rounds, float* sums);
    void (*read)(const float* data, std::int64_t count, int threads, std::int64_t rounds, float* sums);
};

}  // namespace fusedmdn
