// What the checks share: tensors in double precision, arrays of an exact size, comparisons that say where they failed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using std::int64_t;
using bf16 = std::uint16_t;  // the upper half of a float
using Doubles = std::vector<double>;

template <class E>
constexpr bool is_bf16 = sizeof(E) == 2;

template <class T>
T narrow(double value) {
    if constexpr (!is_bf16<T>) return static_cast<T>(value);
    const float single = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    return static_cast<T>(value != value ? 0xffff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
double widen(T value) {
    if constexpr (!is_bf16<T>) return static_cast<double>(value);
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float single;
    std::memcpy(&single, &bits, sizeof single);
    return single;
}

// On the heap, of exactly this size, so that a sanitizer sees one element too many; null where empty, as in torch. What
// is not given is filled with bits that are NaN, or -1.
template <class T>
class Array {
public:
    explicit Array(std::size_t count) : count(count), memory(count ? new T[count] : nullptr) {
        if (count) std::memset(memory.get(), 0xff, count * sizeof(T));
    }
    explicit Array(const Doubles& values) : Array(values.size()) {
        for (std::size_t k = 0; k < count; ++k) memory[k] = narrow<T>(values[k]);
    }
    operator T*() const { return memory.get(); }
    operator Doubles() const {
        Doubles values(count);
        for (std::size_t k = 0; k < count; ++k) values[k] = widen(memory[k]);
        return values;
    }

private:
    std::size_t count;
    std::unique_ptr<T[]> memory;
};

// Of shape (steps, B, width), or, with no width, the same for every sequence. Every value is exact in the type that the
// kernels see, so equal doubles are equal bits. Empty: not given.
struct Tensor {
    int64_t width;
    Doubles values;
};

using Tensors = std::map<std::string, Tensor>;

inline Tensors of_sequence(const Tensors& batch, int64_t B, int64_t b) {
    Tensors one;
    for (const auto& [name, all] : batch) {
        Doubles values = all.width ? Doubles() : all.values;
        for (std::size_t at = b * all.width; all.width && at < all.values.size(); at += B * all.width)
            values.insert(values.end(), all.values.begin() + at, all.values.begin() + at + all.width);
        one[name] = {all.width, std::move(values)};
    }
    return one;
}

// Its inverse, one sequence at a time.
inline void put_sequence(Tensors& batch, int64_t B, int64_t b, const Tensors& one) {
    for (const auto& [name, own] : one) {
        Tensor& all = batch[name];
        all.width = own.width;
        all.values.resize(own.values.size() * B);
        for (std::size_t k = 0; k < own.values.size(); ++k)
            all.values[(k / own.width * B + b) * own.width + k % own.width] = own.values[k];
    }
}

inline std::uint64_t random_bits() {  // splitmix64
    static std::uint64_t state = 0;
    std::uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

inline bool coin() { return random_bits() >> 63; }
inline int64_t below(int64_t n) { return static_cast<int64_t>(random_bits() % static_cast<std::uint64_t>(n)); }

template <class E>
Tensor rounded(Tensor tensor) {
    for (double& v : tensor.values) v = widen(narrow<E>(v));
    return tensor;
}

template <class E>
Tensor random(int64_t rows, int64_t width, double low, double high) {
    Tensor all{width, Doubles(rows * width)};
    for (double& v : all.values) v = low + (high - low) * static_cast<double>(random_bits() >> 11) * 0x1p-53;
    return rounded<E>(all);
}

template <class E>
Tensor random_weight(int64_t count, double limit) {
    return {0, random<E>(1, count, -limit, limit).values};
}

inline Tensor random_lengths(int64_t B, int64_t T) {
    Tensor lengths{1, Doubles(B)};
    for (double& v : lengths.values) v = static_cast<double>(below(T + 1));
    return lengths;
}

// NaN in every row beyond its sequence's length, if there are lengths.
inline void poison(Tensor& tensor, const Tensor& lengths) {
    const std::size_t B = lengths.values.size();
    for (std::size_t k = 0; B && k < tensor.values.size(); ++k)
        if (k / tensor.width / B >= lengths.values[k / tensor.width % B]) tensor.values[k] = NAN;
}

template <class... Args>
std::string text(const Args&... args) {
    std::ostringstream all;
    (all << ... << args);
    return all.str();
}

inline std::string place;  // the case in hand
inline int failures = 0;

inline void fail(const std::string& what, double got, double wanted) {
    std::printf("FAILED %s: %s is %.9g, not %.9g\n", place.c_str(), what.c_str(), got, wanted);
    if (++failures == 20) std::exit(1);
}

inline void equal(const char* what, double got, double wanted) {
    if (got != wanted) fail(what, got, wanted);
}

// Every tensor of `wanted`, within `tolerance` of its largest value, or of 0.1; 0 is bitwise, and NaN is never right.
// `how` the output came about.
inline void compare(const std::string& how, const Tensors& output, const Tensors& wanted, double tolerance) {
    for (const auto& [name, tensor] : wanted) {
        const Doubles &got = output.at(name).values, &exact = tensor.values;
        if (got.size() != exact.size()) return fail(text(how, name, ".size"), got.size(), exact.size());
        double largest = 0.1;
        for (const double v : exact) largest = std::fmax(largest, std::fabs(v));
        for (std::size_t k = 0; k < got.size(); ++k) {
            const bool same_zero = tolerance || std::signbit(got[k]) == std::signbit(exact[k]);
            if (!(std::fabs(got[k] - exact[k]) <= tolerance * largest && same_zero))
                return fail(text(how, name, "[", k, "]"), got[k], exact[k]);
        }
    }
}

inline void finite(const Tensors& output) {
    for (const auto& [name, tensor] : output)
        for (std::size_t k = 0; k < tensor.values.size(); ++k)
            if (!std::isfinite(tensor.values[k])) return fail(text(name, "[", k, "]"), tensor.values[k], 0);
}
