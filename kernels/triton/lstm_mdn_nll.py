"""Stack, head and mixture likelihood over given inputs in one cooperative launch each way, all weights on chip.

    forward    z^n_t = W_x x_t + W_b h^{n-1}_t + W_s h^n_{t-1} + b      then the cell (cell.py)
               raw_t = W [h^1_t ; … ; h^L_t] + b                        nll_t by mdn_nll.py
    backward   draw_t by mdn_nll.py
               dh^n_t = W^T draw_t + W_b^T dz^{n+1}_t + W_s^T dz^n_{t+1}      then the cell's gradients

The layers are a wavefront. Forward, in wave s, layer n, counted from 0, is at step s - n, the head at s - L and the
likelihood at s - L - 1. Backward, in wave s, the gradient of raw is at step T - 1 - s, layer n at T + L - n - s. All
that a wave reads was made in the waves before, so T steps of all layers cost T + L barriers, one more backward, not
L T. What is older than the wave before is multiplied before the barrier: the head's products with all layers but the
last, and backward the head's part of dh.

Grid (programs, G). A program is of one layer, of the head, or of the likelihood, so that what a wave makes is made side
by side: a wave lasts as long as one layer's step, not L of them. A layer has NP programs; each owns UNITS hidden units
and keeps what reads the layer below, and the layer itself, on chip. Forward NH programs own COLUMNS outputs of the head
each, one the likelihood; backward one makes the gradient of raw. Column g has the tiles of ROWS sequences g, g + G, … .
Tiles have counters of their own: while one's barrier is pending, another is worked on. A tile has as many waves as its
longest sequence asks for; all programs of a column see the same lengths, so they agree.

What is exchanged is the outputs themselves, h forward and dz backward, never overwritten while anybody may read them,
and raw through `sums`, three steps of it in float32. raw itself is written where backward is to read it: 2D bytes of a
token in bfloat16 next to 14HL of h, gates and cell states, 1.4% for Graves's network. To compute it anew would take the
head's product with all of h once more and, before the likelihood's gradient, one more barrier.

Shapes: x (T, B, I) of the weights' dtype; weights (2L - 1, 4H, H), for each layer what reads the layer below (not for
the first), then what reads itself; inputs (L, 16, 4H), what reads [x | 1 | 1 | 0 …], the bias in two parts; gate order
i, f, g, o; head (D, S H), S of the layers, all or the last; head_bias (D) float32; peephole (L, 3, H; rows i, f, o)
float32 or None; h (L, steps, B, H), step t at t mod steps: T of them for backward, else L + 1; gates and dz (L, T, B,
4H), cells (L, T, B, H) float32; h0, h_T (L, B, H), c0, c_T, dh, dc (L, B, H) float32; raw (T, B, D), draw (T, B, DP), D
padded; target, nll, grad and dtarget as in mdn_nll.py; sums (3, B, D) float32; lengths (B) int64 or None; counters
(tiles, 32) int32, zero. All contiguous. T, B, L and steps are never specialised on: one compilation serves them all.

A carried cell state lies in memory (c_T, dc), where a tile finds it again, after `wait`, whose bar.sync orders it with
the store of the step before, whatever threads did either.
"""

import triton
import triton.language as tl

from .activations import tanh
from .barrier import arrive, wait
from .cell import activate, differentiate, length_of, load_gates, load_peephole, store_gates
from .mdn_nll import gradients, likelihood
from .product import product, products, stationary


@triton.jit(do_not_specialize=["T", "B", "L", "steps"])
def forward(
    x, target, weights, inputs, peephole, head, head_bias, h0, lengths, nll, h, h_T, c_T, gates, cells, raw, sums,
    counters, T, B, L, steps,
    H: tl.constexpr, S: tl.constexpr, STACKED: tl.constexpr, SKIP: tl.constexpr, I: tl.constexpr, M: tl.constexpr,
    MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """nll, zero before where ragged; h_T, c_T hold h0, c0 before; gates, cells, raw, for backward, may all be None.

    STACKED: there is more than one layer.
    """
    D: tl.constexpr = P + 6 * M
    NP: tl.constexpr = (H + UNITS - 1) // UNITS
    NH: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    if program < L * NP:
        layer_forward(
            program // NP, program % NP, x, weights, inputs, peephole, h0, lengths, h, h_T, c_T, gates, cells, counters,
            T, B, L, steps, H, STACKED, SKIP, I, CHUNKS, AHEAD, ROWS, UNITS, PRECISION,
        )  # fmt: skip
    elif program < L * NP + NH:
        head_forward(
            program - L * NP, head, head_bias, lengths, h, raw, sums, counters, T, B, L, steps, H, S, D, CHUNKS, AHEAD,
            ROWS, COLUMNS, PRECISION,
        )  # fmt: skip
    else:
        likelihoods(target, lengths, nll, sums, counters, T, B, L, M, MP, P, SIGMOID, ROWS)


@triton.jit
def layer_forward(
    n, p, x, weights, inputs, peephole, h0, lengths, h, h_T, c_T, gates, cells, counters, T, B, L, steps,
    H: tl.constexpr, STACKED: tl.constexpr, SKIP: tl.constexpr, I: tl.constexpr, CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Units p of layer n."""
    units = p * UNITS + tl.arange(0, UNITS)
    known = units < H
    column = tl.arange(0, 4 * UNITS)  # unit by unit, gate by gate: a reshape and two splits part the gates
    unit = p * UNITS + column // 4
    row = column % 4 * H + unit
    own = stationary(weights + 2 * n * 4 * H * H, row * H, unit < H, 1, H, CHUNKS)
    below = ()
    if STACKED:
        below = stationary(weights + (2 * n - 1) * 4 * H * H, row * H, (unit < H) & (n > 0), 1, H, CHUNKS)
    k = tl.arange(0, 16)
    at_input = (n * 16 + k)[None, :, None] * (4 * H) + row[None, None, :]
    given = tl.load(inputs + at_input, mask=(unit < H)[None, None, :], other=0.0)
    p_i, p_f, p_o = peephole_of(peephole, n, units, known, H)

    for s in range(T + L + 1):
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            counter = counters + tile * 32
            b = tile * ROWS + tl.arange(0, ROWS)
            length = length_of(lengths, b, B, T)
            longest = tl.max(length, 0)
            t = s - n
            within, inside = (t >= 0) & (t < length), (b < B)[:, None] & known[None, :] & (t >= 0) & (t < T)
            live = within[:, None] & known[None, :]
            at, at_z = b[:, None] * H + units[None, :], b[:, None] * (4 * H) + units[None, :]
            step = tl.cast(n * T + t, tl.int64) * B
            if s <= longest + L:
                # [x_t | 1 | 1 | 0 …], whose product is the input's part and the bias
                reads = within[None, :, None] & (k < I)[None, None, :] & (SKIP | (n == 0))
                at_x = tl.cast(t, tl.int64) * B * I + b[None, :, None] * I + k[None, None, :]
                x_t = tl.load(x + at_x, mask=reads, other=0.0)
                x_t = tl.where(((k == I) | (k == I + 1))[None, None, :], 1.0, x_t).to(x.dtype.element_ty)
                z = tl.dot(x_t, given, tl.zeros((1, ROWS, 4 * UNITS), tl.float32), input_precision=PRECISION)
                if s > 0:
                    wait(counter, s * tl.num_programs(0))
                before = tl.where(t > 0, h + tl.cast(n * steps + (t - 1) % steps, tl.int64) * B * H, h0 + n * B * H)
                under = h + tl.cast((n - 1) * steps + t % steps, tl.int64) * B * H
                c = tl.load(c_T + n * B * H + at, mask=live, other=0.0)
                z = products(
                    before + b * H, within, own, under + b * H, within & (n > 0), below, z, H, CHUNKS, AHEAD, PRECISION
                )
                even, odd = tl.split(tl.reshape(z, (ROWS, UNITS, 2, 2)))
                z_i, z_g = tl.split(even)
                z_f, z_o = tl.split(odd)
                i, f, g, o, c = activate(z_i, z_f, z_g, z_o, c, p_i, p_f, p_o, peephole is not None)
                out = (o * tanh(c)).to(h.dtype.element_ty)
                now = h + tl.cast(n * steps + t % steps, tl.int64) * B * H
                tl.store(now + at, tl.where(live, out, 0.0), mask=inside)
                if s < longest + L:
                    arrive(counter)
                tl.store(c_T + n * B * H + at, c, mask=live)
                tl.store(h_T + n * B * H + at, out, mask=live & (t == length - 1)[:, None])
                if gates is not None:
                    tl.store(cells + step * H + at, tl.where(live, c, 0.0), mask=inside)
                    store_gates(gates + step * 4 * H + at_z, i, f, g, o, live, inside, H)
            elif gates is not None:
                zero = tl.zeros((ROWS, UNITS), tl.float32)
                tl.store(h + step * H + at, zero.to(h.dtype.element_ty), mask=inside)
                tl.store(cells + step * H + at, zero, mask=inside)
                store_gates(gates + step * 4 * H + at_z, zero, zero, zero, zero, live, inside, H)


@triton.jit
def head_forward(
    p, head, head_bias, lengths, h, raw, sums, counters, T, B, L, steps,
    H: tl.constexpr, S: tl.constexpr, D: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs p of the head, which reads the last S layers."""
    outputs = p * COLUMNS + tl.arange(0, COLUMNS)
    asked = outputs < D
    layers = ()
    for n in tl.static_range(S):
        layers = layers + (stationary(head + n * H, outputs * (S * H), asked, 1, H, CHUNKS),)
    bias = tl.load(head_bias + outputs, mask=asked, other=0.0)

    for s in range(T + L + 1):
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            counter = counters + tile * 32
            b = tile * ROWS + tl.arange(0, ROWS)
            length = length_of(lengths, b, B, T)
            longest = tl.max(length, 0)
            t = s - L
            within = (t >= 0) & (t < length)
            if s <= longest + L:
                y = tl.zeros((ROWS, COLUMNS), tl.float32) + bias[None, :]
                last = h + tl.cast((L - 1) * steps + t % steps, tl.int64) * B * H + b * H
                for n in tl.static_range(S - 1):  # these have been there for a wave or more
                    rows = last - tl.cast(S - 1 - n, tl.int64) * steps * B * H
                    y += product(rows, within, layers[n], H, COLUMNS, CHUNKS, AHEAD, PRECISION)
                if s > 0:
                    wait(counter, s * tl.num_programs(0))
                y += product(last, within, layers[S - 1], H, COLUMNS, CHUNKS, AHEAD, PRECISION)
                at, mask = b[:, None] * D + outputs[None, :], within[:, None] & asked[None, :]
                tl.store(sums + t % 3 * B * D + at, y, mask=mask)
                if s < longest + L:
                    arrive(counter)
                if raw is not None:
                    tl.store(raw + tl.cast(t, tl.int64) * B * D + at, y.to(raw.dtype.element_ty), mask=mask)


@triton.jit
def likelihoods(
    target, lengths, nll, sums, counters, T, B, L,
    M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of all steps, each while the others are at the next: `sums` has a third row for that."""
    for s in range(T + L + 1):
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            counter = counters + tile * 32
            b = tile * ROWS + tl.arange(0, ROWS)
            length = length_of(lengths, b, B, T)
            longest = tl.max(length, 0)
            t = s - L - 1
            if s <= longest + L:
                if s > 0:
                    wait(counter, s * tl.num_programs(0))
                if s < longest + L:
                    arrive(counter)
                if t >= 0:
                    n = tl.cast(t, tl.int64) * B + b
                    row = sums + (t % 3 * B + b) * (P + 6 * M)
                    tl.store(nll + n, likelihood(row, target, n, t < length, M, MP, P, SIGMOID), mask=b < B)


@triton.jit(do_not_specialize=["T", "B", "L"])
def backward(
    grad, target, weights, peephole, head, c0, lengths, gates, cells, raw, dz, draw, dtarget, dh, dc, dpeephole,
    counters, bound, bound_output, T, B, L,
    H: tl.constexpr, S: tl.constexpr, STACKED: tl.constexpr, DP: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    P: tl.constexpr, SIGMOID: tl.constexpr, CHUNKS: tl.constexpr, HEAD_CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dz, zero where t >= length; draw and dtarget, zero before; dpeephole (L, 3, B, H), zero before, is to be summed.

    dh and dc hold the gradients of h_T and c_T before, of h0 and c0 after.
    """
    NP: tl.constexpr = (H + UNITS - 1) // UNITS
    program = tl.program_id(0)
    if program < L * NP:
        layer_backward(
            program // NP, program % NP, weights, peephole, head, c0, lengths, gates, cells, dz, draw, dh, dc,
            dpeephole, counters, bound, T, B, L, H, S, STACKED, P + 6 * M, DP, CHUNKS, HEAD_CHUNKS, AHEAD, ROWS, UNITS,
            PRECISION,
        )  # fmt: skip
    else:
        raw_backward(
            grad, target, lengths, raw, draw, dtarget, counters, bound_output, T, B, L, DP, M, MP, P, SIGMOID, ROWS
        )


@triton.jit
def layer_backward(
    n, p, weights, peephole, head, c0, lengths, gates, cells, dz, draw, dh, dc, dpeephole, counters, bound, T, B, L,
    H: tl.constexpr, S: tl.constexpr, STACKED: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr,
    HEAD_CHUNKS: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Units p of layer n."""
    units = p * UNITS + tl.arange(0, UNITS)
    known = units < H
    own = stationary(weights + 2 * n * 4 * H * H, units, known, H, 4 * H, CHUNKS)
    above = ()
    if STACKED:
        above = stationary(weights + (2 * n + 1) * 4 * H * H, units, known & (n < L - 1), H, 4 * H, CHUNKS)
    part = head + (n - (L - S)) * H  # of the columns that the head has for this layer, if it has
    heads = stationary(part, units, known & (n >= L - S), S * H, D, HEAD_CHUNKS)
    p_i, p_f, p_o = peephole_of(peephole, n, units, known, H)

    for s in range(T + L + 2):
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            counter = counters + tile * 32
            b = tile * ROWS + tl.arange(0, ROWS)
            length = length_of(lengths, b, B, T)
            longest = tl.max(length, 0)
            t = longest + L - n - s
            within = (t >= 0) & (t < length)
            live, inside = within[:, None] & known[None, :], (b < B)[:, None] & known[None, :]
            at, at_z = b[:, None] * H + units[None, :], b[:, None] * (4 * H) + units[None, :]
            if s <= longest + L + 1:
                step = tl.cast(n * T + t, tl.int64) * B
                i, f, g, o = load_gates(gates + step * 4 * H + at_z, live, H)
                c = tl.load(cells + step * H + at, mask=live, other=0.0)
                c_prev = tl.where(t > 0, cells + (step - B) * H, c0 + n * B * H)
                c_prev = tl.load(c_prev + at, mask=live, other=0.0)
                of_raw = draw + tl.cast(t, tl.int64) * B * DP + b * DP
                dh_t = product(of_raw, within & (n >= L - S), heads, DP, UNITS, HEAD_CHUNKS, AHEAD, PRECISION)
                if s > 0:
                    wait(counter, s * tl.num_programs(0))
                dc_t = tl.load(dc + n * B * H + at, mask=live, other=0.0)
                later = dz + (step + B) * 4 * H + b * (4 * H)
                over = dz + (step + tl.cast(T, tl.int64) * B) * 4 * H + b * (4 * H)
                from_dz = products(
                    later, (t >= -1) & (t + 1 < length), own, over, within & (n < L - 1), above,
                    tl.zeros((1, ROWS, UNITS), tl.float32), 4 * H, CHUNKS, AHEAD, PRECISION,
                )  # fmt: skip
                tl.store(dh + n * B * H + at, from_dz, mask=((t == -1) & (length > 0))[:, None] & known[None, :])
                dh_t += from_dz + tl.load(dh + n * B * H + at, mask=live & (t == length - 1)[:, None], other=0.0)
                dz_i, dz_f, dz_g, dz_o, dc_t = differentiate(
                    dh_t, dc_t, i, f, g, o, c_prev, c, p_i, p_f, p_o, bound, peephole is not None
                )
                mask = inside & (t >= 0) & (t < longest)
                store_gates(dz + step * 4 * H + at_z, dz_i, dz_f, dz_g, dz_o, live, mask, H)
                if s < longest + L + 1:
                    arrive(counter)
                tl.store(dc + n * B * H + at, dc_t, mask=live)
                if peephole is not None:
                    its = dpeephole + n * 3 * B * H + at
                    add(its, dz_i * c_prev, live)
                    add(its + B * H, dz_f * c_prev, live)
                    add(its + 2 * B * H, dz_o * c, live)
            if (s >= longest) & (s < T):
                zero = tl.zeros((ROWS, UNITS), tl.float32)
                step = tl.cast(n * T + s, tl.int64) * B
                store_gates(dz + step * 4 * H + at_z, zero, zero, zero, zero, inside, inside, H)


@triton.jit
def add(at, values, live):
    """To what lies there, where live."""
    tl.store(at, tl.load(at, mask=live, other=0.0) + values, mask=live)


@triton.jit
def raw_backward(
    grad, target, lengths, raw, draw, dtarget, counters, bound, T, B, L,
    DP: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of raw, of all steps, two waves before the last layer is there; it reads nothing of the others."""
    for s in range(T + L + 2):
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            counter = counters + tile * 32
            b = tile * ROWS + tl.arange(0, ROWS)
            length = length_of(lengths, b, B, T)
            longest = tl.max(length, 0)
            t = longest - 1 - s
            if t >= 0:
                n = tl.cast(t, tl.int64) * B + b
                of_nll, row, out = tl.load(grad + n, mask=t < length, other=0.0), raw + n * (P + 6 * M), draw + n * DP
                gradients(of_nll, row, target, n, t < length, b < B, out, dtarget, bound, M, MP, P, SIGMOID)
            if s < longest + L + 1:
                if s > 0:
                    wait(counter, s * tl.num_programs(0))
                arrive(counter)


@triton.jit
def peephole_of(peephole, n, units, known, H: tl.constexpr):
    """Layer n's, as `load_peephole`."""
    if peephole is not None:
        peephole += n * 3 * H
    return load_peephole(peephole, units, known, H)
