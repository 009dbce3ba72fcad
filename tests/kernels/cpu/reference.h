// The equations (DESIGN sections 2 and 3) once more, for one sequence, in scalar double precision and as Graves wrote
// them (arXiv 1308.0850; "G n"): what check.cpp holds the kernels against. Tensors are named as in face.h.
#pragma once

#include "support.h"

namespace reference {

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double clamp(double x, double limit) { return std::fmin(std::fmax(x, -limit), limit); }

// Steps t >= length of h, gates and cells are left zero.
inline Tensors lstm(const Tensors& in, int64_t length) {
    const Doubles &xw = in.at("xw").values, &weight = in.at("weight_hh").values, &p = in.at("peephole").values;
    const std::size_t H = in.at("h0").values.size(), T = xw.size() / (4 * H), steps = length;
    Doubles h = in.at("h0").values, c = in.at("c0").values, hs(T * H), gates(T * 4 * H), cells(T * H);
    for (std::size_t t = 0; t < steps; ++t) {
        double* z = &gates[t * 4 * H];
        for (std::size_t n = 0; n < 4 * H; ++n) {
            z[n] = xw[t * 4 * H + n];
            for (std::size_t k = 0; k < H; ++k) z[n] += weight[n * H + k] * h[k];
        }
        for (std::size_t u = 0; u < H; ++u) {  // G 7-11
            double &i = z[u], &f = z[H + u], &g = z[2 * H + u], &o = z[3 * H + u];
            i = sigmoid(p.empty() ? i : i + p[u] * c[u]);
            f = sigmoid(p.empty() ? f : f + p[H + u] * c[u]);
            g = std::tanh(g);
            cells[t * H + u] = c[u] = f * c[u] + i * g;
            o = sigmoid(p.empty() ? o : o + p[2 * H + u] * c[u]);
            hs[t * H + u] = h[u] = o * std::tanh(c[u]);
        }
    }
    const int64_t width = H;
    return {{"h", {width, hs}},
            {"h_T", {width, h}},
            {"c_T", {width, c}},
            {"gates", {4 * width, gates}},
            {"cells", {width, cells}}};
}

// The chain rule, backwards through the lines of `lstm`.
inline Tensors lstm_backward(const Tensors& in, int64_t length, double clip) {
    const Doubles &grad_h = in.at("grad_h").values, &gates = in.at("gates").values, &cells = in.at("cells").values;
    const Doubles &weight = in.at("weight_hh").values, &c0 = in.at("c0").values, &p = in.at("peephole").values;
    const std::size_t H = c0.size();
    Doubles dxw(gates.size()), dh = in.at("grad_h_T").values, dc = in.at("grad_c_T").values, dp(p.size());
    for (std::size_t t = length; t-- > 0;) {
        double* dz = &dxw[t * 4 * H];
        for (std::size_t u = 0; u < H; ++u) {
            const double *z = &gates[t * 4 * H + u], i = z[0], f = z[H], g = z[2 * H], o = z[3 * H];
            const double c = cells[t * H + u], before = t ? cells[(t - 1) * H + u] : c0[u], tanh_c = std::tanh(c);
            dh[u] += grad_h[t * H + u];
            dz[3 * H + u] = clamp(dh[u] * tanh_c * o * (1 - o), clip);
            dc[u] += dh[u] * o * (1 - tanh_c * tanh_c) + (p.empty() ? 0 : p[2 * H + u] * dz[3 * H + u]);
            dz[u] = clamp(dc[u] * g * i * (1 - i), clip);
            dz[H + u] = clamp(dc[u] * before * f * (1 - f), clip);
            dz[2 * H + u] = clamp(dc[u] * i * (1 - g * g), clip);
            dc[u] *= f;
            if (p.empty()) continue;
            dc[u] += p[u] * dz[u] + p[H + u] * dz[H + u];
            dp[u] += dz[u] * before;
            dp[H + u] += dz[H + u] * before;
            dp[2 * H + u] += dz[3 * H + u] * c;
        }
        dh.assign(H, 0);
        for (std::size_t n = 0; n < 4 * H; ++n)
            for (std::size_t k = 0; k < H; ++k) dh[k] += dz[n] * weight[n * H + k];
    }
    const int64_t width = H;
    return {{"dxw", {4 * width, dxw}}, {"dh0", {width, dh}}, {"dc0", {width, dc}}, {"dpeephole", {3 * width, dp}}};
}

struct Mixture {
    int64_t M;
    bool categorical, sigmoid_means;

    int64_t P() const { return categorical ? 3 : 1; }
    int64_t I() const { return categorical ? 5 : 3; }
    int64_t D() const { return P() + 6 * M; }
    bool has_offset(const double* target) const { return !categorical || target[4] <= 0.5; }
};

struct Component {
    double mx, my, ux, uy, ex, ey, rho, C, Z, joint;  // G 19-25 and 31; u: the whitened offset; joint: logit + log N

    Component(const Mixture& m, const double* raw, const double* target, int64_t j) {
        const double* a = raw + m.P() + j;
        const double sx = clamp(a[3 * m.M], 12), sy = clamp(a[4 * m.M], 12);
        mx = m.sigmoid_means ? sigmoid(a[m.M]) : a[m.M];
        my = m.sigmoid_means ? sigmoid(a[2 * m.M]) : a[2 * m.M];
        ex = std::exp(-sx);
        ey = std::exp(-sy);
        ux = (target[0] - mx) * ex;
        uy = (target[1] - my) * ey;
        rho = std::tanh(clamp(a[5 * m.M], 15));
        C = 1 / (1 - rho * rho);
        Z = ux * ux + uy * uy - 2 * rho * ux * uy;
        joint = a[0] - std::log(2 * M_PI) - sx - sy + std::log(C) / 2 - Z * C / 2;
    }
};

inline double log_sum_exp(const Doubles& x) {
    double top = x[0], sum = 0;
    for (const double v : x) top = std::fmax(top, v);
    for (const double v : x) sum += std::exp(v - top);
    return top + std::log(sum);
}

inline double log_evidence(const Mixture& m, const double* raw, const double* target) {
    Doubles joints;
    for (int64_t j = 0; j < m.M; ++j) joints.push_back(Component(m, raw, target, j).joint);
    return log_sum_exp(joints);
}

inline double log_prior(const Mixture& m, const double* raw) {
    return log_sum_exp(Doubles(raw + m.P(), raw + m.P() + m.M));
}

// log p of every state of the pen; Bernoulli: of the stroke's end, and of no end
inline Doubles pen_log(const Mixture& m, const double* raw) {
    const Doubles logits = m.categorical ? Doubles(raw, raw + 3) : Doubles{raw[0], 0};
    Doubles all = logits;
    for (double& v : all) v -= log_sum_exp(logits);
    return all;
}

// Of one row of raw (D) and target (I): G 26.
inline double nll(const Mixture& m, const double* raw, const double* target) {
    const Doubles log_p = pen_log(m, raw);
    const double offset = m.has_offset(target) ? log_prior(m, raw) - log_evidence(m, raw, target) : 0;
    if (!m.categorical) return offset - target[2] * log_p[0] - (1 - target[2]) * log_p[1];
    return offset - target[2] * log_p[0] - target[3] * log_p[1] - target[4] * log_p[2];
}

// Outside its clamp a gradient lives only if a step down it leads back.
inline double inward(double gradient, double raw, double limit) {
    return (raw > limit && gradient < 0) || (raw < -limit && gradient > 0) ? 0 : gradient;
}

// The gradient of g nll, added to draw (D) and dtarget (I).
inline void gradient(const Mixture& m, const double* raw, const double* target, double g, double clip, double* draw,
                     double* dtarget) {
    const Doubles log_p = pen_log(m, raw);
    for (int64_t k = 0; k < m.P(); ++k) {  // G 27; a target is one state of the pen
        draw[k] = g * (std::exp(log_p[k]) - target[2 + k]);
        dtarget[2 + k] = -g * (m.categorical ? log_p[k] : raw[0]);
    }
    const double prior = log_prior(m, raw), evidence = log_evidence(m, raw, target);
    for (int64_t j = 0; j < m.M && m.has_offset(target); ++j) {
        const Component k(m, raw, target, j);
        const double gamma = std::exp(k.joint - evidence), scale = -g * gamma;  // G 28-29
        const double dx = scale * k.C * k.ex * (k.ux - k.rho * k.uy), dy = scale * k.C * k.ey * (k.uy - k.rho * k.ux);
        const double* a = raw + m.P() + j;
        double* d = draw + m.P() + j;
        d[0] = g * (std::exp(a[0] - prior) - gamma);
        d[m.M] = dx * (m.sigmoid_means ? k.mx * (1 - k.mx) : 1);  // G 33-37
        d[2 * m.M] = dy * (m.sigmoid_means ? k.my * (1 - k.my) : 1);
        d[3 * m.M] = inward(scale * (k.C * k.ux * (k.ux - k.rho * k.uy) - 1), a[3 * m.M], 12);
        d[4 * m.M] = inward(scale * (k.C * k.uy * (k.uy - k.rho * k.ux) - 1), a[4 * m.M], 12);
        d[5 * m.M] = inward(scale * (k.ux * k.uy + k.rho * (1 - k.C * k.Z)), a[5 * m.M], 15);
        dtarget[0] -= dx;
        dtarget[1] -= dy;
    }
    for (int64_t k = 0; k < m.D(); ++k) draw[k] = clamp(draw[k], clip);
}

}  // namespace reference
