// Negative log-likelihood of rows under the mixture, and its gradient (G 15-37, in the form of DESIGN's section 3).
//
// LANES rows at a time, one to a lane: a block is transposed on its way in and out, so that every M uses every lane and
// sums over components are plain additions. With q = e^2r (so rho = tanh r = (q - 1/q) / (q + 1/q + 2)):
//
//   u = (target - m) e^-s      A = u_x + u_y     D = u_x - u_y
//   Z / (1 - rho^2) = (A^2 (1 + 1/q) + D^2 (1 + q)) / 4
//   e_j = a_j - s_x - s_y - Z / (2 (1 - rho^2))          cosh_j = 1 / sqrt(1 - rho^2) = sqrt(q + 1/q + 2) / 2
//   nll = log 2 pi + logsumexp_j a_j - log sum_j cosh_j e^(e_j) + the pen's cross-entropy      (2 pi = 4 pi / 2)
//   gamma_j = cosh_j e^(e_j) / sum                       responsibilities, G 28-29
//
//   d a = softmax(a) - gamma            d m_x = -gamma d_x e^-s_x,  d_x = (A (1 + 1/q) + D (1 + q)) / 4, d_y with -
//   d s_x = gamma (1 - d_x u_x)         d r = gamma ((D^2 q - A^2 / q) / 4 - tanh r)
#pragma once

#include "face.h"
#include "panel.h"

namespace fusedmdn {
namespace {

constexpr float LOG_SIGMA_LIMIT = 12.0f, RHO_LIMIT = 15.0f, LOG_4PI = 2.5310242469692907f;

// What a block of rows needs per component, one vector each; for the gradient they stay until the sums are known.
struct Component {
    V e, cosh, ux, uy, ex, ey, q, iq;
};

struct MdnSizes {
    int64_t P, I, D, M;
    explicit MdnSizes(const fusedmdn_mdn& a)
        : P(a.categorical ? 3 : 1), I(a.categorical ? 5 : 3), D(P + 6 * a.M), M(a.M) {}
};

// column[c] = lanes of rows[0 .. LANES-1][c]
template <class E>
inline void gather_columns(const E* const* rows, int64_t D, V* column) {
    if (D < LANES) {
        for (int64_t c = 0; c < D; ++c)
            for (int lane = 0; lane < LANES; ++lane) column[c][lane] = widen(rows[lane][c]);
        return;
    }
    for (int64_t c = 0; c < D; c += LANES) {
        const int64_t from = c + LANES <= D ? c : D - LANES;  // the last block overlaps the one before
        V v[LANES];
        for (int lane = 0; lane < LANES; ++lane) v[lane] = load(rows[lane] + from);
        transpose(v);
        for (int k = 0; k < LANES; ++k) column[from + k] = v[k];
    }
}

template <class E>
inline void scatter_columns(const V* column, int64_t D, E* const* rows, int count) {
    if (D < LANES) {
        E lanes[LANES];
        for (int64_t c = 0; c < D; ++c) {
            store(lanes, column[c]);
            for (int lane = 0; lane < count; ++lane) rows[lane][c] = lanes[lane];
        }
        return;
    }
    for (int64_t c = 0; c < D; c += LANES) {
        const int64_t from = c + LANES <= D ? c : D - LANES;
        V v[LANES];
        for (int k = 0; k < LANES; ++k) v[k] = column[from + k];
        transpose(v);
        for (int lane = 0; lane < count; ++lane) store(rows[lane] + from, v[lane]);
    }
}

// Zero where the raw value lies outside +-limit and a descent step would not bring it back.
inline V inward(V gradient, V raw, float limit) {
    const I outward = (raw > limit && gradient < 0.0f) || (raw < -limit && gradient > 0.0f);
    return outward ? V{} : gradient;
}

// Memory that will be wanted when this block is done: its cache lines are asked for a few at a time, between the sums.
struct Ahead {
    std::uintptr_t at;
    int64_t bytes;

    Ahead(const void* from, int64_t bytes) : at(reinterpret_cast<std::uintptr_t>(from)), bytes(bytes) {}
    void fetch(int64_t j, int64_t M) const {
        const int64_t share = (bytes + M - 1) / M;
        for (int64_t k = j * share / 64 * 64; k < (j + 1) * share && k < bytes; k += 64)
            __builtin_prefetch(reinterpret_cast<const void*>(at + k));
    }
};

// One block: x holds the columns of raw on entry, and those of its gradient on return if BACKWARD. y: the target's columns,
// and its gradient's. g: the incoming gradient. Returns the nll.
template <bool BACKWARD>
inline V mdn_block(const fusedmdn_mdn& a, const MdnSizes& n, V* x, V* y, V g, Component* parts, Ahead in, Ahead out) {
    const int64_t M = n.M;
    V *logit = x + n.P, *mx = logit + M, *my = mx + M, *sx = my + M, *sy = sx + M, *rr = sy + M;
    I with_offset = V{} == V{};
    if (a.categorical) with_offset = y[4] <= 0.5f;
    const V tx = with_offset ? y[0] : V{}, ty = with_offset ? y[1] : V{};

    V top_logit = logit[0], top_e = splat(-__builtin_inff());
    I outside{};  // of the clamps, anywhere in this block
    for (int64_t j = 0; j < M; ++j) {
        Component& k = parts[j];
        in.fetch(j, M);
        const V s_x = clamp(sx[j], -LOG_SIGMA_LIMIT, LOG_SIGMA_LIMIT), s_y = clamp(sy[j], -LOG_SIGMA_LIMIT, LOG_SIGMA_LIMIT);
        const V r = clamp(rr[j], -RHO_LIMIT, RHO_LIMIT);
        if (BACKWARD) outside |= (s_x != sx[j]) | (s_y != sy[j]) | (r != rr[j]);
        if (a.sigmoid_means) {
            mx[j] = sigmoid(mx[j]);
            my[j] = sigmoid(my[j]);
        }
        k.ex = exp(-s_x);
        k.ey = exp(-s_y);
        k.q = exp(r + r);
        k.iq = 1.0f / k.q;
        k.ux = (tx - mx[j]) * k.ex;
        k.uy = (ty - my[j]) * k.ey;
        const V A = k.ux + k.uy, D = k.ux - k.uy;
        const V z = A * A * (1.0f + k.iq) + D * D * (1.0f + k.q);
        k.cosh = sqrt(k.q + k.iq + 2.0f);  // twice: it cancels but for a constant
        k.e = fma(z, splat(-0.125f), logit[j] - s_x - s_y);
        top_logit = max(top_logit, logit[j]);
        top_e = max(top_e, k.e);
    }
    top_e = top_e == -__builtin_inff() ? V{} : top_e;
    V sum_logit{}, sum_e{};
    for (int64_t j = 0; j < M; ++j) {
        const V pi = exp(logit[j] - top_logit);
        if (BACKWARD) out.fetch(j, M);
        parts[j].e = parts[j].cosh * exp(parts[j].e - top_e);
        sum_logit += pi;
        sum_e += parts[j].e;
        if (BACKWARD) logit[j] = pi;
    }
    const V zero{};
    const V offset = (LOG_4PI + top_logit + log(sum_logit)) - (top_e + log(sum_e));
    V pen, d_pen[3];
    if (a.categorical) {
        const V top = max(max(x[0], x[1]), x[2]), e0 = exp(x[0] - top), e1 = exp(x[1] - top), e2 = exp(x[2] - top);
        const V sum = e0 + e1 + e2, normaliser = top + log(sum), total = y[2] + y[3] + y[4];
        const V log_p[3] = {x[0] - normaliser, x[1] - normaliser, x[2] - normaliser};
        pen = -(y[2] * log_p[0] + y[3] * log_p[1] + y[4] * log_p[2]);
        if (BACKWARD) {
            const V e[3] = {e0, e1, e2};
            for (int k = 0; k < 3; ++k) {
                d_pen[k] = g * (total * (e[k] / sum) - y[2 + k]);
                y[2 + k] = -g * log_p[k];
            }
        }
    } else {
        const V p = x[0], t = exp(-abs(p));
        pen = max(p, zero) + log1p(t) - y[2] * p;
        if (BACKWARD) {
            d_pen[0] = g * ((p < 0.0f ? t : splat(1.0f)) / (1.0f + t) - y[2]);
            y[2] = -g * p;
        }
    }
    const V nll = (with_offset ? offset : zero) + pen;
    if (!BACKWARD) return nll;

    const V scale = with_offset ? g : zero, per_logit = 1.0f / sum_logit, per_e = 1.0f / sum_e;
    const bool some_outside = any(outside);
    V d_tx{}, d_ty{};
    for (int64_t j = 0; j < M; ++j) {
        const Component& k = parts[j];
        const V gamma = k.e * per_e, A = k.ux + k.uy, D = k.ux - k.uy;
        const V plus = fma(A, k.iq, A), minus = fma(D, k.q, D), weighted = scale * gamma, quarter = weighted * 0.25f;
        const V d_x = quarter * (plus + minus), d_y = quarter * (plus - minus);
        V d_mx = -d_x * k.ex, d_my = -d_y * k.ey;
        d_tx -= d_mx;
        d_ty -= d_my;
        if (a.sigmoid_means) {
            d_mx = d_mx * mx[j] * (1.0f - mx[j]);
            d_my = d_my * my[j] * (1.0f - my[j]);
        }
        const V tanh_r = (k.q - k.iq) / (k.q + k.iq + 2.0f);
        logit[j] = scale * fma(logit[j], per_logit, -gamma);
        mx[j] = d_mx;
        my[j] = d_my;
        V d_sx = weighted - d_x * k.ux, d_sy = weighted - d_y * k.uy;
        V d_r = weighted * ((D * D * k.q - A * A * k.iq) * 0.25f - tanh_r);
        if (some_outside) {
            d_sx = inward(d_sx, sx[j], LOG_SIGMA_LIMIT);
            d_sy = inward(d_sy, sy[j], LOG_SIGMA_LIMIT);
            d_r = inward(d_r, rr[j], RHO_LIMIT);
        }
        sx[j] = d_sx;
        sy[j] = d_sy;
        rr[j] = d_r;
    }
    for (int64_t k = 0; k < n.P; ++k) x[k] = d_pen[k];
    for (int64_t c = 0; c < n.D && a.clip < __builtin_inff(); ++c) x[c] = clamp(x[c], -a.clip, a.clip);
    y[0] = d_tx;
    y[1] = d_ty;
    return nll;
}

// Rows [begin, end) of the T x B, those beyond their sequence's length left out of the blocks.
template <class E, bool BACKWARD>
inline int mdn_rows(const fusedmdn_mdn& a, int64_t begin, int64_t end) {
    const MdnSizes n(a);
    const Buffer<V> x(n.D);
    const Buffer<Component> parts(n.M);
    if (!x.ok() || !parts.ok()) return FUSEDMDN_NO_MEMORY;
    const auto* raw = static_cast<const E*>(a.raw);
    auto* draw = static_cast<E*>(a.draw);
    int64_t at[LANES];
    const E* from[LANES];
    int count = 0;

    const auto flush = [&] {
        if (!count) return;
        V y[5] = {}, g{};
        for (int lane = 0; lane < LANES; ++lane) {
            const int source = lane < count ? lane : 0;  // idle lanes repeat the first row
            const int64_t r = at[source];
            from[lane] = from[source];
            for (int64_t c = 0; c < n.I; ++c) y[c][lane] = a.target[r * n.I + c];
            if (BACKWARD) g[lane] = a.grad[r];
        }
        gather_columns(from, n.D, x.data);
        const int64_t bytes = LANES * n.D * static_cast<int64_t>(sizeof(E));
        const Ahead next(from[LANES - 1] + n.D, bytes), gradient(BACKWARD ? draw + at[0] * n.D : nullptr, bytes);
        const V nll = mdn_block<BACKWARD>(a, n, x, y, g, parts, next, gradient);
        if (!BACKWARD) {
            for (int lane = 0; lane < count; ++lane) a.nll[at[lane]] = nll[lane];
        } else {
            E* to[LANES];
            for (int lane = 0; lane < count; ++lane) to[lane] = draw + at[lane] * n.D;
            scatter_columns(x.data, n.D, to, count);
            for (int lane = 0; a.dtarget && lane < count; ++lane)
                for (int64_t c = 0; c < n.I; ++c) a.dtarget[at[lane] * n.I + c] = y[c][lane];
        }
        count = 0;
    };
    int64_t t = a.B ? begin / a.B : 0, b = begin - t * a.B;
    for (int64_t r = begin; r < end; ++r) {
        const int64_t row_t = t, row_b = b;
        if (++b == a.B) ++t, b = 0;
        if (!a.lengths || row_t < a.lengths[row_b]) {
            at[count] = r;
            from[count++] = raw + row_t * a.raw_strides[0] + row_b * a.raw_strides[1];
            if (count == LANES) flush();
            continue;
        }
        if (!BACKWARD) a.nll[r] = 0.0f;
        if (BACKWARD) std::memset(draw + r * n.D, 0, n.D * sizeof(E));
        if (BACKWARD && a.dtarget) std::memset(a.dtarget + r * n.I, 0, n.I * sizeof(float));
    }
    flush();
    return FUSEDMDN_OK;
}

template <class E, bool BACKWARD>
inline int mdn(const fusedmdn_mdn& a) {
    int status = FUSEDMDN_OK;
    const int64_t rows = a.T * a.B;
    parallel_shared(a.threads, [&](int part, int parts) {
        const int got = mdn_rows<E, BACKWARD>(a, rows * part / parts, rows * (part + 1) / parts);
        if (got) __atomic_store_n(&status, got, __ATOMIC_RELAXED);
    });
    return status;
}

}  // namespace
}  // namespace fusedmdn
