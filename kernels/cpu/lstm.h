// The LSTM recurrence over hoisted input projections, forward and backward (G 7-11), for one layer.
//
//   z_t = xw_t + h_{t-1} W^T        then the cell (cell.h)
//
// Rows (sequences) are independent of each other, so every thread takes its own through all of time without a barrier:
// rows part, part + parts, … in order of length, so that those still alive at step t are always its first ones and no work
// is done on padding. The previous h is read where it was written, in the output. Layout (kernels.h) says where rows lie.
#pragma once

#include "cell.h"
#include "kernels.h"
#include "panel.h"

namespace fusedmdn {
namespace {

// One thread's share of the rows, longest first.
struct Rows {
    Layout layout;
    const int64_t* lengths;  // null: all T
    int64_t T;
    int part, parts;
    int64_t count;

    Rows(Layout layout, const int64_t* lengths, int64_t T, int64_t B, int part, int parts)
        : layout(layout), lengths(lengths), T(T), part(part), parts(parts), count((B - part + parts - 1) / parts) {}
    int64_t operator[](int64_t k) const { return layout.order[part + k * parts]; }
    int64_t at(int64_t t, int64_t b) const { return layout.offset[t] + b; }
    int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
    int64_t longest() const { return count ? length((*this)[0]) : 0; }
};

template <class E>
inline void zero_from(E* rows, int64_t length, int64_t T, int64_t B, int64_t width) {  // rows[t B + 0], t >= length
    for (int64_t t = length; t < T; ++t) std::memset(rows + t * B * width, 0, width * sizeof(E));
}

template <class E>
inline void lstm_rows(const fusedmdn_lstm& a, const Rows& rows, const E* packed) {
    const int64_t T = a.T, B = a.B, H = a.H;
    const auto *xw = static_cast<const E*>(a.xw), *h0 = static_cast<const E*>(a.h0);
    auto *h = static_cast<E*>(a.h), *h_T = static_cast<E*>(a.h_T), *gates = static_cast<E*>(a.gates);
    const UnitPanels panels{H};
    const int64_t panel_size = padded(H, E{}) * 4 * LANES;

    for (int64_t k = 0; k < rows.count; ++k) {
        const int64_t b = rows[k];
        std::memcpy(a.c_T + b * H, a.c0 + b * H, H * sizeof(float));  // the running cell state
        if (a.packed) continue;
        zero_from(h + b * H, rows.length(b), T, B, H);
        if (!gates) continue;
        zero_from(gates + b * 4 * H, rows.length(b), T, B, 4 * H);
        zero_from(a.cells + b * H, rows.length(b), T, B, H);
    }
    int64_t alive = rows.count;
    for (int64_t t = 0; t < rows.longest(); ++t) {
        while (rows.length(rows[alive - 1]) <= t) --alive;
        const E* previous = t ? h + rows.at(t - 1, 0) * H : h0;
        for (int64_t p = 0; p < panels.count(); ++p) {
            const int64_t u = p * LANES, units = panels.width(p);
            in_tiles(alive, [&](auto tile, int64_t first) {
                constexpr int R = decltype(tile)::value;
                int64_t b[R];
                const E* x[R];
                V acc[R][4];
                for (int r = 0; r < R; ++r) {
                    b[r] = rows[first + r];
                    x[r] = previous + b[r] * H;
                    for (int gate = 0; gate < 4; ++gate)
                        acc[r][gate] = load_first(xw + (rows.at(t, b[r]) * 4 + gate) * H + u, units);
                }
                const E* w = packed + p * panel_size;
                product(w, H, x, acc);
                for (int r = 0; r < R; ++r) {
                    const int64_t at = rows.at(t, b[r]) * H + u;
                    float* c = a.c_T + b[r] * H + u;
                    const Cell s = cell(acc[r], load_first(c, units), a.peephole ? a.peephole + u : nullptr, H, units);
                    store_first(c, s.c, units);
                    store_first(h + at, s.h, units);
                    if (!gates) continue;
                    E* saved = gates + (at - u) * 4 + u;
                    store_first(saved, s.i, units);
                    store_first(saved + H, s.f, units);
                    store_first(saved + 2 * H, s.g, units);
                    store_first(saved + 3 * H, s.o, units);
                    store_first(a.cells + at, s.c, units);
                }
            });
        }
    }
    for (int64_t k = 0; k < rows.count; ++k) {
        const int64_t b = rows[k], n = rows.length(b);
        std::memcpy(h_T + b * H, n ? h + rows.at(n - 1, b) * H : h0 + b * H, H * sizeof(E));
    }
}

template <class E>
inline int lstm(const fusedmdn_lstm& a, Layout layout) {
    const UnitPanels panels{a.H};
    const int64_t panel_size = padded(a.H, E{}) * 4 * LANES;
    const Buffer<E> packed(panels.count() * panel_size);
    if (!packed.ok()) return FUSEDMDN_NO_MEMORY;
    const Plain<E> weight{static_cast<const E*>(a.weight_hh), a.H, a.H, 1};
    parallel_shared(a.threads, [&](int part, int parts) {
        for (int64_t p = part; p < panels.count(); p += parts) pack_panel(packed + p * panel_size, weight, 4, panels.columns(p));
    });
    parallel_shared(a.threads, [&](int part, int parts) {
        lstm_rows<E>(a, Rows(layout, a.lengths, a.T, a.B, part, parts), packed);
    });
    return FUSEDMDN_OK;
}

// The pointwise half of a backward step for one row: dh (of h_t, all of it) and dc (of c_t, from later steps) become the
// gradients dz of the pre-activations, clipped, and dc of c_{t-1}.
//   dz_o = clip(dh tanh(c) o (1 - o))      dc += dh o (1 - tanh^2 c) + p_o dz_o
//   dz_i = clip(dc g i (1 - i))            dz_f = clip(dc c' f (1 - f))            dz_g = clip(dc i (1 - g^2))
//   dc'  = dc f + p_i dz_i + p_f dz_f      dp_i += dz_i c', dp_f += dz_f c', dp_o += dz_o c
template <class E>
inline void lstm_backward_cell(const fusedmdn_lstm_backward& a, const Rows& rows, int64_t t, int64_t b) {
    const int64_t H = a.H, at = rows.at(t, b), *stride = a.grad_h_strides;
    const E* gates = static_cast<const E*>(a.gates) + at * 4 * H;
    const E* grad_h = static_cast<const E*>(a.grad_h) + (a.packed ? at * stride[1] : t * stride[0] + b * stride[1]);
    E* dz = static_cast<E*>(a.dxw) + at * 4 * H;
    const float* cells = a.cells + at * H;
    const float* previous = t ? a.cells + rows.at(t - 1, b) * H : a.c0 + b * H;
    for (int64_t u = 0; u < H; u += LANES) {
        const int64_t units = H - u < LANES ? H - u : LANES;
        const V i = load_first(gates + u, units), f = load_first(gates + H + u, units);
        const V g = load_first(gates + 2 * H + u, units), o = load_first(gates + 3 * H + u, units);
        const V c = load_first(cells + u, units), c_prev = load_first(previous + u, units), tanh_c = tanh(c);
        const V dh = load_first(a.dh0 + b * H + u, units) + load_first(grad_h + u, units);
        V dc = load_first(a.dc0 + b * H + u, units);

        const V zo = clamp(dh * (tanh_c * o * (1.0f - o)), -a.clip, a.clip);
        dc = fma(dh, o * (1.0f - tanh_c * tanh_c), dc);
        if (a.peephole) dc = fma(load_first(a.peephole + 2 * H + u, units), zo, dc);
        const V zi = clamp(dc * (g * i * (1.0f - i)), -a.clip, a.clip);
        const V zf = clamp(dc * (c_prev * f * (1.0f - f)), -a.clip, a.clip);
        const V zg = clamp(dc * (i * (1.0f - g * g)), -a.clip, a.clip);
        dc = dc * f;
        if (a.peephole) {
            dc = fma(load_first(a.peephole + u, units), zi, dc);
            dc = fma(load_first(a.peephole + H + u, units), zf, dc);
            float* dp = a.dpeephole + b * 3 * H + u;
            store_first(dp, fma(zi, c_prev, load_first(dp, units)), units);
            store_first(dp + H, fma(zf, c_prev, load_first(dp + H, units)), units);
            store_first(dp + 2 * H, fma(zo, c, load_first(dp + 2 * H, units)), units);
        }
        store_first(a.dc0 + b * H + u, dc, units);
        store_first(dz + u, zi, units);
        store_first(dz + H + u, zf, units);
        store_first(dz + 2 * H + u, zg, units);
        store_first(dz + 3 * H + u, zo, units);
    }
}

// dh_{t-1} = dz_t W, and the running dh and dc are kept where the gradients of h0 and c0 are wanted.
template <class E>
inline void lstm_backward_rows(const fusedmdn_lstm_backward& a, const Rows& rows, const E* packed) {
    const int64_t T = a.T, B = a.B, H = a.H;
    auto* dxw = static_cast<E*>(a.dxw);
    const ColumnPanels panels{H};
    const int64_t panel_size = padded(4 * H, E{}) * 4 * LANES;

    for (int64_t k = 0; k < rows.count; ++k) {
        const int64_t b = rows[k];
        std::memcpy(a.dh0 + b * H, a.grad_h_T + b * H, H * sizeof(float));
        std::memcpy(a.dc0 + b * H, a.grad_c_T + b * H, H * sizeof(float));
        if (a.peephole) std::memset(a.dpeephole + b * 3 * H, 0, 3 * H * sizeof(float));
        if (!a.packed) zero_from(dxw + b * 4 * H, rows.length(b), T, B, 4 * H);
    }
    int64_t alive = 0;
    for (int64_t t = rows.longest() - 1; t >= 0; --t) {
        while (alive < rows.count && rows.length(rows[alive]) > t) ++alive;
        for (int64_t k = 0; k < alive; ++k) lstm_backward_cell<E>(a, rows, t, rows[k]);
        for (int64_t p = 0; p < panels.count(); ++p)
            with_vectors(panels.NV(p), [&](auto vectors) {
                in_tiles(alive, [&](auto tile, int64_t first) {
                    constexpr int R = decltype(tile)::value, NV = decltype(vectors)::value;
                    const E* x[R];
                    V acc[R][NV] = {};
                    for (int r = 0; r < R; ++r) x[r] = dxw + rows.at(t, rows[first + r]) * 4 * H;
                    const E* w = packed + p * panel_size;
                    product(w, 4 * H, x, acc);
                    for (int r = 0; r < R; ++r)
                        for (int v = 0; v < NV; ++v) {
                            const int64_t column = (4 * p + v) * LANES;
                            store_first(a.dh0 + rows[first + r] * H + column, acc[r][v], H - column);
                        }
                });
            });
    }
}

template <class E>
inline int lstm_backward(const fusedmdn_lstm_backward& a, Layout layout) {
    const ColumnPanels panels{a.H};
    const int64_t panel_size = padded(4 * a.H, E{}) * 4 * LANES;  // the last may be smaller
    const Buffer<E> packed(panels.count() * panel_size);
    if (!packed.ok()) return FUSEDMDN_NO_MEMORY;
    const Plain<E> transposed{static_cast<const E*>(a.weight_hh), 4 * a.H, 1, a.H};
    parallel_shared(a.threads, [&](int part, int parts) {
        for (int64_t p = part; p < panels.count(); p += parts)
            pack_panel(packed + p * panel_size, transposed, panels.NV(p), panels.columns(p));
    });
    parallel_shared(a.threads, [&](int part, int parts) {
        lstm_backward_rows<E>(a, Rows(layout, a.lengths, a.T, a.B, part, parts), packed);
    });
    return FUSEDMDN_OK;
}

}  // namespace
}  // namespace fusedmdn
