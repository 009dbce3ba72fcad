// Calls the kernels through the face as Python does, on arrays of exactly the size they should touch, and holds every
// output against scalar double precision (reference.h) and against itself: with other threads, for one sequence alone,
// in two calls. test_sanitizers.py builds this with sanitizers. Given any argument, it takes fewer sizes.
#include <algorithm>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../../kernels/cpu/face.h"
#include "reference.h"
#include "support.h"

extern "C" {
const char* fusedmdn_isa(std::int32_t k);
const char* fusedmdn_isa_in_use();
std::int32_t fusedmdn_use_isa(const char* name);
std::int32_t fusedmdn_run_lstm(const fusedmdn_lstm* a);
std::int32_t fusedmdn_run_lstm_backward(const fusedmdn_lstm_backward* a);
std::int32_t fusedmdn_run_mdn_nll(const fusedmdn_mdn* a);
std::int32_t fusedmdn_run_mdn_nll_backward(const fusedmdn_mdn* a);
void* fusedmdn_pack(const fusedmdn_network* n);
void fusedmdn_release(void* handle);
std::int32_t fusedmdn_run_generate(const void* handle, const fusedmdn_generate* a);
std::uint64_t fusedmdn_checksum(const void* const* data, const int64_t* bytes, std::int32_t count,
                                std::int32_t threads);
std::int64_t fusedmdn_peak(std::int32_t bf16, std::int32_t threads, std::int64_t rounds, float* sums);
void fusedmdn_read(const float* data, std::int64_t count, std::int32_t threads, std::int64_t rounds, float* sums);
int fusedmdn_philox_fill(std::uint64_t seed, std::uint64_t first_index, int64_t count, const int64_t* first_step,
                         int64_t steps, int normals, float* out);
}

namespace {

using reference::Mixture;

constexpr float NO_CLIP = std::numeric_limits<float>::infinity();

// The references round nothing to bf16 on the way.
template <class E>
constexpr double tolerance = is_bf16<E> ? 2e-2 : 1e-4;

// How this thread rounds and treats denormals; not which exceptions it has seen.
double float_control() {
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3fu;
#else
    return 0;
#endif
}

template <class F>
void on_every_isa(F check) {
    const std::string shape = place;
    for (int k = 0; const char* isa = fusedmdn_isa(k); ++k) {
        place = shape + ", " + isa;
        equal("use_isa", fusedmdn_use_isa(isa), FUSEDMDN_OK);
        equal("isa_in_use", std::strcmp(fusedmdn_isa_in_use(), isa), 0);
        const double before = float_control();
        check();
        equal("MXCSR", float_control(), before);
    }
}

// Temporary arrays among the fields of `arguments` live until this returns.
template <class Function, class Arguments>
void call(Function function, const Arguments& arguments, int wanted = FUSEDMDN_OK) {
    equal("status", function(&arguments), wanted);
}

// Rows (T, B, width) laid out batch first and some elements apart, NaN between them, if `apart`.
template <class E>
struct Strided {
    int64_t of_T, of_B;
    Array<E> data;

    Strided(const Tensor& rows, int64_t T, int64_t B, bool apart)
        : of_T(apart ? rows.width + 3 : B * rows.width), of_B(apart ? T * of_T : rows.width),
          data(static_cast<std::size_t>(rows.values.empty() ? 0 : (T - 1) * of_T + (B - 1) * of_B + rows.width)) {
        const int64_t count = rows.values.size(), width = rows.width;
        for (int64_t k = 0; k < count; ++k)
            data[k / width / B * of_T + k / width % B * of_B + k % width] = narrow<E>(rows.values[k]);
    }
};

// The arguments of an operator over T steps, and its outputs, are tensors by the names in face.h.
struct Case {
    int64_t T, B, H;  // H unused by the mixture
    Mixture mixture;  // unused by the LSTM
    bool strided;
    float clip;
    Tensors in;

    const Doubles& operator[](const char* name) const { return in.at(name).values; }
    int64_t length(int64_t b) const { return (*this)["lengths"].empty() ? T : (*this)["lengths"][b]; }
    Case alone(int64_t b) const { return {T, 1, H, mixture, strided, clip, of_sequence(in, B, b)}; }
};

template <class E>
Tensors lstm(const Case& n, int threads, bool save = true) {
    const std::size_t state = n.B * n.H, rows = n.T * state, saved = save ? rows : 0;
    const Array<E> h(rows), h_T(state), gates(saved * 4);
    const Array<float> c_T(state), cells(saved);
    call(fusedmdn_run_lstm,
         fusedmdn_lstm{n.T, n.B, n.H, is_bf16<E>, threads, 0, 0, Array<E>(n["xw"]), Array<E>(n["weight_hh"]),
                       Array<E>(n["h0"]), Array<float>(n["c0"]), Array<float>(n["peephole"]),
                       Array<int64_t>(n["lengths"]), h, h_T, c_T, gates, cells});
    Tensors out{{"h", {n.H, h}}, {"h_T", {n.H, h_T}}, {"c_T", {n.H, c_T}}};
    if (save) out.insert({{"gates", {4 * n.H, gates}}, {"cells", {n.H, cells}}});
    return out;
}

template <class E>
Tensors lstm_backward(const Case& n, int threads) {
    const std::size_t state = n.B * n.H;
    const Strided<E> grad_h(n.in.at("grad_h"), n.T, n.B, n.strided);
    const Array<E> dxw(n.T * state * 4);
    const Array<float> dh0(state), dc0(state), dpeephole(n.B * n["peephole"].size());
    call(fusedmdn_run_lstm_backward,
         fusedmdn_lstm_backward{n.T, n.B, n.H, is_bf16<E>, threads, n.clip, 0, grad_h.data, {grad_h.of_T, grad_h.of_B},
                                Array<float>(n["grad_h_T"]), Array<float>(n["grad_c_T"]), Array<E>(n["weight_hh"]),
                                Array<float>(n["c0"]), Array<float>(n["peephole"]), Array<int64_t>(n["lengths"]),
                                Array<E>(n["gates"]), Array<float>(n["cells"]), dxw, dh0, dc0, dpeephole});
    return {{"dxw", {4 * n.H, dxw}}, {"dh0", {n.H, dh0}}, {"dc0", {n.H, dc0}}, {"dpeephole", {3 * n.H, dpeephole}}};
}

template <class E>
Tensors mdn(const Case& n, int threads, bool want_target = true) {
    const Mixture& m = n.mixture;
    const std::size_t rows = n.T * n.B;
    const Strided<E> raw(n.in.at("raw"), n.T, n.B, n.strided);
    const Array<float> target(n["target"]), grad(n["grad"]), nll(rows), dtarget(want_target ? rows * m.I() : 0);
    const Array<int64_t> lengths(n["lengths"]);
    const Array<E> draw(rows * m.D());
    const fusedmdn_mdn arguments{n.T, n.B, m.M, is_bf16<E>, m.categorical, m.sigmoid_means, threads, n.clip, 0,
                                 raw.data, {raw.of_T, raw.of_B}, target, lengths, grad, nll, draw, dtarget};
    call(fusedmdn_run_mdn_nll, arguments);
    call(fusedmdn_run_mdn_nll_backward, arguments);
    Tensors out{{"nll", {1, nll}}, {"draw", {m.D(), draw}}};
    if (want_target) out["dtarget"] = {m.I(), dtarget};
    return out;
}

Tensors reference_mdn(const Case& n, int64_t length) {
    const Mixture& m = n.mixture;
    Doubles nll(n.T), draw(n.T * m.D()), dtarget(n.T * m.I());
    for (int64_t t = 0; t < length; ++t) {
        const double *raw = &n["raw"][t * m.D()], *target = &n["target"][t * m.I()];
        nll[t] = reference::nll(m, raw, target);
        reference::gradient(m, raw, target, n["grad"][t], n.clip, &draw[t * m.D()], &dtarget[t * m.I()]);
    }
    return {{"nll", {1, nll}}, {"draw", {m.D(), draw}}, {"dtarget", {m.I(), dtarget}}};
}

// reference(sequence, its length) of every sequence.
template <class F>
Tensors each_sequence(const Case& n, F reference) {
    Tensors all;
    for (int64_t b = 0; b < n.B; ++b) put_sequence(all, n.B, b, reference(n.alone(b), n.length(b)));
    return all;
}

// run(case, threads) against what is wanted (nothing: any finite value), and against itself.
template <class F>
void check_runs(const Case& n, const Tensors& wanted, double tolerance, F run) {
    const Tensors out = run(n, 1);
    finite(out);
    compare("", out, wanted, tolerance);
    for (const int threads : {2, 3}) compare(text(threads, " threads: "), run(n, threads), out, 0);
    for (int64_t b = 0; b < n.B; b += 1 + n.B / 3)
        compare(text("sequence ", b, " alone: "), run(n.alone(b), 3), of_sequence(out, n.B, b), 0);
}

template <class E>
void check_lstm(int64_t T, int64_t B, int64_t H) {
    const double small = 1 / std::sqrt(static_cast<double>(H));
    Case n{T, B, H, {}, coin(), coin() ? NO_CLIP : 0.02f, {}};
    n.in = {{"xw", random<E>(T * B, 4 * H, -2, 2)},
            {"weight_hh", random_weight<E>(4 * H * H, small)},
            {"h0", random<E>(B, H, -1, 1)},
            {"c0", random<float>(B, H, -1, 1)},
            {"peephole", random_weight<float>(coin() ? 3 * H : 0, 1)},
            {"lengths", coin() ? random_lengths(B, T) : Tensor{}},
            {"grad_h", random<E>(T * B, H, -1, 1)},
            {"grad_h_T", random<float>(B, H, -1, 1)},
            {"grad_c_T", random<float>(B, H, -1, 1)}};
    place = text("lstm", is_bf16<E> ? " bf16" : "", " T=", T, " B=", B, " H=", H,
                 n["peephole"].empty() ? "" : " peephole", n["lengths"].empty() ? "" : " ragged",
                 n.strided ? " strided" : "", " clip=", n.clip);
    Tensors forward = each_sequence(
        n, [](const Case& one, int64_t length) { return reference::lstm(one.in, length); });
    n.in["gates"] = rounded<E>(forward["gates"]);
    n.in["cells"] = rounded<float>(forward["cells"]);
    for (const char* name : {"xw", "grad_h", "gates", "cells"}) poison(n.in[name], n.in["lengths"]);
    const Tensors backward = each_sequence(
        n, [](const Case& one, int64_t length) { return reference::lstm_backward(one.in, length, one.clip); });
    on_every_isa([&] {
        check_runs(n, forward, tolerance<E>, [](const Case& c, int threads) { return lstm<E>(c, threads); });
        check_runs(n, backward, tolerance<E>, lstm_backward<E>);
        compare("nothing saved: ", lstm<E>(n, 1), lstm<E>(n, 2, false), 0);
    });
}

Tensor random_target(const Mixture& m, int64_t rows, double limit) {
    Tensor all = random<float>(rows, m.I(), -limit, limit);
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t state = below(m.P() + !m.categorical);
        for (int64_t k = 0; k < m.P(); ++k) all.values[r * m.I() + 2 + k] = k == state;
    }
    return all;
}

// Raw values and targets as large as `limit`; beyond 1, where float32 loses digits, any finite answer will do.
template <class E>
void check_mdn(int64_t T, int64_t B, const Mixture& m, double limit) {
    Case n{T, B, 0, m, coin(), coin() ? NO_CLIP : 0.3f, {}};
    n.in = {{"raw", random<E>(T * B, m.D(), -limit, limit)},
            {"target", random_target(m, T * B, limit)},
            {"grad", random<float>(T * B, 1, -1, 1)},
            {"lengths", coin() ? random_lengths(B, T) : Tensor{}}};
    place = text("mdn", is_bf16<E> ? " bf16" : "", " T=", T, " B=", B, " M=", m.M, m.categorical ? " categorical" : "",
                 m.sigmoid_means ? " sigmoid" : "", n["lengths"].empty() ? "" : " ragged", n.strided ? " strided" : "",
                 " clip=", n.clip, " limit=", limit);
    for (int64_t r = 0; r < T * B; r += 3) n.in["raw"].values[r * m.D() + m.P() + 3 * m.M] = 13;  // beyond the clamp
    for (const char* name : {"raw", "target", "grad"}) poison(n.in[name], n.in["lengths"]);
    const Tensors wanted = limit == 1 ? each_sequence(n, reference_mdn) : Tensors{};
    on_every_isa([&] {
        check_runs(n, wanted, tolerance<E>, [](const Case& c, int threads) { return mdn<E>(c, threads); });
        compare("no dtarget: ", mdn<E>(n, 1), mdn<E>(n, 2, false), 0);
    });
}

// The reference's own gradient, by central differences.
void check_reference(const Mixture& m) {
    place = text("reference M=", m.M, m.categorical ? " categorical" : "", m.sigmoid_means ? " sigmoid" : "");
    Doubles raw = random<float>(1, m.D(), -1, 1).values, target = random_target(m, 1, 1).values;
    Doubles draw(m.D()), dtarget(m.I());
    reference::gradient(m, raw.data(), target.data(), 1, NO_CLIP, draw.data(), dtarget.data());
    const auto compare_at = [&](double& value, double wanted, const std::string& what) {
        const double middle = value, step = 1e-5;
        value = middle + step;
        const double above = reference::nll(m, raw.data(), target.data());
        value = middle - step;
        const double slope = (above - reference::nll(m, raw.data(), target.data())) / (2 * step);
        value = middle;
        if (!(std::fabs(slope - wanted) <= 1e-6 * (1 + std::fabs(wanted)))) fail(what, wanted, slope);
    };
    for (int64_t k = 0; k < m.D(); ++k) compare_at(raw[k], draw[k], text("draw[", k, "]"));
    for (int64_t k = 0; k < 2; ++k) compare_at(target[k], dtarget[k], text("dtarget[", k, "]"));
}

// A call of the sampler: T steps; `in` is the state and the options, `weights` the network's, in the operator's order.
struct Sampling : Case {
    int64_t L, prime_steps;
    bool skip, peephole;
    std::uint64_t first_index;
    std::vector<Doubles> weights;
};

template <class E>
std::vector<Doubles> random_weights(const Sampling& n) {
    const int64_t I = n.mixture.I(), D = n.mixture.D(), H = n.H;
    std::vector<int64_t> sizes;
    for (int64_t layer = 0; layer < n.L; ++layer) {
        const int64_t inputs = layer == 0 ? I : H + n.skip * I;
        sizes.insert(sizes.end(), {4 * H * inputs, 4 * H * H, 4 * H, 4 * H});
        if (n.peephole) sizes.push_back(3 * H);
    }
    sizes.insert(sizes.end(), {D * H * (n.skip ? n.L : 1), D});
    std::vector<Doubles> all;
    const double small = 1 / std::sqrt(static_cast<double>(H));
    for (const int64_t size : sizes) all.push_back(random_weight<E>(size, small).values);
    return all;
}

template <class E>
void* pack(const Sampling& n, int threads) {
    std::vector<Array<E>> arrays;
    for (const Doubles& w : n.weights) arrays.emplace_back(w);
    const std::vector<const void*> pointers(arrays.begin(), arrays.end());
    const Mixture& m = n.mixture;
    const fusedmdn_network network{n.L, n.H, m.M, m.categorical, m.sigmoid_means, n.skip, n.peephole, is_bf16<E>,
                                   threads, pointers.data()};
    return fusedmdn_pack(&network);
}

template <class E>
Tensors generate(const void* handle, const Sampling& n, int threads, std::int32_t stop = 0) {
    const int64_t I = n.mixture.I();
    const std::size_t B = n.B, state = n.L * n.B * n.H;
    const Array<float> points(Doubles(n.T * B * I)), c(state), row(B * I);
    const Array<E> h(state);
    const Array<int64_t> lengths(B), drawn(B);
    const Array<std::uint8_t> done(B);
    const auto run = [&](const fusedmdn_generate* a) { return fusedmdn_run_generate(handle, a); };
    call(run,
         fusedmdn_generate{n.B, n.T, n.prime_steps, 7, n.first_index, threads, 0, Array<E>(n["h"]),
                           Array<float>(n["c"]), Array<float>(n["row"]), Array<int64_t>(n["drawn"]),
                           Array<std::uint8_t>(n["done"]), Array<float>(n["bias"]), Array<float>(n["temperature"]),
                           Array<float>(n["prime"]), Array<int64_t>(n["prime_lengths"]), points, lengths, h, c, row,
                           drawn, done, &stop},
         stop ? FUSEDMDN_INTERRUPTED : FUSEDMDN_OK);
    return {{"points", {I, points}}, {"lengths", {1, lengths}}, {"h", {n.H, h}},      {"c", {n.H, c}},
            {"row", {I, row}},       {"drawn", {1, drawn}},     {"done", {1, done}}};
}

// All in one call against `first` of its steps, and the rest in another.
template <class E>
void check_resumed(const void* handle, const Sampling& n, const Tensors& out, int64_t first) {
    Sampling part = n;
    part.T = first;
    Tensors before = generate<E>(handle, part, 2);
    part.T = n.T - first;
    part.prime_steps = 0;
    part.in["prime"] = part.in["prime_lengths"] = {};
    for (const char* name : {"h", "c", "row", "drawn", "done"}) part.in[name] = before[name];
    Tensors after = generate<E>(handle, part, 2);
    Doubles &points = before["points"].values, &more = after["points"].values;
    points.insert(points.end(), more.begin(), more.end());
    after["points"] = before["points"];
    for (int64_t b = 0; b < n.B; ++b) after["lengths"].values[b] += before["lengths"].values[b];
    compare(text("resumed after ", first, ": "), after, out, 0);
}

// What must hold of any sample: whoever has not ended has drawn all steps; the last row drawn is the state's, without
// an offset if it is an end; nothing lies beyond it.
void check_ends(const Sampling& n, const Tensors& batch) {
    const int64_t I = n.mixture.I();
    for (int64_t b = 0; b < n.B; ++b) {
        const Tensors out = of_sequence(batch, n.B, b);
        const Doubles &points = out.at("points").values, &row = out.at("row").values;
        const double drawn = out.at("drawn").values[0] - n["drawn"][b], done = out.at("done").values[0];
        equal("lengths", out.at("lengths").values[0], drawn - (done && drawn));
        if (!done) equal("drawn", drawn, n.T);
        for (int64_t k = 0; k < I && drawn; ++k) equal("row", row[k], points[(drawn - 1) * I + k]);
        for (int64_t k = 0; k < 2 && drawn && done; ++k) equal("offset of an end", row[k], 0);
        for (std::size_t k = drawn * I; k < points.size(); ++k) equal("points beyond the end", points[k], 0);
    }
}

template <class E>
void check_generate(int64_t T, int64_t B, int64_t H, const Mixture& m) {
    const int64_t L = 1 + below(3), prime_steps = below(4), I = m.I();
    Sampling n{{T, B, H, m, false, 0, {}}, L, prime_steps, coin(), coin(), random_bits(), {}};
    n.weights = random_weights<E>(n);
    n.in = {{"h", random<E>(L * B, H, -1, 1)},
            {"c", random<float>(L * B, H, -1, 1)},
            {"row", random<float>(B, I, -1, 1)},
            {"drawn", random_lengths(B, 9)},
            {"done", random_lengths(B, 1)},
            {"bias", random<float>(B, 1, 0, 1)},
            {"temperature", random<float>(B, 1, 0.5, 1.5)},
            {"prime", random<float>(B, prime_steps * I, -1, 1)},
            {"prime_lengths", prime_steps && coin() ? random_lengths(B, prime_steps) : Tensor{}}};
    for (int64_t k = 0; k < B * prime_steps * I && !n["prime_lengths"].empty(); ++k)
        if (k / I % prime_steps >= n["prime_lengths"][k / I / prime_steps]) n.in["prime"].values[k] = NAN;
    place = text("generate", is_bf16<E> ? " bf16" : "", " T=", T, " B=", B, " H=", H, " M=", m.M, " L=", L,
                 " prime=", prime_steps, n["prime_lengths"].empty() ? "" : " ragged", n.skip ? " skip" : "",
                 n.peephole ? " peephole" : "", m.categorical ? " categorical" : "",
                 m.sigmoid_means ? " sigmoid" : "");
    on_every_isa([&] {
        void* handle = pack<E>(n, 1 + static_cast<int>(below(3)));
        const Tensors out = generate<E>(handle, n, 1);
        finite(out);
        check_ends(n, out);
        for (const int threads : {2, 3}) compare(text(threads, " threads: "), generate<E>(handle, n, threads), out, 0);
        for (int64_t b = 0; b < B; b += 1 + B / 3) {
            Sampling one = n;
            one.B = 1;
            one.in = of_sequence(n.in, B, b);
            one.first_index += b;
            compare(text("sequence ", b, " alone: "), generate<E>(handle, one, 3), of_sequence(out, B, b), 0);
        }
        check_resumed<E>(handle, n, out, T / 2);
        generate<E>(handle, n, 2, 1);
        fusedmdn_release(handle);
    });
}

double checksum(const std::vector<Array<std::uint8_t>>& arrays, const std::vector<int64_t>& sizes, int threads) {
    const std::vector<const void*> pointers(arrays.begin(), arrays.end());
    const auto sum = fusedmdn_checksum(pointers.data(), sizes.data(), static_cast<std::int32_t>(sizes.size()), threads);
    return static_cast<double>(sum >> 11);  // what a double holds
}

void flip_signs(std::vector<Array<std::uint8_t>>& arrays, const std::vector<int64_t>& sizes, int width) {
    for (std::size_t k = 0; k < sizes.size(); ++k)
        for (int64_t at = width - 1; at < sizes[k]; at += width) arrays[k][at] ^= 0x80;
}

void check_checksum(const std::vector<int64_t>& sizes) {
    const int64_t largest = sizes.empty() ? 0 : *std::max_element(sizes.begin(), sizes.end());
    place = text("checksum of ", sizes.size(), " buffers, the largest of ", largest, " bytes");
    std::vector<Array<std::uint8_t>> arrays;
    for (const int64_t size : sizes) arrays.emplace_back(random<std::uint8_t>(size, 1, 0, 256).values);
    const double sum = checksum(arrays, sizes, 1);
    for (const int threads : {2, 3}) equal("with more threads, it", checksum(arrays, sizes, threads), sum);
    for (std::size_t k = 0; k < sizes.size(); ++k)
        for (int64_t at = 0; at < 8 * sizes[k]; at += 1 + sizes[k] / 99) {
            arrays[k][at / 8] ^= 1 << at % 8;
            if (checksum(arrays, sizes, 1) == sum) fail(text("with bit ", at, " of buffer ", k, " changed"), sum, NAN);
            arrays[k][at / 8] ^= 1 << at % 8;
        }
    for (const int width : {2, 4, 8}) {
        flip_signs(arrays, sizes, width);
        if (largest >= width && checksum(arrays, sizes, 1) == sum) fail("with all signs changed", sum, NAN);
        flip_signs(arrays, sizes, width);
    }
}

void check_philox(int64_t count, int64_t steps) {
    place = text("philox count=", count, " steps=", steps);
    for (const int normals : {0, 1}) {
        const std::size_t width = normals ? 2 : 4;
        const Array<float> all(count * (steps + 2) * width), later(count * steps * width);
        const Array<int64_t> first(Doubles(count, 2)), wrong(Doubles(count, (int64_t{1} << 32) - steps + 1));
        equal("status", fusedmdn_philox_fill(5, 3, count, nullptr, steps + 2, normals, all), 0);
        equal("status", fusedmdn_philox_fill(5, 3, count, first, steps, normals, later), 0);
        finite({{"out", {1, all}}});
        for (std::size_t i = 0, n = steps * width; i < count * n; ++i)
            equal("two steps on", later[i], all[i / n * (n + 2 * width) + 2 * width + i % n]);
        equal("status, too late", fusedmdn_philox_fill(5, 3, count, wrong, steps, normals, later), count ? 1 : 0);
    }
}

// The chains of peak.h: every round of every thread is done, and all threads end alike.
void check_peak(int threads) {
    place = text("peak threads=", threads);
    on_every_isa([&] {
        for (const bool bf16 : {false, true}) {
            const Array<float> start(threads), end(threads);
            const int64_t none = fusedmdn_peak(bf16, threads, 0, start), done = fusedmdn_peak(bf16, threads, 9, end);
            equal("without rounds", none, 0);
            if (bf16 && !done) continue;
            equal("of each thread", done % (9 * threads), 0);
            for (int part = 0; part < threads; ++part) equal("sum", end[part], end[0]);
            if (bf16) equal("growth", (end[0] - start[0]) / (1.5 * 9), done / 18 / threads);
            else equal("half-life", end[0] * 512, 2 * 511 * (done / 9 / threads) + start[0]);
        }
    });
}

void check_read(int64_t count, int threads) {
    place = text("read count=", count, " threads=", threads);
    on_every_isa([&] {
        const Array<float> data(Doubles(count, 2)), sums(threads);
        fusedmdn_read(data, count, threads, 3, sums);
        double total = 0;
        for (int part = 0; part < threads; ++part) total += sums[part];
        equal("sum", total, 2 * 3 * count);
    });
}

template <class E>
void check_operators(bool few) {
    using Sizes = std::vector<int64_t>;
    const Sizes Hs = few ? Sizes{7, 17} : Sizes{1, 2, 7, 16, 17, 33};
    const Sizes Bs = few ? Sizes{0, 1, 3, 13} : Sizes{0, 1, 2, 3, 7, 13, 130};
    for (const int64_t T : {0, 1, 5})
        for (const int64_t B : Bs) {
            for (const int64_t H : Hs) {
                check_lstm<E>(T, B, H);
                const Mixture mixture{Sizes{1, 2, 3, 20}[below(4)], coin(), coin()};
                check_generate<E>(T, B, H, mixture);
            }
            for (const int64_t M : {1, 2, 3, 20})
                for (const bool categorical : {false, true}) {
                    check_mdn<E>(T, B, {M, categorical, coin()}, 1);
                    if (T == 1) check_mdn<E>(T, B, {M, categorical, coin()}, 1e6);
                }
        }
    for (const int64_t B : {1, 3}) check_generate<E>(9, B, 131, {20, coin(), false});  // large enough that a team forms
}

}  // namespace

int main(int arguments, char**) {
    const bool few = arguments > 1;
    equal("use_isa of an unknown one", fusedmdn_use_isa("unknown"), FUSEDMDN_INVALID);
    for (const int64_t M : {1, 3})
        for (int options = 0; options < 4; ++options) check_reference({M, options % 2 != 0, options / 2 != 0});
    check_operators<float>(few);
    check_operators<bf16>(few);
    using Sizes = std::vector<int64_t>;
    for (const auto& sizes : {Sizes{}, {0}, {1}, {0, 7}, {64, 65}, {4, 200, 127}, {256}, {(1 << 18) + 4}})
        check_checksum(sizes);
    for (const int64_t count : {0, 1, 3}) check_philox(count, 4);
    for (const int threads : {1, 3}) {
        check_peak(threads);
        for (const int64_t count : {0, 1, 129, 1000}) check_read(count, threads);
    }
    std::printf(failures ? "%d failures\n" : "all right\n", failures);
    return failures != 0;
}
