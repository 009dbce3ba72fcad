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
def log1p(x):
    """log(1 + x) for x in [0, 1]: log(w) x / (w - 1) with w = 1 + x undoes the rounding of w."""
    w = 1.0 + x
    rounded = w == 1.0
    return tl.where(rounded, x, tl.log(w) * (x / tl.where(rounded, 1.0, w - 1.0)))


@triton.jit
def softplus(x):
    """log(1 + e^x)."""
    return tl.where(x > 0, x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def clip(x, bound):
    """x in ±bound; NaN stays NaN."""
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))
