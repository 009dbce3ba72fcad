"""What the samplers' plans share: how weights and state lie, a layer's input, its cell, and which row is read next.

N is 4H, padded: columns come unit by unit, gate by gate (i, f, g, o), so that a tile of units is contiguous. K is H and
DP is D, padded; what is padded is zero.

    weights    (2L - 1, K, N)    for each layer what reads the layer below (not for the first), then what reads itself
    inputs     (L, I + 1, N)     float32: what reads the stroke's row, zero if the layer does not; then the two biases
    peephole   (L, 3, H)         float32, rows i, f, o; or None
    head       (S, K, DP)        for each layer that the head reads, all or the last; head_bias (DP) float32

State of B sequences: h (2, L, B, H), step t reads h[t % 2] and writes h[(t + 1) % 2]; c (L, B, H) float32; row (B, I)
float32, the input of the next step; stops (B) int32: step t is a sequence's own if t < stop, and nothing of it changes
from then on. prime (B, TP, I) float32: primed (B) int64 of its rows are read after the first row. Without a prime these
are zeros, and what prime points to is not read: one compilation, so that a call that goes on has the same bits.
"""

import triton
import triton.language as tl

from .activations import tanh
from .cell import activate, load_peephole


@triton.jit
def place(n, b, going, columns, known, B, WIDTH: tl.constexpr):
    """Where columns (C) of sequences b (R) lie in (·, B, WIDTH) at n: (R, C), and a mask: going and known."""
    return (n * B + b)[:, None] * WIDTH + columns[None, :], going[:, None] & known[None, :]


@triton.jit
def add_input(z, x, inputs, columns, weights, reads, I: tl.constexpr, N: tl.constexpr):
    """z (R, columns) plus the bias and, if the layer reads the row x (I columns), their product.

    x is rounded to the weights' dtype, as the reference rounds it.
    """
    z += tl.load(inputs + I * N + columns)[None, :]
    if reads:
        for i in tl.static_range(I):
            x_i = x[i].to(weights.dtype.element_ty).to(tl.float32)
            z += x_i[:, None] * tl.load(inputs + i * N + columns)[None, :]
    return z


@triton.jit
def finish(z, h, c, peephole, n, at, units, live, H: tl.constexpr, UNITS: tl.constexpr):
    """Layer n's cell (cell.py) of z (R, 4 UNITS) and c at `at`: h is stored there; gives the new c, to be stored."""
    even, odd = tl.split(tl.reshape(z, (z.shape[0], UNITS, 2, 2)))
    z_i, z_g = tl.split(even)
    z_f, z_o = tl.split(odd)
    if peephole is not None:
        peephole += n * 3 * H
    p_i, p_f, p_o = load_peephole(peephole, units, units < H, H)
    before = tl.load(c + at, mask=live, other=0.0)
    _, _, _, o, after = activate(z_i, z_f, z_g, z_o, before, p_i, p_f, p_o, peephole is not None)
    tl.store(h + at, (o * tanh(after)).to(h.dtype.element_ty), mask=live)
    return after


@triton.jit
def chosen_row(x, drawn, given, t, row, prime, b, TP, I: tl.constexpr):
    """x where drawn; where given the row that comes after step t: the first one before step 0, else the prime's."""
    at = tl.where(t < 0, row + b * I, prime + (b * TP + t) * I)
    columns = ()
    for i in tl.static_range(I):
        columns = columns + (tl.where(drawn, x[i], tl.load(at + i, mask=given, other=0.0)),)
    return columns


@triton.jit
def load_row(row, b, B, I: tl.constexpr):
    """A row's columns, (R) each."""
    columns = ()
    for i in tl.static_range(I):
        columns = columns + (tl.load(row + b * I + i, mask=b < B, other=0.0),)
    return columns


@triton.jit
def store_row(x, at, mask, I: tl.constexpr):
    """Write a row's columns at `at` (R), at + 1, … ."""
    for i in tl.static_range(I):
        tl.store(at + i, x[i], mask=mask)
