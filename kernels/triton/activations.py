"""Scalar functions in float32, accurate near zero too, from operations that every Triton and its interpreter have."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x); 0 and 1 at the ends, never NaN for a number."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """By e^-2|x|, which cannot overflow; below 0.625 by a polynomial (Cephes' tanhf), since the other cancels there."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    large = (1.0 - e) / (1.0 + e)
    z = x * x
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    return tl.where(a < 0.625, x + x * z * p, tl.where(x < 0, -large, large))


@triton.jit
def exp(x):
    """e^x for |x| <= 80, to an ulp (Cephes' expf).

    tl.exp is a few ulps off for larger |x|, as its x log2(e) is rounded: too much for what is squared afterwards.
    """
    n = tl.floor(x * 1.44269504088896341 + 0.5)
    x = x - n * 0.693359375 + n * 2.12194440e-4
    p = 1.9875691500e-4 * x + 1.3981999507e-3
    p = p * x + 8.3334519073e-3
    p = p * x + 4.1665795894e-2
    p = p * x + 1.6666665459e-1
    p = p * x + 5.0000001201e-1
    return (p * x * x + x + 1.0) * tl.exp2(n)


@triton.jit
def log(x):
    """log x of a normal number > 0, infinity or NaN, to an ulp (Cephes' logf).

    tl.log is only good to 2^-22 near 1, whatever small number is right there.
    """
    bits = x.to(tl.int32, bitcast=True)
    m = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)  # x = m 2^n, m in [1/2, 1)
    low = m < 0.70710678118654752
    n = ((bits >> 23) - 126 - low.to(tl.int32)).to(tl.float32)
    m = tl.where(low, m + m, m) - 1.0
    z = m * m
    p = 7.0376836292e-2 * m - 1.1514610310e-1
    p = p * m + 1.1676998740e-1
    p = p * m - 1.2420140846e-1
    p = p * m + 1.4249322787e-1
    p = p * m - 1.6668057665e-1
    p = p * m + 2.0000714765e-1
    p = p * m - 2.4999993993e-1
    p = p * m + 3.3333331174e-1
    y = p * m * z - 2.12194440e-4 * n - 0.5 * z
    return tl.where(x < float("inf"), m + y + 0.693359375 * n, x)


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1]: log(w) x / (w - 1) with w = 1 + x undoes the rounding of w."""
    w = 1.0 + x
    rounded = w == 1.0
    return tl.where(rounded, x, log(w) * (x / tl.where(rounded, 1.0, w - 1.0)))


@triton.jit
def softplus(x):
    """log(1 + e^x)."""
    return tl.where(x > 0, x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def clip(x, bound):
    """x in ±bound; NaN stays NaN."""
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))
