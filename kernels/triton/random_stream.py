"""The random stream: a Philox4x32-10 block for every (seed, sequence, step), on every machine the same.

Key = seed, counter = (sequence low, sequence high, step, 0), 32 bits each (Salmon et al. 2011). Random123's known
answers and python/stream.py hold the words to the bit; normals agree to rounding.
"""

import triton
import triton.language as tl

from .activations import log

TURN = tl.constexpr(6.283185307179586)


@triton.jit
def noise_of(seed, sequence, step):
    """What a step draws with: the uniforms of the component and of the pen, and two standard normals."""
    u_0, u_1, u_2, u_3 = uniforms(seed, sequence, step)
    n_1, n_2 = normals(u_2, u_3)
    return u_0, u_1, n_1, n_2


@triton.jit
def uniforms(seed, sequence, step):
    """Four uniforms of a block, ((word >> 9) + 1/2) 2^-23; seed (scalar) and sequence are int64, step any integer."""
    low, high = sequence.to(tl.uint32), (sequence >> 32).to(tl.uint32)
    step = step.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, step, step * 0)
    return uniform(w0), uniform(w1), uniform(w2), uniform(w3)


@triton.jit
def uniform(word):
    """Exact in float32, never 0 or 1."""
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def normals(u, v):
    """Two standard normals of two uniforms (Box-Muller): sqrt(-2 ln u) times cos and sin of v turns."""
    radius = tl.sqrt(-2.0 * log(u))
    cosine, sine = cos_sin_turns(v)
    return radius * cosine, radius * sine


@triton.jit
def cos_sin_turns(v):
    """cos and sin of 2 pi v, 0 <= v < 1, to 1e-7: Cephes' polynomials on ±1/8 turn; no branch, no stack."""
    quarter = tl.floor(v * 4.0 + 0.5)
    x = (v - quarter * 0.25) * TURN
    z = x * x
    s = -1.9515295891e-4 * z + 8.3321608736e-3
    s = s * z - 1.6666654611e-1
    s = s * z * x + x
    c = 2.443315711809948e-5 * z - 1.388731625493765e-3
    c = c * z + 4.166664568298827e-2
    c = c * z * z - 0.5 * z + 1.0
    quarter = quarter.to(tl.int32) & 3
    odd = (quarter & 1) == 1
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where((quarter == 1) | (quarter == 2), -cosine, cosine), tl.where(quarter >= 2, -sine, sine)
