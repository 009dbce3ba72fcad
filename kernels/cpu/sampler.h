// The persistent sampler: stack, head, draw and feedback for every step of every sequence, in one call.
//
//   z^n_t = b^n + W [x_t ; h^{n-1}_t ; h^n_{t-1}]      the cell, layer by layer; x_t feeds layer 1, or all with skips
//   raw_t = b + W [h^1_t ; ... ; h^L_t] (or h^L_t)     x_{t+1} = draw(raw_t, Philox block of (seed, sequence, step))
//
// A thread holds some sequences in slots and steps them together; a sequence that has ended hands its slot to the next one
// waiting, so ragged ends cost nothing. What a slot computes depends on nothing but its own sequence: neither the batch, the
// slots, the threads nor where a call stops can be seen in the result. B >= 2: threads share sequences, no barrier. B = 1:
// threads share each layer's panels (Team in threads.h).
#pragma once

#include "cell.h"
#include "face.h"
#include "mdn.h"
#include "panel.h"
#include "philox.h"

namespace fusedmdn {
namespace {

constexpr int64_t SLOTS = 64;  // at most, a thread: their states and a panel of weights fit a private cache

inline bf16 narrow(float a, bf16) {
    bf16 lanes[LANES];
    store(lanes, splat(a));
    return lanes[0];
}
inline float narrow(float a, float) { return a; }

// A network's weights, packed for this instruction set.
template <class E>
struct Network {
    int64_t L, H, M, P, I, D;
    bool categorical, sigmoid_means, skip, peephole;
    E* weights;        // layers' panels, then the head's
    float* constants;  // per layer 4 biases of every unit, in panels, and (3, H) peepholes; then the head's bias

    explicit Network(const fusedmdn_network& n)
        : L(n.L), H(n.H), M(n.M), P(n.categorical ? 3 : 1), I(n.categorical ? 5 : 3), D(P + 6 * M),
          categorical(n.categorical), sigmoid_means(n.sigmoid_means), skip(n.skip), peephole(n.peephole),
          weights(static_cast<E*>(allocate(head_offset() * sizeof(E) + head_size() * sizeof(E)))),
          constants(static_cast<float*>(allocate((L * constants_size() + head().vectors() * LANES) * sizeof(float)))) {}

    UnitPanels units() const { return {H}; }
    ColumnPanels head() const { return {D}; }
    bool reads_input(int64_t n) const { return n == 0 || skip; }
    int64_t first_below() const { return skip ? 0 : L - 1; }  // the head reads layers from here on

    // elements of one panel, one layer and the head
    int64_t panel_size(int64_t n) const {
        const int64_t K = (reads_input(n) ? padded(I, E{}) : 0) + (n ? 2 : 1) * padded(H, E{});
        return K * 4 * LANES;
    }
    int64_t layer_offset(int64_t n) const { return units().count() * (n ? panel_size(0) + (n - 1) * panel_size(1) : 0); }
    int64_t head_offset() const { return layer_offset(L); }
    int64_t head_panel_size(int64_t p) const { return (L - first_below()) * padded(H, E{}) * head().NV(p) * LANES; }
    int64_t head_size() const { return (L - first_below()) * padded(H, E{}) * head().vectors() * LANES; }
    int64_t constants_size() const { return units().count() * 4 * LANES + 3 * H; }

    const E* panel(int64_t n, int64_t p) const { return weights + layer_offset(n) + p * panel_size(n); }
    const E* head_panel(int64_t p) const { return weights + head_offset() + p * head_panel_size(0); }
    float* bias(int64_t n, int64_t p) const { return constants + n * constants_size() + p * 4 * LANES; }
    float* peepholes(int64_t n) const { return constants + n * constants_size() + units().count() * 4 * LANES; }
    float* head_bias() const { return constants + L * constants_size(); }

    void pack_layer_panel(const E* const* w, int64_t n, int64_t p) {  // w: this layer's plain weights
        const int64_t x = reads_input(n) ? I : 0, below = n ? H : 0, stride = x + below;
        const auto columns = units().columns(p);
        E* out = const_cast<E*>(panel(n, p));
        if (x) out = pack_panel(out, Plain<E>{w[0], x, stride, 1}, 4, columns);
        if (below) out = pack_panel(out, Plain<E>{w[0] + x, below, stride, 1}, 4, columns);
        pack_panel(out, Plain<E>{w[1], H, H, 1}, 4, columns);
        for (int v = 0; v < 4; ++v)
            for (int lane = 0; lane < LANES; ++lane) {
                const int64_t k = columns(v, lane);
                bias(n, p)[v * LANES + lane] = k < 0 ? 0.0f : widen(w[2][k]) + widen(w[3][k]);
            }
    }

    void pack_head_panel(const E* weight, int64_t p) {
        const int64_t width = (L - first_below()) * H;
        E* out = const_cast<E*>(head_panel(p));
        for (int64_t n = 0; n < L - first_below(); ++n)
            out = pack_panel(out, Plain<E>{weight + n * H, H, width, 1}, head().NV(p), head().columns(p));
    }

    void pack(const fusedmdn_network& network) {
        const auto* w = reinterpret_cast<const E* const*>(network.weights);
        const int64_t per_layer = peephole ? 5 : 4, panels = units().count(), all = L * panels + head().count();
        parallel(network.threads, [&](int part, int parts) {
            for (int64_t k = part; k < all; k += parts) {
                if (k < L * panels) pack_layer_panel(w + k / panels * per_layer, k / panels, k % panels);
                else pack_head_panel(w[L * per_layer], k - L * panels);
            }
        });
        for (int64_t n = 0; n < L && peephole; ++n)
            for (int64_t k = 0; k < 3 * H; ++k) peepholes(n)[k] = widen(w[n * per_layer + 4][k]);
        for (int64_t k = 0; k < head().vectors() * LANES; ++k)
            head_bias()[k] = k < D ? widen(w[L * per_layer + 1][k]) : 0.0f;
    }
};

// The smallest j whose cumulative weight, in index order, is >= u times the sum; else the last with any weight.
inline int64_t choose(const float* weights, int64_t count, float u) {
    float sum = 0.0f, cumulative = 0.0f;
    for (int64_t j = 0; j < count; ++j) sum += weights[j];
    const float threshold = u * sum;
    int64_t j = 0, last = 0;
    for (int64_t k = 0; k < count; ++k) {
        cumulative += weights[k];
        j += cumulative < threshold;
        if (weights[k] > 0.0f) last = k;
    }
    return j < last ? j : last;
}

// weights[k] = exp((logits[k] - max) (1 + b) / tau), up to whole vectors
inline void unnormalised(const float* logits, int64_t count, float b, float tau, float* weights) {
    float top = logits[0];
    for (int64_t k = 1; k < count; ++k) top = top > logits[k] ? top : logits[k];
    for (int64_t k = 0; k < count; k += LANES)
        store(weights + k, exp((load_first(logits + k, count - k) - top) * (1.0f + b) / tau));
}

// One row from raw outputs and a block of the random stream (DESIGN section 5). True: the sequence has ended.
template <class E>
inline bool draw(const Network<E>& n, const float* raw, Words words, float b, float tau, float log_tau, float* weights,
                 float* row) {
    float u[4];
    for (int k = 0; k < 4; ++k) u[k] = uniform(words.w[k]);
    const float* component = raw + n.P;
    unnormalised(component, n.M, b, tau, weights);
    const float* chosen = component + choose(weights, n.M, u[0]);

    V args = V{}, mean = V{}, log_sigma = V{};
    mean[0] = chosen[n.M];
    mean[1] = chosen[2 * n.M];
    log_sigma[0] = chosen[3 * n.M];
    log_sigma[1] = chosen[4 * n.M];
    if (n.sigmoid_means) mean = sigmoid(mean);
    args = clamp(log_sigma, -LOG_SIGMA_LIMIT, LOG_SIGMA_LIMIT) - b + log_tau;
    args[2] = clamp(splat(chosen[5 * n.M]), -RHO_LIMIT, RHO_LIMIT)[0];
    args[3] = -raw[0];
    const V e = exp(args);
    const float q = e[2], iq = 1.0f / q;
    const float radius = __builtin_sqrtf(-2.0f * log(splat(u[2]))[0]);
    V cosine, sine;
    cos_sin_turns(splat(u[3]), cosine, sine);
    const float n1 = radius * cosine[0], n2 = radius * sine[0];
    row[0] = mean[0] + e[0] * n1;
    row[1] = mean[1] + e[1] * ((q - iq) / (q + iq) * n1 + n2 * 2.0f / (q + iq));
    if (!n.categorical) {
        row[2] = u[1] < 1.0f / (1.0f + e[3]) ? 1.0f : 0.0f;
        return false;
    }
    unnormalised(raw, 3, 0.0f, 1.0f, weights);
    const int64_t state = choose(weights, 3, u[1]);
    for (int k = 0; k < 3; ++k) row[2 + k] = k == state ? 1.0f : 0.0f;
    if (state == 2) row[0] = row[1] = 0.0f;
    return state == 2;
}

// What the threads of a call share.
struct Queue {
    int64_t next = 0;
    int status = FUSEDMDN_OK;

    int64_t take() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }
    void stop(int why) { __atomic_store_n(&status, why, __ATOMIC_RELAXED); }
    bool stopped() const { return __atomic_load_n(&status, __ATOMIC_RELAXED) != FUSEDMDN_OK; }
};

// One thread's slots, and the team that helps it.
template <class E>
class Slots {
public:
    Slots(const Network<E>& net, const fusedmdn_generate& call, Queue& queue, Team* team, int64_t capacity)
        : net(net), call(call), queue(queue), team(team), capacity(capacity), width((net.H + 15) / 16 * 16 + 16),
          x(capacity * 8), h(net.L * 2 * capacity * width), c(net.L * capacity * width),
          raw(capacity * net.head().vectors() * LANES), weights((net.M + 4 + LANES) / LANES * LANES), slots(capacity) {}

    bool ok() const { return x.ok() && h.ok() && c.ok() && raw.ok() && weights.ok() && slots.ok(); }

    // Steps until no sequence is left.
    void run() {
        for (;;) {
            if (__atomic_load_n(call.stop, __ATOMIC_RELAXED)) queue.stop(FUSEDMDN_INTERRUPTED);
            if (queue.stopped()) return;
            fill();
            if (!count) return;
            advance();
        }
    }

private:
    struct Slot {
        int64_t b, t, primed, prime, drawn;
        float log_tau;
        float row[5];
        bool done;
    };

    // Slot k's part of each buffer; slots 0 .. count - 1 are in use.
    E* x_of(int64_t k) const { return x + k * 8; }
    E* h_of(int64_t n, int which, int64_t k) const { return h + ((n * 2 + which) * capacity + k) * width; }
    float* c_of(int64_t n, int64_t k) const { return c + (n * capacity + k) * width; }
    float* raw_of(int64_t k) const { return raw + k * net.head().vectors() * LANES; }
    int64_t state_of(int64_t n, int64_t b) const { return (n * call.B + b) * net.H; }

    void fill() {
        while (count < capacity && waiting) {
            const int64_t b = queue.take();
            waiting = b < call.B;
            if (!waiting) return;
            Slot& s = slots[count];
            s.b = b;
            s.t = s.primed = 0;
            s.done = call.done[b];
            s.prime = s.done || !call.prime ? 0 : call.prime_lengths ? call.prime_lengths[b] : call.prime_steps;
            s.drawn = call.drawn[b];
            s.log_tau = log(splat(call.temperature[b]))[0];
            for (int64_t n = 0; n < net.L; ++n) {
                std::memcpy(h_of(n, now_in, count), static_cast<const E*>(call.h) + state_of(n, b), net.H * sizeof(E));
                std::memcpy(c_of(n, count), call.c + state_of(n, b), net.H * sizeof(float));
            }
            feed(count, call.row + b * net.I);
            if (s.done || (s.prime == 0 && call.steps == 0)) write_back(count);
            else ++count;
        }
    }

    void feed(int64_t k, const float* row) {
        for (int64_t column = 0; column < net.I; ++column) {
            slots[k].row[column] = row[column];
            x_of(k)[column] = narrow(row[column], E{});
        }
    }

    void write_back(int64_t k) {
        const Slot& s = slots[k];
        for (int64_t n = 0; n < net.L; ++n) {
            std::memcpy(static_cast<E*>(call.h_out) + state_of(n, s.b), h_of(n, now_in, k), net.H * sizeof(E));
            std::memcpy(call.c_out + state_of(n, s.b), c_of(n, k), net.H * sizeof(float));
        }
        std::memcpy(call.row_out + s.b * net.I, s.row, net.I * sizeof(float));
        call.drawn_out[s.b] = s.drawn;
        call.done_out[s.b] = s.done;
        call.lengths[s.b] = s.t - (s.done && s.t);  // without the end row
    }

    void advance() {
        for (int64_t n = 0; n < net.L; ++n)
            team_run(team, [&](int part, int parts) { layer(n, part, parts); });
        now_in ^= 1;
        bool drawing = false;
        for (int64_t k = 0; k < count; ++k) drawing |= slots[k].primed == slots[k].prime;
        if (drawing) team_run(team, [&](int part, int parts) { head(part, parts); });
        for (int64_t k = count - 1; k >= 0; --k)
            if (finished(k)) {
                write_back(k);
                vacate(k);
            }
    }

    void layer(int64_t n, int part, int parts) {
        const UnitPanels panels = net.units();
        const int64_t H = net.H, end = panels.count() * (part + 1) / parts;
        const float* peephole = net.peephole ? net.peepholes(n) : nullptr;
        for (int64_t p = panels.count() * part / parts; p < end; ++p) {
            const int64_t u = p * LANES, units = panels.width(p);
            in_tiles(count, [&](auto tile, int64_t first) {
                constexpr int R = decltype(tile)::value;
                const E *input[R], *below[R], *self[R];
                V acc[R][4];
                for (int r = 0; r < R; ++r) {
                    input[r] = x_of(first + r);
                    below[r] = h_of(n ? n - 1 : 0, now_in ^ 1, first + r);
                    self[r] = h_of(n, now_in, first + r);
                    for (int v = 0; v < 4; ++v) acc[r][v] = load(net.bias(n, p) + v * LANES);
                }
                const E* w = net.panel(n, p);
                if (net.reads_input(n)) product(w, net.I, input, acc);
                if (n) product(w, H, below, acc);
                product(w, H, self, acc);
                for (int r = 0; r < R; ++r) {
                    float* state = c_of(n, first + r) + u;
                    const Cell s = cell(acc[r], load_first(state, units), peephole ? peephole + u : nullptr, H, units);
                    store_first(state, s.c, units);
                    store_first(h_of(n, now_in ^ 1, first + r) + u, s.h, units);
                }
            });
        }
    }

    void head(int part, int parts) {
        const ColumnPanels panels = net.head();
        const int64_t end = panels.count() * (part + 1) / parts;
        for (int64_t p = panels.count() * part / parts; p < end; ++p)
            with_vectors(panels.NV(p), [&](auto vectors) {
                in_tiles(count, [&](auto tile, int64_t first) {
                    constexpr int R = decltype(tile)::value, NV = decltype(vectors)::value;
                    V acc[R][NV];
                    for (int r = 0; r < R; ++r)
                        for (int v = 0; v < NV; ++v) acc[r][v] = load(net.head_bias() + (4 * p + v) * LANES);
                    const E* w = net.head_panel(p);
                    for (int64_t n = net.first_below(); n < net.L; ++n) {
                        const E* from[R];
                        for (int r = 0; r < R; ++r) from[r] = h_of(n, now_in, first + r);
                        product(w, net.H, from, acc);
                    }
                    for (int r = 0; r < R; ++r)
                        for (int v = 0; v < NV; ++v) store(raw_of(first + r) + (4 * p + v) * LANES, acc[r][v]);
                });
            });
    }

    // The next input of a slot: a row of the prime, or a draw. True: this sequence is finished with.
    bool finished(int64_t k) {
        Slot& s = slots[k];
        if (s.primed < s.prime) {
            feed(k, call.prime + (s.b * call.prime_steps + s.primed++) * net.I);
            return s.primed == s.prime && call.steps == 0;
        }
        float row[5];
        const Words words = block(call.seed, call.first_index + static_cast<std::uint64_t>(s.b),
                                  static_cast<std::uint32_t>(s.drawn));
        s.done = draw(net, raw_of(k), words, call.bias[s.b], call.temperature[s.b], s.log_tau, weights, row);
        feed(k, row);
        std::memcpy(call.points + (s.t * call.B + s.b) * net.I, row, net.I * sizeof(float));
        ++s.drawn;
        ++s.t;
        return s.done || s.t == call.steps;
    }

    // Slot k is free; the last one moves into its place.
    void vacate(int64_t k) {
        if (k == --count) return;
        for (int64_t n = 0; n < net.L; ++n) {
            std::memcpy(h_of(n, now_in, k), h_of(n, now_in, count), net.H * sizeof(E));
            std::memcpy(c_of(n, k), c_of(n, count), net.H * sizeof(float));
        }
        std::memcpy(x_of(k), x_of(count), 8 * sizeof(E));
        slots[k] = slots[count];
    }

    const Network<E>& net;
    const fusedmdn_generate& call;
    Queue& queue;
    Team* team;
    const int64_t capacity, width;
    Buffer<E> x, h;  // x (slot, 8); h (L, 2, slot, width): of the step before, and of this one
    Buffer<float> c, raw, weights;
    Buffer<Slot> slots;
    int64_t count = 0;
    int now_in = 0;  // which of the two h holds the latest state
    bool waiting = true;
};

// Threads that pay at B = 1: a few panels each, and microseconds of work between barriers.
template <class E>
inline int team_size(const Network<E>& net, int threads) {
    const int64_t bytes = net.layer_offset(1) * static_cast<int64_t>(sizeof(E));
    int64_t most = net.units().count() / 3;
    if (bytes / (1 << 15) < most) most = bytes / (1 << 15);
    return static_cast<int>(threads < most ? threads : most > 1 ? most : 1);
}

template <class E>
inline int generate(const Network<E>& net, const fusedmdn_generate& call) {
    Queue queue;
    if (call.B == 1) {
        Team* team = team_start(team_size(net, call.threads));
        if (!team) return FUSEDMDN_NO_MEMORY;
        Slots<E> slots(net, call, queue, team, 1);
        if (slots.ok()) slots.run();
        else queue.stop(FUSEDMDN_NO_MEMORY);
        team_stop(team);
        return queue.status;
    }
    const int threads = static_cast<int>(call.threads < call.B ? call.threads : call.B ? call.B : 1);
    const int64_t each = (call.B + threads - 1) / threads, rounds = (each + SLOTS - 1) / SLOTS;
    const int64_t capacity = rounds ? (each + rounds - 1) / rounds : 0;
    parallel(threads, [&](int, int) {
        Slots<E> slots(net, call, queue, nullptr, capacity);
        if (slots.ok()) slots.run();
        else queue.stop(FUSEDMDN_NO_MEMORY);
    });
    return queue.status;
}

}  // namespace
}  // namespace fusedmdn
