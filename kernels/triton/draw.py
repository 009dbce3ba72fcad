"""One row of a stroke drawn from the network's raw output (G 15-22, 61-62).

    s' = clip(s, 12) - b + ln tau    r' = clip(r, 15)    rho = tanh r'    1 / cosh r' = sqrt(1 - rho^2)
    dx = mu_x + e^s'_x n_1    dy = mu_y + e^s'_y (rho n_1 + n_2 / cosh r')    both 0 in an end row
    component: the smallest j whose cumulative weight exp((1 + b) a / tau) is >= u_0 of all, else the last of any weight
    pen: u_1 < sigmoid(p); or as the component, of softmax(p) = draw, lift, end, by u_1; both without b and tau

u_0, u_1, n_1, n_2 are the step's noise (random_stream.py), which is computed before the raw output is there.
"""

import triton
import triton.language as tl

from .activations import clip, exp, log, sigmoid
from .mdn_nll import LOG_SIGMA_LIMIT, LOWEST, RHO_LIMIT


@triton.jit
def draw(
    raw, live, noise, bias, temperature,
    M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """Columns (dx, dy, eos) or (dx, dy, draw, lift, end), (R) each, and which rows end; 0 where not live.

    raw (R) points to float32 rows [pen P | a M | mu_x M | mu_y M | s_x M | s_y M | r M]; noise is of the step; MP is M
    up to a power of two.
    """
    m = tl.arange(0, MP)[None, :]
    mask = live[:, None] & (m < M)
    at = raw[:, None] + P + m
    a = tl.load(at, mask=mask, other=LOWEST)
    mu_x, mu_y = tl.load(at + M, mask=mask, other=0.0), tl.load(at + 2 * M, mask=mask, other=0.0)
    s_x, s_y = tl.load(at + 3 * M, mask=mask, other=0.0), tl.load(at + 4 * M, mask=mask, other=0.0)
    r = tl.load(at + 5 * M, mask=mask, other=0.0)

    u_0, u_1, n_1, n_2 = noise
    a = (a - tl.max(a, 1)[:, None]) * ((1.0 + bias) / temperature)[:, None]
    chosen = m == choose(tl.where(mask, tl.exp(a), 0.0), m, u_0)[:, None]
    mu_x, mu_y, s_x, s_y, r = of(chosen, mu_x), of(chosen, mu_y), of(chosen, s_x), of(chosen, s_y), of(chosen, r)
    if SIGMOID:
        mu_x, mu_y = sigmoid(mu_x), sigmoid(mu_y)
    shift = log(temperature) - bias
    sigma_x, sigma_y = exp(clip(s_x, LOG_SIGMA_LIMIT) + shift), exp(clip(s_y, LOG_SIGMA_LIMIT) + shift)
    r = exp(clip(r, RHO_LIMIT))
    inverse = 1.0 / r
    dx = mu_x + sigma_x * n_1
    dy = mu_y + sigma_y * (((r - inverse) * n_1 + 2.0 * n_2) / (r + inverse))

    if P == 1:
        eos = (u_1 < sigmoid(tl.load(raw, mask=live, other=0.0))).to(tl.float32)
        row = (tl.where(live, dx, 0.0), tl.where(live, dy, 0.0), tl.where(live, eos, 0.0))
        ends = live & False
    else:
        k = tl.arange(0, 4)[None, :]
        pens = live[:, None] & (k < 3)
        p = tl.load(raw[:, None] + k, mask=pens, other=LOWEST)
        state = choose(tl.where(pens, tl.exp(p - tl.max(p, 1)[:, None]), 0.0), k, u_1)
        ends = live & (state == 2)
        moves = live & (state < 2)
        row = (tl.where(moves, dx, 0.0), tl.where(moves, dy, 0.0)) + one_hot(state, live)
    return row, ends


@triton.jit
def choose(weights, index, u):
    """Per row the smallest index whose cumulative weight is >= u times the sum; else the last with any weight."""
    below = tl.cumsum(weights, 1) < (u * tl.sum(weights, 1))[:, None]
    last = tl.max(tl.where(weights > 0.0, index, 0), 1)
    return tl.minimum(tl.sum(below.to(tl.int32), 1), last)


@triton.jit
def of(chosen, values):
    """The chosen one of each row."""
    return tl.sum(tl.where(chosen, values, 0.0), 1)


@triton.jit
def one_hot(state, live):
    """Three columns."""
    return (
        (live & (state == 0)).to(tl.float32),
        (live & (state == 1)).to(tl.float32),
        (live & (state == 2)).to(tl.float32),
    )
