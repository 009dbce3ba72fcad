"""Every operator in plain PyTorch: the specification, and the backend where there is no kernel.

"G n" is equation n of Graves, *Generating Sequences With Recurrent Neural Networks*, arXiv 1308.0850.

Shapes: T steps, B sequences, H hidden units, M mixture components, P pen logits, D = P + 6M; time comes first.
Any float dtype. Matrix products run in the dtype of their inputs; everything else, the cell state and the loss
run in `accumulate(dtype)`: float64 for float64, else float32.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import composed
from .checks import PEN_LOGITS
from .layout import Layer, accumulate, alive, layers_of, packed_rows, unpack
from .stream import box_muller, uniforms

LOG_SIGMA_LIMIT = 12.0
RHO_LIMIT = 15.0
END = 4  # the column of a stroke-5 row that says that the sequence has ended
LOG_2PI = math.log(2 * math.pi)
UNIFORM_BLOCKS = 1 << 20  # of four uniforms: what `generate` fetches at a time
ROWS_AT_ONCE = 1 << 12  # steps times sequences whose mixtures `lstm_mdn_nll` looks at together


def _fresh(v: Tensor) -> Tensor:
    """A contiguous copy: outputs share no memory with inputs, and have the layout that the fakes promise."""
    return v.clone(memory_format=torch.contiguous_format)


def cell(z: Tensor, c: Tensor, peephole: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM step from pre-activations z (B, 4H) in gate order i, f, g, o: gates (B, 4H), c, tanh(c) gated by o.

    i = sigmoid(z_i + p_i c')    f = sigmoid(z_f + p_f c')    g = tanh(z_g)       c' the previous cell state
    c = f c' + i g               o = sigmoid(z_o + p_o c)     h = o tanh(c)
    """
    i, f, g, o = z.chunk(4, dim=-1)
    if peephole is not None:
        i, f = i + peephole[0] * c, f + peephole[1] * c
    i, f, g = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g)
    c = f * c + i * g
    o = torch.sigmoid(o if peephole is None else o + peephole[2] * c)
    return torch.cat([i, f, g, o], dim=-1), c, o * torch.tanh(c)


def _extent(T: int, lengths: Tensor | None) -> tuple[int, int]:
    """Steps that every sequence has, and steps that any sequence has."""
    if lengths is None or not len(lengths):
        return T, T
    return int(lengths.min()), int(lengths.max())


def lstm(
    xw: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    clip: float | None,
    save: bool,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The recurrence over hoisted input projections.

    xw (T, B, 4H), weight_hh (4H, H), h0 and c0 (B, H), peephole (3, H; rows i, f, o), lengths (B).
    Gives h (T, B, H), zero where t >= length; h_T, c_T (B, H) at the last valid step; and for backward, empty unless
    `save`: gates (T, B, 4H) and cells (T, B, H), zero where t >= length. `clip` matters to backward alone. `out`: h,
    gates and cells to write into instead; the gates may lie where xw does.

    All that is (T, B, ·) may be packed instead, as in a PackedSequence: (sum of lengths, ·), the live rows alone, step
    by step, longest sequence first.
    """
    if xw.dim() == 2:
        rows = packed_rows(lengths, len(xw))
        h, h_T, c_T, gates, cells = lstm(unpack(xw, rows), weight_hh, h0, c0, peephole, lengths, clip, save)
        gates, cells = (v[rows] if save else v.flatten(0, 1) for v in (gates, cells))
        saved = h[rows], gates, cells
        h, gates, cells = saved if out is None else (o.copy_(v) for o, v in zip(out, saved, strict=True))
        return h, h_T, c_T, gates, cells
    T, B, H = xw.shape[0], xw.shape[1], xw.shape[2] // 4
    acc = accumulate(xw.dtype)
    h, c = h0.to(xw.dtype), c0.to(acc)
    peephole = None if peephole is None else peephole.to(acc)
    shortest, longest = _extent(T, lengths)
    live = None if lengths is None else alive(T, lengths)
    if out is None:
        kept = T if save else 0
        out = xw.new_empty(T, B, H), xw.new_empty(kept, B, 4 * H), xw.new_empty(kept, B, H, dtype=acc)
    hs, gates, cells = out
    for v in out:
        v[longest:] = 0
    for t in range(longest):
        z = xw[t].to(acc) + (h @ weight_hh.t()).to(acc)
        step_gates, step_c, step_h = cell(z, c, peephole)
        step_h = step_h.to(xw.dtype)
        if live is None or t < shortest:
            h, c = step_h, step_c
        else:
            h, c = torch.where(live[t], step_h, h), torch.where(live[t], step_c, c)
            step_gates, step_c, step_h = (torch.where(live[t], v, 0) for v in (step_gates, step_c, step_h))
        hs[t] = step_h
        if save:
            gates[t], cells[t] = step_gates, step_c
    return hs, _fresh(h), _fresh(c), gates, cells


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    bias: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`lstm` with its input projection, x (T, B, I) times weight_ih (4H, I)^T plus bias (4H): h, h_T, c_T and cells.

    Backward computes the gates again (`lstm_gates`), so neither they nor the projection are kept.
    """
    xw = torch.nn.functional.linear(x, weight_ih, bias)
    h, h_T, c_T, _, cells = lstm(xw, weight_hh, h0, c0, peephole, lengths, clip, True)
    return h, h_T, c_T, cells


def lstm_gates(
    xw: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    cells: Tensor,
) -> Tensor:
    """The gates that `lstm` would have saved, from its inputs, h and cells: all steps at once."""
    if xw.dim() == 2:
        rows = packed_rows(lengths, len(xw))
        xw, h, cells = (unpack(v, rows) for v in (xw, h, cells))
        return lstm_gates(xw, weight_hh, h0, c0, peephole, lengths, h, cells)[rows]
    T = len(xw)
    h_prev, c_prev = torch.cat([h0.to(h.dtype)[None], h])[:T], torch.cat([c0.to(cells.dtype)[None], cells])[:T]
    z = xw.to(cells.dtype) + (h_prev @ weight_hh.t()).to(cells.dtype)
    gates, _, _ = cell(z, c_prev, None if peephole is None else peephole.to(cells.dtype))
    if lengths is not None:
        gates = torch.where(alive(T, lengths), gates, 0)
    return gates.to(xw.dtype)


def lstm_backward(
    grad_h: Tensor,
    grad_h_T: Tensor,
    grad_c_T: Tensor,
    weight_hh: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backpropagation through time: gradients of xw (T, B, 4H), h0, c0 (B, H) and peephole (3, H; empty without one).

    With `clip`, every step's gradient of the pre-activations is clipped to ±clip (Graves, section 2.1) and all that
    lies upstream uses the clipped value. The gradient of xw is that of the pre-activations, so that of weight_hh is
    one matrix product of it with the previous h. Packed where `lstm` was.
    """
    if cells.dim() == 2:
        rows = packed_rows(lengths, len(cells))
        grad_h, gates, cells = (unpack(v, rows) for v in (grad_h, gates, cells))
        rest = weight_hh, c0, peephole, lengths, gates, cells, clip
        dxw, dh0, dc0, dpeephole = lstm_backward(grad_h, grad_h_T, grad_c_T, *rest)
        return dxw[rows], dh0, dc0, dpeephole
    T, B, H = cells.shape
    acc = cells.dtype
    p = None if peephole is None else peephole.to(acc)
    bound = math.inf if clip is None else clip
    shortest, longest = _extent(T, lengths)
    live = cells.new_ones(T, 1, 1, dtype=torch.bool) if lengths is None else alive(T, lengths)
    c_prev = torch.cat([c0.to(acc)[None], cells])[:T]
    i, f, g, o = gates.to(acc).chunk(4, dim=-1)
    tanh_c = torch.tanh(cells)

    # Local derivatives of every step at once; a masked step passes dh and dc through and adds nothing.
    dh_zo = tanh_c * o * (1 - o)
    dh_c = o * (1 - tanh_c * tanh_c)
    dc_z = torch.stack([g * i * (1 - i), c_prev * f * (1 - f), i * (1 - g * g)], dim=2)
    dh_zo, dh_c, dc_z = (torch.where(m, v, 0) for m, v in ((live, dh_zo), (live, dh_c), (live[..., None], dc_z)))
    f = torch.where(live, f, 1)
    grad_h = torch.where(live, grad_h.to(acc), 0)

    dz = gates.new_zeros(T, B, 4, H, dtype=acc)
    dh, dc = grad_h_T.to(acc), grad_c_T.to(acc)
    for t in reversed(range(longest)):
        dh_t = dh + grad_h[t]
        dz_o = (dh_t * dh_zo[t]).clamp(-bound, bound)
        dc = dc + dh_t * dh_c[t]
        if p is not None:
            dc = dc + p[2] * dz_o
        dz[t, :, :3] = (dc[:, None] * dc_z[t]).clamp(-bound, bound)
        dz[t, :, 3] = dz_o
        dc = dc * f[t]
        if p is not None:
            dc = dc + p[0] * dz[t, :, 0] + p[1] * dz[t, :, 1]
        dh_prev = (dz[t].flatten(1).to(weight_hh.dtype) @ weight_hh).to(acc)
        dh = dh_prev if t < shortest else torch.where(live[t], dh_prev, dh)

    dpeephole = cells.new_empty(0)
    if p is not None:
        c_prev = torch.where(live, c_prev, 0)
        read = torch.stack([c_prev, c_prev, cells], dim=2)  # what the peepholes of i, f and o see
        dpeephole = (dz[:, :, [0, 1, 3]] * read).sum((0, 1))
    return dz.flatten(2).to(gates.dtype), _fresh(dh), _fresh(dc), dpeephole


class Components(NamedTuple):
    """The parameters of a mixture: pen logits (..., P), and the rest (..., M), in the accumulation dtype.

    log_weight is normalised; the log deviations and r = atanh(rho) are clamped; the means have had their sigmoid.
    """

    pen: Tensor
    log_weight: Tensor
    mu_x: Tensor
    mu_y: Tensor
    log_sigma_x: Tensor
    log_sigma_y: Tensor
    r: Tensor

    def offset_log_density(self, x: Tensor, y: Tensor) -> Tensor:
        """log N_j(x, y), (..., M): G 24-25 in the form that neither cancels nor leaves the log domain."""
        return self.log_density(*self.whiten(x, y))

    def whiten(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """u = (offset - mu) / sigma on either axis, (..., M)."""
        return (x - self.mu_x) * torch.exp(-self.log_sigma_x), (y - self.mu_y) * torch.exp(-self.log_sigma_y)

    def log_density(self, u_x: Tensor, u_y: Tensor) -> Tensor:
        """log N_j of whitened offsets, (..., M)."""
        A, D = u_x + u_y, u_x - u_y
        z = (A * A * (1 + torch.exp(-2 * self.r)) + D * D * (1 + torch.exp(2 * self.r))) / 4
        return -LOG_2PI - self.log_sigma_x - self.log_sigma_y - log_one_minus_rho2(self.r) / 2 - z / 2


def log_one_minus_rho2(r: Tensor) -> Tensor:
    """log(1 - tanh(r)^2), without cancellation."""
    return 2 * (math.log(2) - r.abs() - torch.log1p(torch.exp(-2 * r.abs())))


def split_raw(raw: Tensor, pen: str, num_mixtures: int) -> tuple[Tensor, ...]:
    """raw (..., D) -> [pen P | pi M | mu_x M | mu_y M | log_sigma_x M | log_sigma_y M | rho M]."""
    return raw.split([PEN_LOGITS[pen]] + [num_mixtures] * 6, dim=-1)


def components(raw: Tensor, pen: str, num_mixtures: int, means: str) -> Components:
    """The transforms of section 4.1 of Graves (G 18-22), in the accumulation dtype of raw (..., D)."""
    e, a, m_x, m_y, s_x, s_y, r = split_raw(raw.to(accumulate(raw.dtype)), pen, num_mixtures)
    if means == "sigmoid":
        m_x, m_y = torch.sigmoid(m_x), torch.sigmoid(m_y)
    s_x, s_y = (s.clamp(-LOG_SIGMA_LIMIT, LOG_SIGMA_LIMIT) for s in (s_x, s_y))
    return Components(e, a.log_softmax(-1), m_x, m_y, s_x, s_y, r.clamp(-RHO_LIMIT, RHO_LIMIT))


def counted(target: Tensor, lengths: Tensor | None, pen: str) -> tuple[Tensor, Tensor]:
    """(T, B, 1) bool each: rows that count at all, and rows whose offsets count (a categorical end row's do not)."""
    rows = target.new_ones(target.shape[:2], dtype=torch.bool)[..., None]
    if lengths is not None:
        rows = alive(target.shape[0], lengths)
    return rows, rows & (target[..., END:] <= 0.5) if pen == "categorical" else rows


def mdn_nll(
    raw: Tensor,
    target: Tensor,
    lengths: Tensor | None,
    pen: str,
    num_mixtures: int,
    means: str,
    clip: float | None,
) -> Tensor:
    """Negative log-likelihood of strokes under the mixture, in nats, (T, B); zero where t >= length (G 26).

    raw (T, B, D); target (T, B, 3) = (dx, dy, eos) or (T, B, 5) = (dx, dy, draw, lift, end).
        nll = - logsumexp_j( log_softmax(a)_j + log N_j ) + pen cross-entropy with logits
    """
    target = target.to(accumulate(raw.dtype))
    rows, with_offset = counted(target, lengths, pen)
    target = torch.where(rows, target, 0)
    q = components(torch.where(rows, raw, 0), pen, num_mixtures, means)
    xy = torch.where(with_offset, target[..., :2], 0)
    offset = -torch.logsumexp(q.log_weight + q.offset_log_density(xy[..., 0:1], xy[..., 1:2]), -1, keepdim=True)
    if pen == "bernoulli":
        pen_nll = torch.nn.functional.softplus(q.pen) - target[..., 2:] * q.pen
    else:
        pen_nll = -(target[..., 2:] * q.pen.log_softmax(-1)).sum(-1, keepdim=True)
    return torch.where(rows, torch.where(with_offset, offset, 0) + pen_nll, 0)[..., 0]


def mdn_nll_backward(
    grad: Tensor,
    raw: Tensor,
    target: Tensor,
    lengths: Tensor | None,
    pen: str,
    num_mixtures: int,
    means: str,
    clip: float | None,
    want_target: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of raw (T, B, D) and, if wanted, of target (else empty), in their dtypes (G 27-37).

    Where a clamp is active its gradient passes only if a descent step would bring the raw value back inside. With
    `clip`, the gradient of raw is clipped to ±clip, elementwise, after the incoming gradient has been applied.
    """
    acc = accumulate(raw.dtype)
    rows, with_offset = counted(target, lengths, pen)
    grad = torch.where(rows, grad.to(acc)[..., None], 0)
    raw_rows = torch.where(rows, raw, 0)
    target_rows = torch.where(rows, target.to(acc), 0)
    q = components(raw_rows, pen, num_mixtures, means)
    xy = torch.where(with_offset, target_rows[..., :2], 0)
    u_x, u_y = q.whiten(xy[..., 0:1], xy[..., 1:2])
    A, D = u_x + u_y, u_x - u_y
    plus, minus = A * (1 + torch.exp(-2 * q.r)), D * (1 + torch.exp(2 * q.r))
    gamma = torch.softmax(q.log_weight + q.log_density(u_x, u_y), -1)  # the responsibilities, G 28-29

    # derivatives of -log(sum_j pi_j N_j), G 30-37; (plus ± minus) / 2 is the derivative of Z / (1 - rho^2)
    scale = torch.where(with_offset, grad, 0)
    d_x, d_y = (gamma * (plus + minus) / 4, gamma * (plus - minus) / 4)
    d_logit = scale * (q.log_weight.exp() - gamma)
    d_mx, d_my = -scale * d_x * torch.exp(-q.log_sigma_x), -scale * d_y * torch.exp(-q.log_sigma_y)
    d_target = -torch.stack([d_mx.sum(-1), d_my.sum(-1)], dim=-1) if want_target else None
    d_sx, d_sy = scale * (gamma - d_x * u_x), scale * (gamma - d_y * u_y)
    d_r = scale * gamma * ((D * D * torch.exp(2 * q.r) - A * A * torch.exp(-2 * q.r)) / 4 - torch.tanh(q.r))
    if means == "sigmoid":
        d_mx, d_my = d_mx * q.mu_x * (1 - q.mu_x), d_my * q.mu_y * (1 - q.mu_y)
    if pen == "bernoulli":
        d_pen = grad * (torch.sigmoid(q.pen) - target_rows[..., 2:])
    else:
        total = target_rows[..., 2:].sum(-1, keepdim=True)
        d_pen = grad * (total * q.pen.softmax(-1) - target_rows[..., 2:])

    _, _, _, _, s_x, s_y, r = split_raw(raw_rows.to(acc), pen, num_mixtures)
    d_sx, d_sy = _inward(d_sx, s_x, LOG_SIGMA_LIMIT), _inward(d_sy, s_y, LOG_SIGMA_LIMIT)
    d_r = _inward(d_r, r, RHO_LIMIT)
    d_raw = torch.cat([d_pen, d_logit, d_mx, d_my, d_sx, d_sy, d_r], dim=-1)
    if clip is not None:
        d_raw = d_raw.clamp(-clip, clip)
    if d_target is None:
        return d_raw.to(raw.dtype), target.new_empty(0)
    d_pen_target = -grad * (q.pen if pen == "bernoulli" else q.pen.log_softmax(-1))
    return d_raw.to(raw.dtype), torch.cat([d_target, d_pen_target], dim=-1).to(target.dtype)


def _inward(gradient: Tensor, raw: Tensor, limit: float) -> Tensor:
    """Zero where raw lies outside ±limit and a descent step would not bring it back."""
    outward = ((raw > limit) & (gradient < 0)) | ((raw < -limit) & (gradient > 0))
    return torch.where(outward, 0, gradient)


KERNELS = composed.Kernels(lstm, lstm_backward, mdn_nll, mdn_nll_backward, ROWS_AT_ONCE)


def lstm_mdn_nll(
    x: Tensor,
    target: Tensor,
    weights: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    num_mixtures: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
    clip_gates: float | None,
    clip_output: float | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The whole network's loss: layers of `lstm`, the head, and `mdn_nll` of the rows that follow the inputs.

    x (T, B, I) in the weights' dtype; target (T, B, 3 or 5); weights as in `generate`, but of any I, and the peepholes
    of any dtype; h0, c0 (L, B, H). Gives nll (T, B), zero where t >= length; h_T, c_T (L, B, H); and for backward, with
    no step unless `save`: h (L, T, B, H), gates (L, T, B, 4H) and cells (L, T, B, H) as in `lstm`, and raw (T, B, D),
    which may hold anything where t >= length. Packed as in `lstm`: x, target, nll and raw are (rows, ·), and what the
    layers save (L, rows, ·).
    """
    return composed.forward(
        KERNELS, x, target, weights, h0, c0, lengths, num_mixtures, pen, means, skip, peephole, clip_gates, clip_output,
        save,
    )  # fmt: skip


def lstm_mdn_nll_backward(
    grad: Tensor,
    grad_h_T: Tensor,
    grad_c_T: Tensor,
    x: Tensor,
    target: Tensor,
    weights: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    raw: Tensor,
    num_mixtures: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
    clip_gates: float | None,
    clip_output: float | None,
    want_x: bool,
    want_target: bool,
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    """Gradients of x, target (empty unless wanted) and weights, in their dtypes, and of h0 and c0 (L, B, H)."""
    return composed.backward(
        KERNELS, grad, grad_h_T, grad_c_T, x, target, weights, h0, c0, lengths, h, gates, cells, raw, num_mixtures, pen,
        means, skip, peephole, clip_gates, clip_output, want_x, want_target,
    )  # fmt: skip


def draw(q: Components, u: Tensor, bias: Tensor, temperature: Tensor, pen: str) -> Tensor:
    """One row (..., 3 or 5) from one block of uniforms u (..., 4), word by word as DESIGN's random stream says.

    word 0: component; word 1: pen; words 2 and 3: the two normals. bias and temperature (...) act on the offsets alone:
    s - b + ln tau (G 61), a (1 + b) / tau (G 62).
    """
    u = u.to(q.pen.dtype)
    b, tau = bias.to(u.dtype)[..., None], temperature.to(u.dtype)[..., None]
    j = choose(torch.softmax(q.log_weight * (1 + b) / tau, -1), u[..., 0:1])
    mu_x, mu_y, s_x, s_y, r = (v.gather(-1, j) for v in q[2:])
    sigma_x, sigma_y = torch.exp(s_x - b + tau.log()), torch.exp(s_y - b + tau.log())
    n1, n2 = box_muller(u[..., 2:3], u[..., 3:4])
    dx, dy = mu_x + sigma_x * n1, mu_y + sigma_y * (torch.tanh(r) * n1 + n2 / torch.cosh(r))
    if pen == "bernoulli":
        return torch.cat([dx, dy, (u[..., 1:2] < torch.sigmoid(q.pen)).to(u.dtype)], dim=-1)
    state = choose(torch.softmax(q.pen, -1), u[..., 1:2])
    one_hot = torch.zeros_like(q.pen).scatter(-1, state, 1.0)
    offset = torch.where(state == END - 2, 0, torch.cat([dx, dy], dim=-1))
    return torch.cat([offset, one_hot], dim=-1)


def choose(weights: Tensor, u: Tensor) -> Tensor:
    """(..., 1) int64: the smallest j whose cumulative weight, in index order, is >= u; else the last of any weight."""
    cumulative = weights.cumsum(-1)
    j = (cumulative < u).sum(-1, keepdim=True)
    index = torch.arange(weights.shape[-1], device=weights.device)
    last = torch.where(weights > 0, index, 0).amax(-1, keepdim=True)
    return torch.minimum(j, last)


def generate(
    weights: list[Tensor],
    h: Tensor,
    c: Tensor,
    row: Tensor,
    drawn: Tensor,
    done: Tensor,
    seed: Tensor,
    steps: int,
    bias: Tensor,
    temperature: Tensor,
    prime: Tensor | None,
    prime_lengths: Tensor | None,
    num_mixtures: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sample `steps` rows of every sequence, each fed back as the next input.

    weights: per layer weight_ih, weight_hh, bias_ih, bias_hh (and peephole), then head weight and bias. State: h and c
    (L, B, H), last row (B, I), rows drawn so far (B) int64, done (B) bool. seed (2) int64: seed and the first
    sequence's index. prime (B, Tp, I), with prime_lengths (B), is read after the last row and before the first draw.
    Gives points (steps, B, I), zero after a sequence's end; lengths (B), points drawn, without the end row; new state.
    """
    layers, head_weight, head_bias = layers_of(weights, peephole)
    acc = accumulate(head_weight.dtype)
    h, c, row, drawn, done = h.to(head_weight.dtype), c.to(acc), row.to(acc), drawn.clone(), done.clone()
    if prime is not None and prime.shape[1]:
        h, c, row = _read_prime(layers, h, c, row, done, prime.to(acc), prime_lengths, skip)

    B = row.shape[0]
    points = row.new_zeros(steps, B, row.shape[1])
    lengths = torch.zeros_like(drawn)
    key, first_index = seed.tolist()
    block = max(1, min(steps, UNIFORM_BLOCKS // max(B, 1)))
    for t in range(steps):
        if bool(done.all()):
            break
        if t % block == 0:  # sequences still alive have all drawn one row a step
            u = uniforms(key, first_index, B, block, first_step=drawn).to(row.device)
        below, new_h, new_c = row.to(head_weight.dtype), [], []
        x = below
        for n, layer in enumerate(layers):
            z = torch.nn.functional.linear(below, layer.weight_ih, layer.bias_ih + layer.bias_hh).to(acc)
            z = z + (h[n] @ layer.weight_hh.t()).to(acc)
            _, layer_c, layer_h = cell(z, c[n], None if layer.peephole is None else layer.peephole.to(acc))
            new_c.append(layer_c)
            new_h.append(layer_h.to(head_weight.dtype))
            below = torch.cat([x, new_h[-1]], dim=-1) if skip else new_h[-1]
        top = torch.cat(new_h, dim=-1) if skip else new_h[-1]
        q = components(torch.nn.functional.linear(top, head_weight, head_bias), pen, num_mixtures, means)
        new_row = draw(q, u[:, t % block], bias, temperature, pen)

        going = ~done[:, None]
        h, c = torch.where(going, torch.stack(new_h), h), torch.where(going, torch.stack(new_c), c)
        row = torch.where(going, new_row, row)
        points[t] = torch.where(going, new_row, 0)
        drawn = drawn + going[:, 0]
        if pen == "categorical":
            done = done | (row[:, END] > 0.5)
        lengths = lengths + (going[:, 0] & ~done)
    return points, lengths, _fresh(h), _fresh(c), _fresh(row), drawn, done


def _read_prime(
    layers: list[Layer],
    h: Tensor,
    c: Tensor,
    row: Tensor,
    done: Tensor,
    prime: Tensor,
    lengths: Tensor | None,
    skip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher-forced steps over the last row and all of the prime but its last row, which becomes the last row."""
    B, Tp, _ = prime.shape
    lengths = torch.where(done, 0, prime.new_full((B,), Tp, dtype=torch.int64) if lengths is None else lengths)
    x = torch.cat([row[None], prime.transpose(0, 1)])
    row = x.gather(0, lengths.to(torch.int64)[None, :, None].expand(1, B, x.shape[-1]))[0]
    x = torch.where(alive(Tp, lengths), x[:-1], 0).to(h.dtype)
    below, new_h, new_c = x, [], []
    for n, layer in enumerate(layers):
        xw = torch.nn.functional.linear(below, layer.weight_ih, layer.bias_ih + layer.bias_hh)
        out, h_n, c_n, _, _ = lstm(xw, layer.weight_hh, h[n], c[n], layer.peephole, lengths, None, False)
        new_h.append(h_n)
        new_c.append(c_n)
        below = torch.cat([x, out], dim=-1) if skip else out
    return torch.stack(new_h), torch.stack(new_c), row
