// The C face of the extension: what Python passes for each operator, field by field. python/_cpu.py mirrors these structs.
//
// T steps, B sequences, H hidden units, L layers, M mixture components, P pen logits, D = P + 6M, I = 3 or 5 columns of a
// row. "float | bf16" is float, or the upper 16 bits of one where `bf16` is set. Every array is contiguous in the order
// given, unless it has strides (in elements; the last dimension's is 1). The caller owns every buffer; outputs share no
// memory with inputs. Lengths lie in [0, T]: Python has checked them, as it has every shape.
//
// `packed`: of what is (T, B, .) there are the live rows alone, (sum of lengths, .), step by step; the sequences are sorted,
// longest first, and T is the first one's length: the layout of a PackedSequence.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define FUSEDMDN_API extern "C" __declspec(dllexport)
#else
#define FUSEDMDN_API extern "C" __attribute__((visibility("default")))
#endif

extern "C" {

enum fusedmdn_status { FUSEDMDN_OK = 0, FUSEDMDN_INVALID = 1, FUSEDMDN_NO_MEMORY = 2, FUSEDMDN_INTERRUPTED = 3 };

struct fusedmdn_lstm {
    std::int64_t T, B, H;
    std::int32_t bf16, threads, packed, unused;
    const void* xw;               // (T, B, 4H) float | bf16
    const void* weight_hh;        // (4H, H)    float | bf16
    const void* h0;               // (B, H)     float | bf16
    const float* c0;              // (B, H)
    const float* peephole;        // (3, H), or null
    const std::int64_t* lengths;  // (B), or null
    void* h;                      // (T, B, H)  float | bf16
    void* h_T;                    // (B, H)     float | bf16
    float* c_T;                   // (B, H)
    void* gates;                  // (T, B, 4H) float | bf16, or null: nothing is saved
    float* cells;                 // (T, B, H), or null with gates
};

struct fusedmdn_lstm_backward {
    std::int64_t T, B, H;
    std::int32_t bf16, threads;
    float clip;                      // > 0; infinity: none
    std::int32_t packed;
    const void* grad_h;              // (T, B, H)  float | bf16
    std::int64_t grad_h_strides[2];  // of T and B; if packed, of T unused and of a row
    const float* grad_h_T;        // (B, H)
    const float* grad_c_T;        // (B, H)
    const void* weight_hh;        // (4H, H)    float | bf16
    const float* c0;              // (B, H)
    const float* peephole;        // (3, H), or null
    const std::int64_t* lengths;  // (B), or null
    const void* gates;            // (T, B, 4H) float | bf16
    const float* cells;           // (T, B, H)
    void* dxw;                    // (T, B, 4H) float | bf16
    float* dh0;                   // (B, H)
    float* dc0;                   // (B, H)
    float* dpeephole;             // (B, 3, H), a sum for each sequence; null without peephole
};

struct fusedmdn_mdn {
    std::int64_t T, B, M;
    std::int32_t bf16, categorical, sigmoid_means, threads;
    float clip;                   // > 0; infinity: none (backward)
    std::int32_t unused;
    const void* raw;              // (T, B, D)      float | bf16
    std::int64_t raw_strides[2];  // of T and B
    const float* target;          // (T, B, I)
    const std::int64_t* lengths;  // (B), or null
    const float* grad;            // (T, B)         backward: gradient of nll
    float* nll;                   // (T, B)         forward
    void* draw;                   // (T, B, D)      float | bf16, backward
    float* dtarget;               // (T, B, I), or null (backward)
};

struct fusedmdn_network {
    std::int64_t L, H, M;
    std::int32_t categorical, sigmoid_means, skip, peephole;
    std::int32_t bf16, threads;
    const void* const* weights;   // in the operator's order, float | bf16, each contiguous
};

struct fusedmdn_generate {
    std::int64_t B, steps, prime_steps;
    std::uint64_t seed, first_index;
    std::int32_t threads, unused;
    const void* h;                      // (L, B, H) float | bf16
    const float* c;                     // (L, B, H)
    const float* row;                   // (B, I)
    const std::int64_t* drawn;          // (B), each + steps <= 2^32
    const std::uint8_t* done;           // (B)
    const float* bias;                  // (B)
    const float* temperature;           // (B)
    const float* prime;                 // (B, prime_steps, I), or null
    const std::int64_t* prime_lengths;  // (B), or null: all prime_steps
    float* points;                      // (steps, B, I), zero on entry
    std::int64_t* lengths;              // (B)
    void* h_out;                        // as their inputs
    float* c_out;
    float* row_out;
    std::int64_t* drawn_out;
    std::uint8_t* done_out;
    const std::int32_t* stop;           // not zero: give up soon, with FUSEDMDN_INTERRUPTED
};
}
