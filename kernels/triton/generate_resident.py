"""Sampling with the weights on chip: one cooperative launch for all steps, layers, heads and draws.

    z^n_t = W_x x_t + W_b h^{n-1}_t + W_s h^n_{t-1} + b      then the cell, layer by layer
    raw_t = W [h^1_t ; … ; h^L_t] + b                        x_{t+1} = draw(raw_t), by every program for itself

Grid (NP, G). Program (p, g) owns UNITS hidden units of every layer from p UNITS on, and COLUMNS outputs of the head.
The layers' weights stay on chip; the few of the head come from L2 while it waits. Its sequences are the tiles of ROWS
sequences g, g + G, … . What others need is h and raw, exchanged through L2 with L + 1 barriers a step and tile: before
every layer but the first, before the head, and before the draw. Between its arrival and its waiting a program
multiplies what it has by then: h^n by W_s, for the next step, and by the head's weights. Tiles have counters of their
own: while one's barrier is pending, another is worked on. A tile ends with its last sequence; the programs of a column
draw the same, so they agree on when that is.

Arguments as in stack.py, and scratch: z (L, B, 4H) float32, sums for the next step, of a program's own columns; raw
(B, D) float32; stops (NP, B) int32, a program's own copy; counters (tiles, 32) int32, zero. What a program stores for
itself is loaded after a barrier of its threads, whatever threads did either.
"""

import triton
import triton.language as tl

from .barrier import arrive, wait
from .draw import draw
from .product import product, stationary
from .random_stream import noise_of
from .stack import add_input, chosen_row, finish, place, store_row


@triton.jit(do_not_specialize=["B", "TP"])
def generate(
    weights, inputs, peephole, head, head_bias, h, c, row, stops, prime, primed, seed, drawn, bias, temperature,
    points, z, raw, counters, B, TP,
    L: tl.constexpr, H: tl.constexpr, K: tl.constexpr, N: tl.constexpr, DP: tl.constexpr, I: tl.constexpr,
    M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr, SKIP: tl.constexpr,
    CHUNKS: tl.constexpr, AHEAD: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """points (steps, B, I), zero before; seed (2) int64: seed, index of the first sequence; drawn (B) int64."""
    D: tl.constexpr = P + 6 * M
    FIRST: tl.constexpr = 0 if SKIP else L - 1  # of the layers that the head reads
    NP = tl.num_programs(0)
    p = tl.program_id(0)
    units, outputs = p * UNITS + tl.arange(0, UNITS), p * COLUMNS + tl.arange(0, COLUMNS)
    columns = p * 4 * UNITS + tl.arange(0, 4 * UNITS)
    mine, asked = columns < 4 * H, outputs < D
    own = ()
    below = ()
    for n in tl.static_range(L):
        own = own + (stationary(weights + 2 * n * K * N, columns, mine, N, H, CHUNKS),)
        if n > 0:
            below = below + (stationary(weights + (2 * n - 1) * K * N, columns, mine, N, H, CHUNKS),)
    stops += p * B

    t = -1  # before the first step there is only what a step does for the next
    latest = 1
    while t < latest:
        now, later = h + tl.cast((t + 1) % 2, tl.int64) * L * B * H, h + tl.cast((t + 2) % 2, tl.int64) * L * B * H
        for n in tl.static_range(1, L + 1):  # once layer n, counted from 1, has been computed
            for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
                b = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
                # at t = -1 as in the first step: there is no sequence b >= B, whose stop is 0
                going = tl.load(stops + b, mask=b < B, other=0) > tl.maximum(t, 0)
                if tl.max(going.to(tl.int32), 0) > 0:
                    counter = counters + tile * 32
                    rows = now + ((n - 1) * B + b) * H
                    if t >= 0:
                        if n < L:
                            wait(counter, (t * (L + 1) + n) * NP)
                            at, live = place(n, b, going, units, units < H, B, H)
                            at_z, live_z = place(n, b, going, columns, mine, B, 4 * H)
                            sums = tl.load(z + at_z, mask=live_z, other=0.0)
                            sums += product(rows, going, below[n - 1], H, 4 * UNITS, CHUNKS, AHEAD, PRECISION)
                            cell = finish(sums, now, c, peephole, n, at, units, live, H, UNITS)
                            arrive(counter)
                            tl.store(c + at, cell, mask=live)
                        if n > FIRST:
                            w = stationary(head + (n - 1 - FIRST) * K * DP, outputs, asked, DP, H, CHUNKS)
                            if n == L:
                                wait(counter, (t * (L + 1) + n) * NP)
                            at_raw, live_raw = place(0, b, going, outputs, asked, B, D)
                            sums = product(rows, going, w, H, COLUMNS, CHUNKS, AHEAD, PRECISION)
                            if n == FIRST + 1:
                                sums += tl.load(head_bias + outputs, mask=asked, other=0.0)[None, :]
                            else:
                                sums += tl.load(raw + at_raw, mask=live_raw, other=0.0)
                            tl.store(raw + at_raw, sums, mask=live_raw)
                            if n == L:
                                arrive(counter)
                    sums = product(rows, going, own[n - 1], H, 4 * UNITS, CHUNKS, AHEAD, PRECISION)
                    at_z, live_z = place(n - 1, b, going, columns, mine, B, 4 * H)
                    tl.store(z + at_z, sums, mask=live_z)

        latest = 0
        for tile in range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1)):
            b = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
            stop = tl.load(stops + b, mask=b < B, other=0)
            going = stop > tl.maximum(t, 0)
            if tl.max(going.to(tl.int32), 0) > 0:
                counter = counters + tile * 32
                read = tl.load(primed + b, mask=b < B, other=0).to(tl.int32)
                drawing = going & (t >= read)
                step = tl.load(drawn + b, mask=drawing, other=0) + (t - read)
                bias_b = tl.load(bias + b, mask=drawing, other=0.0)
                temperature_b = tl.load(temperature + b, mask=drawing, other=1.0)
                noise = noise_of(tl.load(seed), tl.load(seed + 1) + b, step)
                if t >= 0:
                    wait(counter, (t + 1) * (L + 1) * NP)
                x, ends = draw(raw + b * D, drawing, noise, bias_b, temperature_b, M, MP, P, SIGMOID)
                x = chosen_row(x, drawing, going & (t < read), t, row, prime, b, TP, I)
                stop = tl.where(ends, t + 1, stop)
                tl.store(stops + b, stop, mask=b < B)
                tl.debug_barrier()
                latest = tl.maximum(latest, tl.max(stop, 0))
                going_on = stop > t + 1
                for n in tl.static_range(L):  # of the next step
                    at_z, live_z = place(n, b, going_on, columns, mine, B, 4 * H)
                    sums = tl.load(z + at_z, mask=live_z, other=0.0)
                    sums = add_input(sums, x, inputs + n * (I + 1) * N, columns, weights, SKIP or n == 0, I, N)
                    if n > 0:
                        tl.store(z + at_z, sums, mask=live_z)
                    elif tl.max(stop, 0) > t + 1:
                        at, live = place(n, b, going_on, units, units < H, B, H)
                        cell = finish(sums, later, c, peephole, n, at, units, live, H, UNITS)
                        arrive(counter)
                        tl.store(c + at, cell, mask=live)
                if p == NP - 1:  # the last program has no outputs of the head, where there are fewer than programs
                    store_row(x, points + ((t - read).to(tl.int64) * B + b) * I, drawing, I)
                    store_row(x, row + b * I, going & (t >= 0), I)
        t += 1
