"""One LSTM step for a tile of (sequence, unit), forward and backward (G 7-11), in float32; and how its values lie.

    i = sigmoid(z_i + p_i c')    f = sigmoid(z_f + p_f c')    g = tanh(z_g)       c' the previous cell state
    c = f c' + i g               o = sigmoid(z_o + p_o c)     h = o tanh(c)

p are the diagonal peephole weights, anything without PEEPHOLE.
"""

import triton
import triton.language as tl

from .activations import clip, sigmoid, tanh


@triton.jit
def activate(z_i, z_f, z_g, z_o, c_prev, p_i, p_f, p_o, PEEPHOLE: tl.constexpr):
    """i, f, g, o and c."""
    if PEEPHOLE:
        z_i += p_i * c_prev
        z_f += p_f * c_prev
    i, f, g = sigmoid(z_i), sigmoid(z_f), tanh(z_g)
    c = f * c_prev + i * g
    if PEEPHOLE:
        z_o += p_o * c
    return i, f, g, sigmoid(z_o), c


@triton.jit
def differentiate(dh, dc, i, f, g, o, c_prev, c, p_i, p_f, p_o, bound, PEEPHOLE: tl.constexpr):
    """dz_i, dz_f, dz_g, dz_o and the previous dc, from dh, all of h's gradient, and dc, what later steps say of c's.

    All that lies upstream of a clipped value uses the clipped one (Graves, section 2.1).
    """
    tanh_c = tanh(c)
    dz_o = clip(dh * tanh_c * o * (1.0 - o), bound)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    if PEEPHOLE:
        dc += p_o * dz_o
    dz_i = clip(dc * g * i * (1.0 - i), bound)
    dz_f = clip(dc * c_prev * f * (1.0 - f), bound)
    dz_g = clip(dc * i * (1.0 - g * g), bound)
    dc_prev = dc * f
    if PEEPHOLE:
        dc_prev += p_i * dz_i + p_f * dz_f
    return dz_i, dz_f, dz_g, dz_o, dc_prev


@triton.jit
def load_gates(at, mask, H: tl.constexpr):
    """The values at `at`, `at` + H, … of the four gates i, f, g, o as float32; 0 where masked."""
    i = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    f = tl.load(at + H, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(at + 2 * H, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(at + 3 * H, mask=mask, other=0.0).to(tl.float32)
    return i, f, g, o


@triton.jit
def store_gates(at, i, f, g, o, live, mask, H: tl.constexpr):
    """Write them there, 0 where not live."""
    dtype = at.dtype.element_ty
    tl.store(at, tl.where(live, i, 0.0).to(dtype), mask=mask)
    tl.store(at + H, tl.where(live, f, 0.0).to(dtype), mask=mask)
    tl.store(at + 2 * H, tl.where(live, g, 0.0).to(dtype), mask=mask)
    tl.store(at + 3 * H, tl.where(live, o, 0.0).to(dtype), mask=mask)


@triton.jit
def load_peephole(peephole, units, known, H: tl.constexpr):
    """Its rows i, f, o at these units; zeros without one."""
    i = tl.zeros((units.shape[0],), tl.float32)
    f, o = i, i
    if peephole is not None:
        i = tl.load(peephole + units, mask=known, other=0.0)
        f = tl.load(peephole + H + units, mask=known, other=0.0)
        o = tl.load(peephole + 2 * H + units, mask=known, other=0.0)
    return i, f, o


@triton.jit
def length_of(lengths, b, B, T):
    """The lengths of sequences b as int32, 0 beyond B."""
    length = tl.where(b < B, T, 0)
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b, mask=b < B, other=0).to(tl.int32), T)
    return length
