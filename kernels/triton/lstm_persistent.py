"""The LSTM recurrence over hoisted input projections in one cooperative launch each way, weights on chip for all steps.

    forward    z_t = xw_t + h_{t-1} W^T                  then the cell (cell.py)
    backward   dh_t = grad_h_t + dz_{t+1} W              then its gradients

Grid (NP, G). Program (p, g) owns the UNITS hidden units from p UNITS on, in every step, and keeps their slice of W on
chip; its sequences are the tiles of ROWS sequences g, g + G, … . A step needs what all NP programs made of its tile in
the step before: h_{t-1} forward, dz_{t+1} backward, exchanged through the output itself (never overwritten, so there is
nothing to wait for but its being there) with one barrier a step and tile. Tiles have counters of their own: while one's
barrier is pending, another's step is computed. A tile stops at its longest sequence; all programs of a column see the
same lengths, so they agree on the number of barriers.

Shapes: xw, gates, dz (T, B, 4H), gate order i, f, g, o; h (T, B, H) of xw's dtype; cells (T, B, H), c0, c_T (B, H),
grad_h_T, dc (B, H), peephole (3, H; rows i, f, o) float32; weight (4H, H); lengths (B) int64 or None; counters (tiles,
32) int32, zero. All contiguous but grad_h, whose first two strides are given. T and B are never specialised on: one
compilation serves them all.

A carried cell state lies in memory (c_T, dc), where a tile finds it again. It is loaded after `wait`, whose bar.sync
orders it with the store of the step before, whatever threads did either.
"""

import triton
import triton.language as tl

from .activations import tanh
from .barrier import arrive, wait
from .cell import activate, differentiate, length_of, load_gates, load_peephole, store_gates
from .product import product, stationary


@triton.jit(do_not_specialize=["T", "B"])
def forward(
    xw, weight, h0, peephole, lengths, h, h_T, c_T, gates, cells, counters, T, B,
    H: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """h, zero where t >= length; h_T and c_T hold h0 and c0 before; gates and cells, for backward, may be None."""
    NP = tl.num_programs(0)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    known = units < H
    column = tl.arange(0, 4 * UNITS)  # unit by unit, gate by gate: a reshape and two splits part the gates
    its_unit = tl.program_id(0) * UNITS + column // 4
    tiles = stationary(weight, ((column % 4) * H + its_unit) * H, its_unit < H, 1, H, CHUNKS)
    p_i, p_f, p_o = load_peephole(peephole, units, known, H)

    for t in range(T):
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            b = tile * ROWS + tl.arange(0, ROWS)
            inside = (b < B)[:, None] & known[None, :]
            length = length_of(lengths, b, B, T)
            live = (t < length)[:, None] & known[None, :]
            step = tl.cast(t, tl.int64) * B
            at = (step + b)[:, None] * H + units[None, :]  # of (T, B, H); of (T, B, 4H) with a gate's H added
            at_z = (step + b)[:, None] * (4 * H) + units[None, :]
            at_state = b[:, None] * H + units[None, :]
            if t < tl.max(length, 0):
                x_i, x_f, x_g, x_o = load_gates(xw + at_z, live, H)
                if t > 0:
                    wait(counters + tile * 32, t * NP)
                previous = tl.where(t > 0, h + (step - B) * H, h0)
                c = tl.load(c_T + at_state, mask=live, other=0.0)
                z = product(previous + b * H, t < length, tiles, H, 4 * UNITS, CHUNKS, AHEAD, PRECISION)
                even, odd = tl.split(tl.reshape(z, (ROWS, UNITS, 2, 2)))
                z_i, z_g = tl.split(even)
                z_f, z_o = tl.split(odd)
                i, f, g, o, c = activate(
                    x_i + z_i, x_f + z_f, x_g + z_g, x_o + z_o, c, p_i, p_f, p_o, peephole is not None
                )
                out = (o * tanh(c)).to(h.dtype.element_ty)
                tl.store(h + at, tl.where(live, out, 0.0), mask=inside)
                arrive(counters + tile * 32)
                tl.store(c_T + at_state, c, mask=live)
                tl.store(h_T + at_state, out, mask=live & (t == length - 1)[:, None])
                if gates is not None:
                    store_gates(gates + at_z, i, f, g, o, live, inside, H)
                if cells is not None:
                    tl.store(cells + at, tl.where(live, c, 0.0), mask=inside)
            else:
                zero = tl.zeros((ROWS, UNITS), tl.float32)
                tl.store(h + at, zero.to(h.dtype.element_ty), mask=inside)
                if gates is not None:
                    store_gates(gates + at_z, zero, zero, zero, zero, live, inside, H)
                if cells is not None:
                    tl.store(cells + at, zero, mask=inside)


@triton.jit(do_not_specialize=["T", "B", "grad_stride_t", "grad_stride_b"], do_not_specialize_on_alignment=["grad_h"])
def backward(
    grad_h, grad_h_T, weight, c0, peephole, lengths, gates, cells, dz, dc, dpeephole, counters,
    bound, T, B, grad_stride_t, grad_stride_b,
    H: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dz, zero where t >= length; dc holds grad_c_T before, c0's gradient after; dpeephole (G, 3, H) is to be summed.

    h0's gradient, dz_0 W, is left to one product after the launch, as weight's is.
    """
    NP = tl.num_programs(0)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    known = units < H
    tiles = stationary(weight, units, known, H, 4 * H, CHUNKS)
    p_i, p_f, p_o = load_peephole(peephole, units, known, H)
    dp_i = tl.zeros((ROWS, UNITS), tl.float32)
    dp_f = tl.zeros((ROWS, UNITS), tl.float32)
    dp_o = tl.zeros((ROWS, UNITS), tl.float32)

    for since in range(T):
        t = T - 1 - since
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            b = tile * ROWS + tl.arange(0, ROWS)
            inside = (b < B)[:, None] & known[None, :]
            length = length_of(lengths, b, B, T)
            longest = tl.max(length, 0)
            live = (t < length)[:, None] & known[None, :]
            step = tl.cast(t, tl.int64) * B
            at = (step + b)[:, None] * H + units[None, :]
            at_z = (step + b)[:, None] * (4 * H) + units[None, :]
            at_state = b[:, None] * H + units[None, :]
            if t < longest:
                at_grad = tl.cast(t, tl.int64) * grad_stride_t + b.to(tl.int64)[:, None] * grad_stride_b
                dh = tl.load(grad_h + at_grad + units[None, :], mask=live, other=0.0).to(tl.float32)
                i, f, g, o = load_gates(gates + at_z, live, H)
                c = tl.load(cells + at, mask=live, other=0.0)
                c_prev = tl.load(tl.where(t > 0, cells + (step - B) * H, c0) + at_state, mask=live, other=0.0)
                last = (t == length - 1)[:, None]
                dh += tl.load(grad_h_T + at_state, mask=live & last, other=0.0)
                if t < longest - 1:
                    wait(counters + tile * 32, (longest - 1 - t) * NP)
                    later = dz + (step + B + b) * (4 * H)
                    dh += product(later, t + 1 < length, tiles, 4 * H, UNITS, CHUNKS, AHEAD, PRECISION)
                dc_t = tl.load(dc + at_state, mask=live, other=0.0)
                dz_i, dz_f, dz_g, dz_o, dc_t = differentiate(
                    dh, dc_t, i, f, g, o, c_prev, c, p_i, p_f, p_o, bound, peephole is not None
                )
                store_gates(dz + at_z, dz_i, dz_f, dz_g, dz_o, live, inside, H)
                arrive(counters + tile * 32)
                tl.store(dc + at_state, dc_t, mask=live)
                if peephole is not None:
                    dp_i += tl.where(live, dz_i * c_prev, 0.0)
                    dp_f += tl.where(live, dz_f * c_prev, 0.0)
                    dp_o += tl.where(live, dz_o * c, 0.0)
            else:
                zero = tl.zeros((ROWS, UNITS), tl.float32)
                store_gates(dz + at_z, zero, zero, zero, zero, live, inside, H)

    if peephole is not None:
        partial = dpeephole + tl.program_id(1) * 3 * H + units
        tl.store(partial, tl.sum(dp_i, 0), mask=known)
        tl.store(partial + H, tl.sum(dp_f, 0), mask=known)
        tl.store(partial + 2 * H, tl.sum(dp_o, 0), mask=known)
