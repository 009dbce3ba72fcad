// The kernels of one instruction set, as the face sees them.
#pragma once

#include "face.h"

namespace fusedmdn {

struct Kernels {
    const char* isa;
    // order (B): sequences, longest first
    int (*lstm)(const fusedmdn_lstm&, const std::int64_t* order);
    int (*lstm_backward)(const fusedmdn_lstm_backward&, const std::int64_t* order);
    int (*mdn_nll)(const fusedmdn_mdn&);
    int (*mdn_nll_backward)(const fusedmdn_mdn&);
    void* (*pack)(const fusedmdn_network&);  // null: no memory
    void (*release)(void* network, bool bf16);
    int (*generate)(const void* network, bool bf16, const fusedmdn_generate&);
};

}  // namespace fusedmdn
