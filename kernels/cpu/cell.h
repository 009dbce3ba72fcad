// One step of the LSTM, pointwise.
#pragma once

#include "vec.h"

namespace fusedmdn {
namespace {

// One step of the LSTM for LANES units of one row, from the gates' pre-activations z in order i, f, g, o (G 7-11):
//   i = sigmoid(z_i + p_i c')    f = sigmoid(z_f + p_f c')    g = tanh(z_g)       c' the previous cell state
//   c = f c' + i g               o = sigmoid(z_o + p_o c)     h = o tanh(c)
struct Cell {
    V i, f, g, o, c, h;
};

inline Cell cell(const V (&z)[4], V previous, const float* peephole, std::int64_t H, std::int64_t units) {
    Cell s;
    V zi = z[0], zf = z[1], zo = z[3];
    if (peephole) {
        zi = fma(load_first(peephole, units), previous, zi);
        zf = fma(load_first(peephole + H, units), previous, zf);
    }
    s.i = sigmoid(zi);
    s.f = sigmoid(zf);
    s.g = tanh(z[2]);
    s.c = fma(s.f, previous, s.i * s.g);
    if (peephole) zo = fma(load_first(peephole + 2 * H, units), s.c, zo);
    s.o = sigmoid(zo);
    s.h = s.o * tanh(s.c);
    return s;
}

}  // namespace
}  // namespace fusedmdn
