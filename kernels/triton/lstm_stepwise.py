"""What a step of the LSTM recurrence does besides its matrix product, for the plan that launches step by step.

    forward    after the product z = h_{t-1} W^T:      z + xw_t, then the cell (cell.py)
    backward   after the product dh = dz_{t+1} W:      dh + grad_h_t, then its gradients

Grid (B, ceil(H / BLOCK)): a program has BLOCK units of one sequence. Shapes as in lstm_persistent.py, but z (B, 4H) and
dh (B, H) are the product's, of xw's dtype. Sequences are independent, so nothing here waits for anything.
"""

import triton
import triton.language as tl

from .activations import tanh
from .cell import activate, differentiate, length_of, load_gates, load_peephole, store_gates


@triton.jit(do_not_specialize=["t", "T", "B"])
def forward(z, xw, peephole, lengths, h, h_T, c_T, gates, cells, t, T, B, H: tl.constexpr, BLOCK: tl.constexpr):
    """Step t. c_T holds the cell state before and after; h_T its sequence's last h; gates and cells may be None."""
    b = tl.program_id(0).to(tl.int64)
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = units < H
    length = length_of(lengths, b, B, T)
    live = known & (t < length)
    row = tl.cast(t, tl.int64) * B + b
    z_i, z_f, z_g, z_o = load_gates(z + b * (4 * H) + units, live, H)
    x_i, x_f, x_g, x_o = load_gates(xw + row * (4 * H) + units, live, H)
    c = tl.load(c_T + b * H + units, mask=live, other=0.0)
    p_i, p_f, p_o = load_peephole(peephole, units, known, H)
    i, f, g, o, c = activate(x_i + z_i, x_f + z_f, x_g + z_g, x_o + z_o, c, p_i, p_f, p_o, peephole is not None)
    out = tl.where(live, o * tanh(c), 0.0).to(h.dtype.element_ty)
    tl.store(h + row * H + units, out, mask=known)
    tl.store(h_T + b * H + units, out, mask=known & (t == length - 1))
    tl.store(c_T + b * H + units, c, mask=live)
    if gates is not None:
        store_gates(gates + row * (4 * H) + units, i, f, g, o, live, known, H)
    if cells is not None:
        tl.store(cells + row * H + units, tl.where(live, c, 0.0), mask=known)


@triton.jit(
    do_not_specialize=["t", "T", "B", "grad_stride_t", "grad_stride_b"], do_not_specialize_on_alignment=["grad_h"]
)
def backward(
    dh, grad_h, grad_h_T, c0, peephole, lengths, gates, cells, dz, dc, dpeephole,
    bound, t, T, B, grad_stride_t, grad_stride_b, H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step t. dc holds c's gradient before and after; dpeephole (B, 3, H) grows, and is to be summed over B."""
    b = tl.program_id(0).to(tl.int64)
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = units < H
    length = length_of(lengths, b, B, T)
    live = known & (t < length)
    step = tl.cast(t, tl.int64) * B
    row, state = step + b, b * H + units
    i, f, g, o = load_gates(gates + row * (4 * H) + units, live, H)
    c = tl.load(cells + row * H + units, mask=live, other=0.0)
    c_prev = tl.load(tl.where(t > 0, cells + (step - B) * H, c0) + state, mask=live, other=0.0)
    p_i, p_f, p_o = load_peephole(peephole, units, known, H)
    at_grad = tl.cast(t, tl.int64) * grad_stride_t + tl.cast(b, tl.int64) * grad_stride_b
    dh_t = tl.load(grad_h + at_grad + units, mask=live, other=0.0).to(tl.float32)
    dh_t += tl.load(dh + state, mask=known & (t < length - 1), other=0.0).to(tl.float32)
    dh_t += tl.load(grad_h_T + state, mask=known & (t == length - 1), other=0.0)
    dc_t = tl.load(dc + state, mask=live, other=0.0)
    dz_i, dz_f, dz_g, dz_o, dc_t = differentiate(
        dh_t, dc_t, i, f, g, o, c_prev, c, p_i, p_f, p_o, bound, peephole is not None
    )
    store_gates(dz + row * (4 * H) + units, dz_i, dz_f, dz_g, dz_o, live, known, H)
    tl.store(dc + state, dc_t, mask=live)
    if peephole is not None:
        sums = dpeephole + b * 3 * H + units
        tl.store(sums, tl.load(sums, mask=live) + dz_i * c_prev, mask=live)
        tl.store(sums + H, tl.load(sums + H, mask=live) + dz_f * c_prev, mask=live)
        tl.store(sums + 2 * H, tl.load(sums + 2 * H, mask=live) + dz_o * c, mask=live)


@triton.jit(do_not_specialize=["T", "B"])
def gates(xw, z, c0, peephole, lengths, cells, T, B, H: tl.constexpr, BLOCK: tl.constexpr):
    """Those of all steps at once: z (T, B, 4H), h_{t-1} W^T of every step, becomes the gates, 0 where t >= length.

    The cell state of the step is computed again from the one before, as forward did, so that o sees the same.
    """
    row = tl.program_id(0).to(tl.int64)  # t B + b
    t, b = row // B, row % B
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = units < H
    live = known & (t < length_of(lengths, b, B, T))
    z_i, z_f, z_g, z_o = load_gates(z + row * (4 * H) + units, live, H)
    x_i, x_f, x_g, x_o = load_gates(xw + row * (4 * H) + units, live, H)
    c_prev = tl.load(tl.where(t > 0, cells + (row - B) * H, c0 + b * H) + units, mask=live, other=0.0)
    p_i, p_f, p_o = load_peephole(peephole, units, known, H)
    i, f, g, o, _ = activate(x_i + z_i, x_f + z_f, x_g + z_g, x_o + z_o, c_prev, p_i, p_f, p_o, peephole is not None)
    store_gates(z + row * (4 * H) + units, i, f, g, o, live, known, H)
