"""The mixture density network's loss, from raw output to nats, and its gradient (G 15-37): one pass each way.

    s' = clip(s, 12)    r' = clip(r, 15)    u_x = (x - mu_x) e^-s'_x, u_y likewise    A = u_x + u_y    D = u_x - u_y
    Z / (1 - rho^2) = ( A^2 (1 + e^-2r') + D^2 (1 + e^2r') ) / 4         G 25 without cancellation, rho = tanh r'
    log N = -log 2pi - s'_x - s'_y - log(1 - rho^2)/2 - Z / (2 (1 - rho^2))
    nll = - logsumexp_j( log_softmax(a)_j + log N_j ) + pen cross-entropy with logits

A program has ROWS rows, row n = t B + b. raw (T, B, P + 6M), its first two strides given: [pen P | a M | mu_x M |
mu_y M | s_x M | s_y M | r M]; target (T, B, 3 or 5) float32, lengths (B) int64 or None, grad and nll (T, B) float32,
draw as raw but contiguous, dtarget as target or None. MP is M rounded up to a power of two, P = 1 (Bernoulli pen) or 3
(categorical: draw, lift, end; an end row's offsets do not count). All is computed in float32, row by row, so the result
of a row does not depend on its neighbours. Masked rows are not read.
"""

import triton
import triton.language as tl

from .activations import clip, exp, log, log1p, sigmoid, softplus, tanh

LOG_SIGMA_LIMIT = tl.constexpr(12.0)
RHO_LIMIT = tl.constexpr(15.0)
LOG_2 = tl.constexpr(0.6931471805599453)
LOG_2PI = tl.constexpr(1.8378770664093453)
LOWEST = tl.constexpr(-3.0e38)  # finite: a difference of two is no NaN


@triton.jit
def rows_of(lengths, T, B, ROWS: tl.constexpr):
    """This program's rows: n, t, b (ROWS) as int64, which of them exist, and which lie inside their sequence."""
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    t, b = n // B, n % B
    exists = t < T
    live = exists
    if lengths is not None:
        live = exists & (t < tl.load(lengths + b, mask=exists, other=0))
    return n, t, b, exists, live


@triton.jit
def parameters(row, mask, m, M: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr):
    """Tiles (ROWS, MP): log weight (normalised), its exponential, mu_x, mu_y, s_x, s_y, r (raw); 0 where masked."""
    at = row[:, None] + P + m[None, :]
    a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    mu_x = tl.load(at + M, mask=mask, other=0.0).to(tl.float32)
    mu_y = tl.load(at + 2 * M, mask=mask, other=0.0).to(tl.float32)
    s_x = tl.load(at + 3 * M, mask=mask, other=0.0).to(tl.float32)
    s_y = tl.load(at + 4 * M, mask=mask, other=0.0).to(tl.float32)
    r = tl.load(at + 5 * M, mask=mask, other=0.0).to(tl.float32)
    if SIGMOID:
        mu_x, mu_y = sigmoid(mu_x), sigmoid(mu_y)
    a, weight, total = softmax(a, mask)
    return a - log(total)[:, None], weight, mu_x, mu_y, s_x, s_y, r


@triton.jit
def softmax(a, mask):
    """Logits less their row's largest, the softmax of what is masked in (0 elsewhere), and what it was divided by."""
    a -= tl.max(tl.where(mask, a, LOWEST), 1)[:, None]
    e = tl.where(mask, tl.exp(a), 0.0)
    total = tl.sum(e, 1)
    total = tl.where(total == 0.0, 1.0, total)  # a row with nothing masked in
    return a, e / total[:, None], total


@triton.jit
def normal(x, y, mu_x, mu_y, s_x, s_y, r):
    """u_x, u_y, 1 / sigma_x, 1 / sigma_y, e^2r', e^-2r', r' and log N, of every component."""
    s_x, s_y, r = clip(s_x, LOG_SIGMA_LIMIT), clip(s_y, LOG_SIGMA_LIMIT), clip(r, RHO_LIMIT)
    inverse_x, inverse_y = exp(-s_x), exp(-s_y)
    # fma, since contracted into A and D a product would not be rounded there: u_x - u_y of equal products would not be
    # 0 but a rounding error, and e^2r' times its square the loss
    zero = tl.zeros_like(mu_x)
    u_x, u_y = tl.fma(x[:, None] - mu_x, inverse_x, zero), tl.fma(y[:, None] - mu_y, inverse_y, zero)
    grow, shrink = exp(2.0 * r), exp(-2.0 * r)
    A, D = u_x + u_y, u_x - u_y
    z = (A * A * (1.0 + shrink) + D * D * (1.0 + grow)) * 0.25
    half_log = LOG_2 - tl.abs(r) - log1p(tl.where(r > 0, shrink, grow))  # log(1 - rho^2) / 2
    return u_x, u_y, inverse_x, inverse_y, grow, shrink, r, -LOG_2PI - s_x - s_y - half_log - 0.5 * z


@triton.jit
def offsets_of(target, n, live, P: tl.constexpr):
    """x, y (ROWS), and which rows' offsets count; 0 where they do not."""
    counts = live
    if P == 3:
        counts = live & (tl.load(target + n * 5 + 4, mask=live, other=1.0) <= 0.5)
    x = tl.load(target + n * (P + 2), mask=counts, other=0.0)
    y = tl.load(target + n * (P + 2) + 1, mask=counts, other=0.0)
    return x, y, counts


@triton.jit
def pens_of(row, target, n, live, P: tl.constexpr):
    """A categorical pen's log_softmax, softmax and target, (ROWS, 4) each, and where the three lie; 0 elsewhere."""
    k = tl.arange(0, 4)[None, :]
    mask = live[:, None] & (k < 3)
    e, weight, total = softmax(tl.load(row[:, None] + k, mask=mask, other=0.0).to(tl.float32), mask)
    goal = tl.load(target + n[:, None] * 5 + 2 + k, mask=mask, other=0.0)
    return tl.where(mask, e - log(total)[:, None], 0.0), weight, goal, mask


@triton.jit
def likelihood(row, target, n, live, M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr):
    """The negative log-likelihood of targets n under the raw outputs at `row` (ROWS); 0 where not live."""
    m = tl.arange(0, MP)
    mask = live[:, None] & (m < M)[None, :]
    x, y, counts = offsets_of(target, n, live, P)
    log_weight, _, mu_x, mu_y, s_x, s_y, r = parameters(row, mask, m, M, P, SIGMOID)
    _, _, _, _, _, _, _, log_n = normal(x, y, mu_x, mu_y, s_x, s_y, r)
    joint = tl.where(mask, log_weight + log_n, LOWEST)
    largest = tl.max(joint, 1)
    _, _, total = softmax(joint, mask)
    loss = tl.where(counts, -largest - log(total), 0.0)
    if P == 1:
        e = tl.load(row, mask=live, other=0.0).to(tl.float32)
        loss += softplus(e) - tl.load(target + n * 3 + 2, mask=live, other=0.0) * e
    else:
        log_pen, _, goal, _ = pens_of(row, target, n, live, P)
        loss -= tl.sum(goal * log_pen, 1)
    return tl.where(live, loss, 0.0)


@triton.jit(do_not_specialize=["T", "B", "raw_stride_t", "raw_stride_b"], do_not_specialize_on_alignment=["raw"])
def forward(
    raw, target, lengths, nll, T, B, raw_stride_t, raw_stride_b,
    M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """nll, zero where t >= length."""
    n, t, b, exists, live = rows_of(lengths, T, B, ROWS)
    row = raw + t * raw_stride_t + b * raw_stride_b
    tl.store(nll + n, likelihood(row, target, n, live, M, MP, P, SIGMOID), mask=exists)


@triton.jit
def inward(gradient, raw, limit):
    """Zero where raw lies outside ±limit and a descent step would not bring it back."""
    outward = ((raw > limit) & (gradient < 0)) | ((raw < -limit) & (gradient > 0))
    return tl.where(outward, 0.0, gradient)


@triton.jit
def gradients(
    grad, row, target, n, live, exists, out, dtarget, bound,
    M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """Of `grad` (ROWS) times the negative log-likelihood: raw's, clipped to ±bound, stored at `out`, and target's."""
    m = tl.arange(0, MP)
    mask = live[:, None] & (m < M)[None, :]
    x, y, counts = offsets_of(target, n, live, P)
    log_weight, weight, mu_x, mu_y, s_x, s_y, r = parameters(row, mask, m, M, P, SIGMOID)
    u_x, u_y, inverse_x, inverse_y, grow, shrink, rho_raw, log_n = normal(x, y, mu_x, mu_y, s_x, s_y, r)
    _, gamma, _ = softmax(tl.where(mask, log_weight + log_n, LOWEST), mask)  # the responsibilities, G 28-29

    # derivatives of -log(sum_j pi_j N_j), G 30-37; (plus ± minus) / 2 is the derivative of Z / (1 - rho^2)
    scale = tl.where(counts, grad, 0.0)[:, None]
    A, D = u_x + u_y, u_x - u_y
    plus, minus = A * (1.0 + shrink), D * (1.0 + grow)
    d_x, d_y = gamma * (plus + minus) * 0.25, gamma * (plus - minus) * 0.25
    d_mx, d_my = -scale * d_x * inverse_x, -scale * d_y * inverse_y
    if dtarget is not None:
        tl.store(dtarget + n * (P + 2), -tl.sum(tl.where(mask, d_mx, 0.0), 1), mask=exists)
        tl.store(dtarget + n * (P + 2) + 1, -tl.sum(tl.where(mask, d_my, 0.0), 1), mask=exists)
    if SIGMOID:
        d_mx *= mu_x * (1.0 - mu_x)
        d_my *= mu_y * (1.0 - mu_y)
    d_sx = inward(scale * (gamma - d_x * u_x), s_x, LOG_SIGMA_LIMIT)
    d_sy = inward(scale * (gamma - d_y * u_y), s_y, LOG_SIGMA_LIMIT)
    d_r = scale * gamma * ((D * D * grow - A * A * shrink) * 0.25 - tanh(rho_raw))

    at = out[:, None] + P + m[None, :]
    exist = exists[:, None] & (m < M)[None, :]
    store(at, scale * (weight - gamma), mask, exist, bound)
    store(at + M, d_mx, mask, exist, bound)
    store(at + 2 * M, d_my, mask, exist, bound)
    store(at + 3 * M, d_sx, mask, exist, bound)
    store(at + 4 * M, d_sy, mask, exist, bound)
    store(at + 5 * M, inward(d_r, r, RHO_LIMIT), mask, exist, bound)
    if P == 1:
        e = tl.load(row, mask=live, other=0.0).to(tl.float32)
        goal = tl.load(target + n * 3 + 2, mask=live, other=0.0)
        store(out, grad * (sigmoid(e) - goal), live, exists, bound)
        if dtarget is not None:
            tl.store(dtarget + n * 3 + 2, -grad * e, mask=exists)
    else:
        log_pen, pen, goal, pens = pens_of(row, target, n, live, P)
        k = tl.arange(0, 4)[None, :]
        there = exists[:, None] & (k < 3)
        d_pen = grad[:, None] * (tl.sum(goal, 1)[:, None] * pen - goal)
        store(out[:, None] + k, d_pen, pens, there, bound)
        if dtarget is not None:
            tl.store(dtarget + n[:, None] * 5 + 2 + k, -grad[:, None] * log_pen, mask=there)


@triton.jit(do_not_specialize=["T", "B", "raw_stride_t", "raw_stride_b"], do_not_specialize_on_alignment=["raw"])
def backward(
    grad, raw, target, lengths, draw, dtarget, bound, T, B, raw_stride_t, raw_stride_b,
    M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, SIGMOID: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradients of raw, clipped to ±bound after grad has been applied, and of target; zero where t >= length."""
    n, t, b, exists, live = rows_of(lengths, T, B, ROWS)
    row, out = raw + t * raw_stride_t + b * raw_stride_b, draw + n * (P + 6 * M)
    grad_row = tl.load(grad + n, mask=live, other=0.0)
    gradients(grad_row, row, target, n, live, exists, out, dtarget, bound, M, MP, P, SIGMOID)


@triton.jit
def store(at, gradient, live, exists, bound):
    """Clipped, zero where not live, in the dtype of what `at` points to."""
    tl.store(at, tl.where(live, clip(gradient, bound), 0.0).to(at.dtype.element_ty), mask=exists)
