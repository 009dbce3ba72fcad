"""Sampling with the weights streamed from L2: a program computes steps of its own sequences, and waits for nobody.

    z^n_t = W_x x_t + W_b h^{n-1}_t + W_s h^n_{t-1} + b      then the cell, layer by layer
    raw_t = W [h^1_t ; … ; h^L_t] + b                        x_{t+1} = draw(raw_t)

`generate` is all steps of all sequences in one launch: programs take blocks of ROWS sequences in turn. Its parts are
also kernels of their own, a layer, the head and the draws of one step, whose launches are captured and replayed where
blocks of rows are too few for the GPU. Either way a value is computed by the same instructions in the same order.

Arguments as in stack.py; raw (B, D) float32 is scratch; DRAWS sequences are drawn at a time; clock (blocks of DRAWS)
int32, zero before, counts the steps of the parts; zero (1) int32 is one.
"""

import triton
import triton.language as tl

from .draw import draw
from .random_stream import noise_of
from .stack import add_input, chosen_row, finish, load_row, place, store_row


@triton.jit
def streamed(
    acc, rows, valid, matrix, columns, K,
    H: tl.constexpr, STRIDE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """acc (R, columns) plus rows (R pointers to H elements, 0 where not valid) times the matrix (K, STRIDE).

    K is no constant, or the loop would be unrolled, and its registers spilled.
    """
    k = tl.arange(0, DEPTH)
    for first in tl.range(0, K, DEPTH, num_stages=STAGES):
        a = tl.load(rows[:, None] + (first + k)[None, :], mask=valid[:, None] & (first + k < H)[None, :], other=0.0)
        w = tl.load(matrix + (first + k)[:, None] * STRIDE + columns[None, :])
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def layer_units(
    weights, inputs, peephole, h, c, row, stops, n, u, b, t, B, L, K,
    H: tl.constexpr, N: tl.constexpr, I: tl.constexpr, SKIP: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tile u of layer n's units, counted from 0, in step t of sequences b (R)."""
    going = tl.load(stops + b, mask=b < B, other=0) > t
    units, columns = u * UNITS + tl.arange(0, UNITS), u * 4 * UNITS + tl.arange(0, 4 * UNITS)
    before, now = h + tl.cast(t % 2, tl.int64) * L * B * H, h + tl.cast((t + 1) % 2, tl.int64) * L * B * H
    z = tl.zeros((b.shape[0], 4 * UNITS), tl.float32)
    z = add_input(z, load_row(row, b, B, I), inputs + n * (I + 1) * N, columns, weights, SKIP or n == 0, I, N)
    matrix = weights + tl.cast(2 * n, tl.int64) * K * N
    if n > 0:
        lower = now + ((n - 1) * B + b) * H
        z = streamed(z, lower, going, matrix - tl.cast(K, tl.int64) * N, columns, K, H, N, DEPTH, STAGES, PRECISION)
    z = streamed(z, before + (n * B + b) * H, going, matrix, columns, K, H, N, DEPTH, STAGES, PRECISION)
    at, live = place(n, b, going, units, units < H, B, H)
    tl.store(c + at, finish(z, now, c, peephole, n, at, units, live, H, UNITS), mask=live)


@triton.jit
def head_outputs(
    head, head_bias, h, raw, stops, o, b, t, B, L, K,
    H: tl.constexpr, DP: tl.constexpr, D: tl.constexpr, SKIP: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tile o of the head's outputs in step t of sequences b (R), of all layers with SKIP, else of the last."""
    going = tl.load(stops + b, mask=b < B, other=0) > t
    outputs = o * COLUMNS + tl.arange(0, COLUMNS)
    now = h + tl.cast((t + 1) % 2, tl.int64) * L * B * H
    y = tl.zeros((b.shape[0], COLUMNS), tl.float32) + tl.load(head_bias + outputs)[None, :]
    first = 0 if SKIP else L - 1
    for n in range(first, L):
        matrix = head + (n - first) * K * DP
        y = streamed(y, now + (n * B + b) * H, going, matrix, outputs, K, H, DP, DEPTH, STAGES, PRECISION)
    at, live = place(0, b, going, outputs, outputs < D, B, D)
    tl.store(raw + at, y, mask=live)


@triton.jit
def next_rows(
    raw, row, stops, prime, primed, seed, drawn, bias, temperature, points, b, t, B, TP,
    I: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """The row that sequences b (R) read after step t, drawn or the prime's, is stored; gives their stops."""
    stop = tl.load(stops + b, mask=b < B, other=0)
    going = stop > t
    read = tl.load(primed + b, mask=b < B, other=0).to(tl.int32)
    drawing = going & (t >= read)
    step = tl.load(drawn + b, mask=drawing, other=0) + (t - read)
    bias_b = tl.load(bias + b, mask=drawing, other=0.0)
    temperature_b = tl.load(temperature + b, mask=drawing, other=1.0)
    noise = noise_of(tl.load(seed), tl.load(seed + 1) + b, step)
    x, ends = draw(raw + b * (P + 6 * M), drawing, noise, bias_b, temperature_b, M, MP, P, SIGMOID)
    x = chosen_row(x, drawing, going & (t < read), t, row, prime, b, TP, I)
    stop = tl.where(ends, t + 1, stop)
    tl.debug_barrier()  # all threads have read what is written here
    tl.store(stops + b, stop, mask=b < B)
    store_row(x, points + ((t - read).to(tl.int64) * B + b) * I, drawing, I)
    store_row(x, row + b * I, going, I)
    return stop


@triton.jit
def sequences(block, zero, ROWS: tl.constexpr):
    """Those of a block, (ROWS) int64; `zero` points to a zero.

    The compiler must not know that it is one: it would compute every address of a step before the first, and spill.
    """
    return (block * ROWS + tl.load(zero)) + tl.arange(0, ROWS).to(tl.int64)


@triton.jit(do_not_specialize=["B", "TP", "L", "K"])
def generate(
    weights, inputs, peephole, head, head_bias, h, c, row, stops, prime, primed, seed, drawn, bias, temperature,
    points, raw, zero, B, TP, L, K,
    H: tl.constexpr, N: tl.constexpr, DP: tl.constexpr, I: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    P: tl.constexpr, SIGMOID: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    COLUMNS: tl.constexpr, DRAWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All steps; points (steps, B, I), zero before; seed (2) int64: seed, index of the first sequence; drawn (B)."""
    for block in range(tl.program_id(0), tl.cdiv(B, ROWS), tl.num_programs(0)):
        t = 0
        latest = 1
        while t < latest:
            for n in range(L):
                for u in range(tl.cdiv(H, UNITS)):
                    b = sequences(block, zero, ROWS)
                    layer_units(
                        weights, inputs, peephole, h, c, row, stops, n, u, b, t, B, L, K,
                        H, N, I, SKIP, UNITS, DEPTH, STAGES, PRECISION,
                    )  # fmt: skip
                tl.debug_barrier()
            for o in range(tl.cdiv(P + 6 * M, COLUMNS)):
                b = sequences(block, zero, ROWS)
                head_outputs(
                    head, head_bias, h, raw, stops, o, b, t, B, L, K,
                    H, DP, P + 6 * M, SKIP, COLUMNS, DEPTH, STAGES, PRECISION,
                )  # fmt: skip
            tl.debug_barrier()
            latest = 0
            for part in range(ROWS // DRAWS):
                stop = next_rows(
                    raw, row, stops, prime, primed, seed, drawn, bias, temperature, points,
                    sequences(block * (ROWS // DRAWS) + part, zero, DRAWS), t, B, TP, I, M, MP, P, SIGMOID,
                )  # fmt: skip
                latest = tl.maximum(latest, tl.max(stop, 0))
            tl.debug_barrier()
            t += 1


@triton.jit(do_not_specialize=["n", "B", "L", "K"])
def layer(
    weights, inputs, peephole, h, c, row, stops, clock, n, B, L, K,
    H: tl.constexpr, N: tl.constexpr, I: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    DRAWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Layer n of a step; grid (blocks of sequences, tiles of units)."""
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    t = tl.load(clock + tl.program_id(0) * (ROWS // DRAWS))
    if tl.max(tl.load(stops + b, mask=b < B, other=0), 0) > t:
        layer_units(
            weights, inputs, peephole, h, c, row, stops, n, tl.program_id(1), b, t, B, L, K,
            H, N, I, SKIP, UNITS, DEPTH, STAGES, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["B", "L", "K"])
def outputs(
    head, head_bias, h, raw, stops, clock, B, L, K,
    H: tl.constexpr, DP: tl.constexpr, D: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DRAWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The head of a step; grid (blocks of sequences, tiles of outputs)."""
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    t = tl.load(clock + tl.program_id(0) * (ROWS // DRAWS))
    if tl.max(tl.load(stops + b, mask=b < B, other=0), 0) > t:
        head_outputs(
            head, head_bias, h, raw, stops, tl.program_id(1), b, t, B, L, K,
            H, DP, D, SKIP, COLUMNS, DEPTH, STAGES, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["B", "TP"])
def rows(
    raw, row, stops, prime, primed, seed, drawn, bias, temperature, points, clock, B, TP,
    I: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """The rows after a step, and the clock; grid (blocks of DRAWS sequences)."""
    t = tl.load(clock + tl.program_id(0))
    b = tl.program_id(0) * DRAWS + tl.arange(0, DRAWS).to(tl.int64)
    next_rows(
        raw, row, stops, prime, primed, seed, drawn, bias, temperature, points, b, t, B, TP,
        I, M, MP, P, SIGMOID,
    )  # fmt: skip
    tl.store(clock + tl.program_id(0), t + 1)
