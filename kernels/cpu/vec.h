// Vectors of LANES floats, and the few functions of them that the kernels need, in plain code that GCC and Clang turn
// into the instructions of whatever processor they compile for.
//
// Every function is within 2 units in the last place over its whole range, keeps NaN, and treats infinities and denormals
// as IEEE 754 does. Nothing is contracted behind our back (-ffp-contract=off): a lane's result depends on that lane alone.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fusedmdn {
namespace {

// ROWS: how many rows times four vectors of accumulators the registers hold.
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 3;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 3;
#endif

typedef float V __attribute__((vector_size(4 * LANES)));
typedef std::int32_t I __attribute__((vector_size(4 * LANES)));
typedef std::uint32_t U __attribute__((vector_size(4 * LANES)));
typedef std::uint16_t bf16;  // the upper half of a float
typedef bf16 H __attribute__((vector_size(2 * LANES)));

inline V splat(float a) { return a - V{}; }  // a - 0 keeps the sign of -0

inline V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline V load(const bf16* p) {
    H h;
    std::memcpy(&h, p, sizeof h);
    return reinterpret_cast<V>(__builtin_convertvector(h, U) << 16);
}

inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }

// Rounds to nearest, ties to even; NaN stays one.
inline void store(bf16* p, V v) {
    const U u = reinterpret_cast<U>(v);
    const U rounded = v == v ? (u + 0x7fff + ((u >> 16) & 1)) >> 16 : (u >> 16) | 0x40;
    const H h = __builtin_convertvector(rounded, H);
    std::memcpy(p, &h, sizeof h);
}

// The first n lanes, n <= LANES; the others are zero.
template <class E>
inline V load_first(const E* p, std::int64_t n) {
    if (n >= LANES) return load(p);
    E lanes[LANES] = {};
    for (int k = 0; k < n; ++k) lanes[k] = p[k];
    return load(lanes);
}

template <class E>
inline void store_first(E* p, V v, std::int64_t n) {
    if (n >= LANES) return store(p, v);
    E lanes[LANES];
    store(lanes, v);
    for (int k = 0; k < n; ++k) p[k] = lanes[k];
}

inline float widen(bf16 a) {
    const std::uint32_t u = std::uint32_t{a} << 16;
    float f;
    std::memcpy(&f, &u, sizeof f);
    return f;
}

inline float widen(float a) { return a; }

// a b + c, rounded once where the processor can
inline V fma(V a, V b, V c) {
#if defined(__AVX512F__)
    return reinterpret_cast<V>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<V>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
    return reinterpret_cast<V>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
    return a * b + c;
#endif
}

inline V sqrt(V a) {
#if defined(__AVX512F__)
    return reinterpret_cast<V>(_mm512_sqrt_ps(reinterpret_cast<__m512>(a)));
#elif defined(__AVX2__)
    return reinterpret_cast<V>(_mm256_sqrt_ps(reinterpret_cast<__m256>(a)));
#else
    for (int k = 0; k < LANES; ++k) a[k] = __builtin_sqrtf(a[k]);
    return a;
#endif
}

inline V max(V a, V b) { return a > b ? a : b; }
inline V abs(V a) { return reinterpret_cast<V>(reinterpret_cast<I>(a) & 0x7fffffff); }

// NaN stays: these instructions give their second operand where either is one.
inline V clamp(V a, float low, float high) {
#if defined(__AVX512F__)
    const __m512 raised = _mm512_max_ps(_mm512_set1_ps(low), reinterpret_cast<__m512>(a));
    return reinterpret_cast<V>(_mm512_min_ps(_mm512_set1_ps(high), raised));
#elif defined(__AVX2__)
    const __m256 raised = _mm256_max_ps(_mm256_set1_ps(low), reinterpret_cast<__m256>(a));
    return reinterpret_cast<V>(_mm256_min_ps(_mm256_set1_ps(high), raised));
#else
    a = a < low ? splat(low) : a;
    return a > high ? splat(high) : a;
#endif
}

inline bool any(I mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#else
    std::int32_t found = 0;
    for (int k = 0; k < LANES; ++k) found |= mask[k];
    return found != 0;
#endif
}

// p 2^n for integral n in [-150, 128]
inline V scale(V p, V n, I i) {
#if defined(__AVX512F__)
    (void)i;
    return reinterpret_cast<V>(_mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
    (void)n;
    const I half = i >> 1;  // in two steps, so that either factor is a normal number
    return p * reinterpret_cast<V>((half + 127) << 23) * reinterpret_cast<V>((i - half + 127) << 23);
#endif
}

// x = n log 2 + r: n as a float and as an integer, and e^r - 1, |r| <= log(2) / 2 (Cody and Waite; a minimax polynomial,
// 4e-9 of e^r off at most)
struct Reduced {
    V n;
    I i;
    V expm1_r;
};

inline Reduced reduce(V x) {
    const V shifted = fma(x, splat(1.44269504088896341f), splat(12582912.0f));  // 1.5 2^23 leaves the nearest integer
    const V n = shifted - 12582912.0f;
    V r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    V p = splat(1.3814595e-3f);
    p = fma(p, r, splat(8.3687445e-3f));
    p = fma(p, r, splat(4.1668390e-2f));
    p = fma(p, r, splat(1.6666521e-1f));
    p = fma(p, r, splat(4.9999994e-1f));
    return {n, reinterpret_cast<I>(shifted) - 0x4b400000, fma(r * r, p, r)};
}

inline V exp(V x) {
    const Reduced q = reduce(clamp(x, -104.0f, 89.0f));  // e^-104 rounds to 0, e^89 to infinity
    return scale(q.expm1_r + 1.0f, q.n, q.i);
}

inline V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }

// -t / (2 + t) with t = e^(-2|x|) - 1, which loses no digits near zero
inline V tanh(V x) {
    const V a = abs(x);
    const Reduced q = reduce((a > 20.0f ? splat(20.0f) : a) * -2.0f);
    const V two_n = reinterpret_cast<V>((q.i + 127) << 23);
    const V t = fma(two_n, q.expm1_r, two_n - 1.0f);
    const V y = -t / (2.0f + t);
    return reinterpret_cast<V>(reinterpret_cast<I>(y) | (reinterpret_cast<I>(x) & static_cast<std::int32_t>(0x80000000)));
}

// Cephes' logf: x = 2^e m, m in [1/sqrt 2, sqrt 2)
inline V log(V x) {
    const I tiny = x < 1.17549435e-38f;
    const V scaled = tiny ? x * 8388608.0f : x;
    const I bits = reinterpret_cast<I>(scaled);
    const I exponent = (bits - 0x3f3504f3) >> 23;
    const V m = reinterpret_cast<V>(bits - (exponent << 23));
    const V e = __builtin_convertvector(exponent, V) - (tiny ? splat(23.0f) : V{});
    const V t = m - 1.0f, z = t * t;
    V p = splat(7.0376836292e-2f);
    p = fma(p, t, splat(-1.1514610310e-1f));
    p = fma(p, t, splat(1.1676998740e-1f));
    p = fma(p, t, splat(-1.2420140846e-1f));
    p = fma(p, t, splat(1.4249322787e-1f));
    p = fma(p, t, splat(-1.6668057665e-1f));
    p = fma(p, t, splat(2.0000714765e-1f));
    p = fma(p, t, splat(-2.4999993993e-1f));
    p = fma(p, t, splat(3.3333331174e-1f));
    V y = p * t * z;
    y = fma(e, splat(-2.12194440e-4f), y);
    y = fma(z, splat(-0.5f), y);
    y = fma(e, splat(0.693359375f), t + y);
    const V infinity = splat(__builtin_inff());
    y = x == infinity ? infinity : y;
    y = x == V{} ? -infinity : y;
    return x < 0.0f || x != x ? splat(__builtin_nanf("")) : y;
}

// log(1 + x) for x >= 0: what 1 + x rounds away is put back to first order
inline V log1p(V x) {
    const V u = 1.0f + x;
    return log(u) - ((u - 1.0f) - x) / u;
}

// cos(2 pi u) and sin(2 pi u) for u in [0, 1]: the reduction to an eighth of the circle is exact
inline void cos_sin_turns(V u, V& cosine, V& sine) {
    const V shifted = 4.0f * u + 12582912.0f;
    const I quadrant = reinterpret_cast<I>(shifted) - 0x4b400000;
    const V x = (4.0f * u - (shifted - 12582912.0f)) * 1.57079632679489662f, z = x * x;
    V s = splat(-1.9515295891e-4f);
    s = fma(s, z, splat(8.3321608736e-3f));
    s = fma(s, z, splat(-1.6666654611e-1f));
    s = fma(s * z, x, x);
    V c = splat(2.443315711809948e-5f);
    c = fma(c, z, splat(-1.388731625493765e-3f));
    c = fma(c, z, splat(4.166664568298827e-2f));
    c = fma(c * z, z, fma(z, splat(-0.5f), splat(1.0f)));
    const I odd = (quadrant & 1) != 0;
    cosine = odd ? s : c;
    sine = odd ? c : s;
    cosine = ((quadrant + 1) & 2) != 0 ? -cosine : cosine;
    sine = (quadrant & 2) != 0 ? -sine : sine;
}

// Transposes LANES vectors in place: log2(LANES) perfect shuffles.
#if defined(__clang__) || __GNUC__ >= 12
#define FUSEDMDN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FUSEDMDN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif
#if defined(__AVX512F__)
inline V zip_low(V a, V b) { return FUSEDMDN_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
inline V zip_high(V a, V b) { return FUSEDMDN_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); }
#elif defined(__AVX2__)
inline V zip_low(V a, V b) { return FUSEDMDN_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline V zip_high(V a, V b) { return FUSEDMDN_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline V zip_low(V a, V b) { return FUSEDMDN_SHUFFLE(a, b, 0, 4, 1, 5); }
inline V zip_high(V a, V b) { return FUSEDMDN_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif
#undef FUSEDMDN_SHUFFLE

inline void transpose(V (&v)[LANES]) {
    for (int stage = 1; stage < LANES; stage *= 2) {
        V w[LANES];
        for (int k = 0; k < LANES / 2; ++k) {
            w[2 * k] = zip_low(v[k], v[k + LANES / 2]);
            w[2 * k + 1] = zip_high(v[k], v[k + LANES / 2]);
        }
        for (int k = 0; k < LANES; ++k) v[k] = w[k];
    }
}

}  // namespace
}  // namespace fusedmdn
