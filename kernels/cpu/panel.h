// Matrix products with packed weights: acc[r][v] += sum_k x[r][k] W[k][column (v, lane)].
//
// Weights are packed once into panels of NV <= 4 vectors of columns; inside a panel k runs slowest, so that a pass over it
// reads memory in order, and a tile of R rows keeps R x NV accumulators in registers. The sum over k is one chain in
// order of k for every R, so a row's result is bitwise the same whichever rows share its tile.
//
//   float  panel[k][v][lane]
//   bf16   panel[k / 2][v][lane][k % 2], K padded to even with zeros: what vdpbf16ps multiplies. Elsewhere both halves are
//          widened. Products and sums are float32; vdpbf16ps takes denormal bf16 as zero.
#pragma once

#include "threads.h"
#include "vec.h"

namespace fusedmdn {
namespace {

using std::int64_t;

#define ALWAYS_INLINE __attribute__((always_inline)) inline

inline int64_t padded(int64_t K, float) { return K; }
inline int64_t padded(int64_t K, bf16) { return K + K % 2; }

// How far ahead a single row's pass prefetches: it is bound by memory, and the hardware stops at every page.
constexpr int PREFETCH = 8192;

template <int R, int NV>
ALWAYS_INLINE void product(const float*& w, int64_t K, const float* const (&x)[R], V (&acc)[R][NV]) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; ++k, w += NV * LANES) {
        V wk[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            wk[v] = load(w + v * LANES);
            if (R == 1 && v * LANES % 16 == 0) __builtin_prefetch(reinterpret_cast<const char*>(w + v * LANES) + PREFETCH);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const V xk = splat(x[r][k]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] = fma(wk[v], xk, acc[r][v]);
        }
    }
}

// One pair of k of one row, low half first
inline std::uint32_t pair(const bf16* x) {
    std::uint32_t both;
    std::memcpy(&both, x, sizeof both);
    return both;
}

inline V multiply_pairs(U w, std::uint32_t x, V acc) {
#if defined(__AVX512BF16__)
    typedef __m512bh B;
    return reinterpret_cast<V>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(acc), reinterpret_cast<B>(w), reinterpret_cast<B>(U{} + x)));
#else
    const U both = U{} + x;
    acc = fma(reinterpret_cast<V>(w << 16), reinterpret_cast<V>(both << 16), acc);
    return fma(reinterpret_cast<V>(w & 0xffff0000u), reinterpret_cast<V>(both & 0xffff0000u), acc);
#endif
}

template <int R, int NV>
ALWAYS_INLINE void product(const bf16*& w, int64_t K, const bf16* const (&x)[R], V (&acc)[R][NV]) {
    const auto step = [&](auto read) {
        U wk[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            std::memcpy(&wk[v], w + v * 2 * LANES, sizeof(U));
            if (R == 1 && v * LANES % 16 == 0) __builtin_prefetch(reinterpret_cast<const char*>(w + v * 2 * LANES) + PREFETCH);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const std::uint32_t both = read(x[r]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] = multiply_pairs(wk[v], both, acc[r][v]);
        }
        w += NV * 2 * LANES;
    };
#pragma GCC unroll 4
    for (int64_t k = 0; k + 1 < K; k += 2) step([k](const bf16* row) { return pair(row + k); });
    if (K % 2) step([K](const bf16* row) { return std::uint32_t{row[K - 1]}; });
}

// A matrix W (columns x K) to be packed: element (n, k) is data[n * column_stride + k * k_stride].
template <class E>
struct Plain {
    const E* data;
    int64_t K, column_stride, k_stride;
};

inline void put(float* panel, int NV, int64_t k, int column, float value) { panel[k * NV * LANES + column] = value; }
inline void put(bf16* panel, int NV, int64_t k, int column, bf16 value) {
    panel[(k / 2 * NV * LANES + column) * 2 + k % 2] = value;
}

// Packs a panel of NV vectors of columns; column_of(v, lane) < 0 is a column of zeros. Returns the end of what it wrote.
// The inner loop runs along whichever dimension is contiguous.
template <class E, class F>
inline E* pack_panel(E* out, const Plain<E>& w, int NV, F column_of) {
    const int64_t K = padded(w.K, E{});
    int64_t from[4 * LANES];
    for (int c = 0; c < NV * LANES; ++c) from[c] = column_of(c / LANES, c % LANES);
    const auto value = [&](int64_t k, int c) { return from[c] < 0 ? E{} : w.data[from[c] * w.column_stride + k * w.k_stride]; };
    if (w.k_stride == 1) {
        for (int c = 0; c < NV * LANES; ++c)
            for (int64_t k = 0; k < w.K; ++k) put(out, NV, k, c, value(k, c));
    } else {
        for (int64_t k = 0; k < w.K; ++k)
            for (int c = 0; c < NV * LANES; ++c) put(out, NV, k, c, value(k, c));
    }
    for (int64_t k = w.K; k < K; ++k)
        for (int c = 0; c < NV * LANES; ++c) put(out, NV, k, c, E{});
    return out + K * NV * LANES;
}

// The panels of an LSTM layer: panel p holds the four gates of units p LANES .. p LANES + LANES - 1.
struct UnitPanels {
    int64_t H;
    int64_t count() const { return (H + LANES - 1) / LANES; }
    int64_t width(int64_t p) const { return p + 1 < count() ? LANES : H - p * LANES; }  // units in it
    auto columns(int64_t p) const {
        return [H = H, p](int gate, int lane) {
            const int64_t unit = p * LANES + lane;
            return unit < H ? gate * H + unit : int64_t{-1};
        };
    }
};

// The panels of a plain product with N columns: four vectors each but the last, which has what is left.
struct ColumnPanels {
    int64_t N;
    int64_t vectors() const { return (N + LANES - 1) / LANES; }
    int64_t count() const { return (vectors() + 3) / 4; }
    int NV(int64_t p) const { return static_cast<int>(p + 1 < count() ? 4 : vectors() - 4 * p); }
    auto columns(int64_t p) const {
        return [N = N, p](int v, int lane) {
            const int64_t column = (4 * p + v) * LANES + lane;
            return column < N ? column : int64_t{-1};
        };
    }
};

template <int N>
struct Constant {
    static constexpr int value = N;
};

// f(Constant<R>, first) over groups of R <= ROWS rows, as equal as can be: short groups would starve the multipliers.
template <class F>
inline void in_tiles(int64_t rows, F f) {
    int64_t first = 0;
    for (int64_t tiles = (rows + ROWS - 1) / ROWS; tiles > 0; --tiles) {
        const int64_t R = (rows - first + tiles - 1) / tiles;
        switch (R) {
            case 1: f(Constant<1>{}, first); break;
            case 2: f(Constant<2>{}, first); break;
            case 3: f(Constant<3>{}, first); break;
#if defined(__AVX512F__) || defined(__aarch64__)
            case 4: f(Constant<4>{}, first); break;
            case 5: f(Constant<5>{}, first); break;
            case 6: f(Constant<6>{}, first); break;
#endif
        }
        first += R;
    }
}

// f(Constant<NV>) for 1 <= NV <= 4
template <class F>
inline void with_vectors(int NV, F f) {
    switch (NV) {
        case 1: return f(Constant<1>{});
        case 2: return f(Constant<2>{});
        case 3: return f(Constant<3>{});
        default: return f(Constant<4>{});
    }
}

}  // namespace
}  // namespace fusedmdn
