"""`lstm_mdn_nll` and its backward, composed of a backend's kernels and of matrix products over all time.

Forward, with h^0 nothing, and [·] side by side:

    z^n = [x ; h^{n-1}] W_ih^n + biases      one product over all time, into the memory that the gates will take
    h^n = lstm(z^n)                          without skip connections, layers above the first read h^{n-1} alone
    raw = [h^1 ; … ; h^L] W_head + bias      or h^L alone
    nll = mdn_nll(raw, target)

Backward goes the same way from the top. A layer's dz, the gradient of its z, is freed once all that it is multiplied
with has been: the gradients of its weights, of x, and of h below.

Written out it is faster than autograd's walk through the same operators: a training step of 3 layers of 400 with skips
takes 0.95 of the time on one core of an AMD EPYC (T = 100, B = 16; 0.94 ragged; 0.93 at T = 300, B = 32) and 4 to 8%
less memory, commit d28f064 against 5211c91, interleaved, medians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import ROW, check_weights, expect_shape
from .layout import accumulate, layers_of
from .products import recurrent_gradient, side_by_side, side_by_side_gradients
from .recycled import empty


class Kernels(NamedTuple):
    """A backend's kernels, by the operators' names; and rows (steps times sequences) that the loss is given at a time.

    lstm also takes `out`: h, gates and cells to write into. The gates may lie where its first argument does.
    """

    lstm: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    lstm_backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    mdn_nll: Callable[..., Tensor]
    mdn_nll_backward: Callable[..., tuple[Tensor, Tensor]]
    rows_at_once: int | None = None


def forward(
    kernels: Kernels,
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
    """Arguments and results as `reference.lstm_mdn_nll`."""
    check_weights(weights, h0, x.shape[-1], num_mixtures, pen, skip, peephole)
    expect_shape("target", target, *x.shape[:-1], ROW[pen])
    layers, head_weight, head_bias = layers_of(weights, peephole)
    (L, _, H), rows, acc = h0.shape, x.shape[:-1], accumulate(x.dtype)
    saved = rows if save else (0, *rows[1:])
    h, gates, raw = empty(x, L, *saved, H), empty(x, L, *saved, 4 * H), empty(x, *saved, len(head_bias))
    cells = empty(x, L, *saved, H, dtype=acc)
    z = None if save else empty(x, *rows, 4 * H)
    outputs: list[Tensor] = []  # as far as they are still read
    last: list[tuple[Tensor, Tensor]] = []
    for n, layer in enumerate(layers):
        bias = layer.bias_ih + layer.bias_hh
        xw = side_by_side(_inputs(x, outputs, skip), layer.weight_ih, bias, out=gates[n] if z is None else z)
        recurrence = xw, layer.weight_hh, h0[n], c0[n], layer.peephole, lengths, clip_gates, save
        h_n, h_T, c_T, _, _ = kernels.lstm(*recurrence, out=(h[n], gates[n], cells[n]) if save else None)
        outputs = [*outputs, h_n] if skip else [h_n]
        last.append((h_T, c_T))

    nll = x.new_empty(rows, dtype=acc)
    packed = x.dim() == 2
    its_nll, its_raw, target, *outputs = _with_batch(packed, nll, raw, target, *outputs)
    for steps, its_lengths in _blocks(its_nll, None if packed else lengths, kernels.rows_at_once):
        out = side_by_side([v[steps] for v in outputs], head_weight, head_bias, out=its_raw[steps] if save else None)
        its_nll[steps] = kernels.mdn_nll(out, target[steps], its_lengths, pen, num_mixtures, means, clip_output)
    return nll, torch.stack([h_T for h_T, _ in last]), torch.stack([c_T for _, c_T in last]), h, gates, cells, raw


def backward(
    kernels: Kernels,
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
    """Arguments and results as `reference.lstm_mdn_nll_backward`."""
    packed, parts = x.dim() == 2, []
    loss = _with_batch(packed, grad, raw, target)
    for steps, its_lengths in _blocks(loss[0], None if packed else lengths, kernels.rows_at_once):
        given = *(v[steps] for v in loss), its_lengths, pen, num_mixtures, means, clip_output, want_target
        parts.append(kernels.mdn_nll_backward(*given))
    draw, dtarget = (v[0] if len(v) == 1 else torch.cat(v) for v in zip(*parts, strict=True))
    draw, dtarget = draw.view(raw.shape), dtarget.view(target.shape if want_target else 0)
    products = OverTime(x, weights, h, h0, lengths, skip, peephole, want_x)
    products.add_head(draw)

    (L, _, H), (layers, head_weight, _) = h0.shape, layers_of(weights, peephole)
    of_head = head_weight.split(H, dim=1)  # the columns that a layer is multiplied with
    dh0, dc0 = cells.new_empty(h0.shape), cells.new_empty(h0.shape)
    dh = empty(h, *h.shape[1:])
    dh_rows = dh.flatten(0, -2)
    torch.mm(draw.flatten(0, -2), of_head[-1], out=dh_rows)
    for n in reversed(range(L)):
        recurrence = layers[n].weight_hh, c0[n], layers[n].peephole, lengths, gates[n], cells[n], clip_gates
        dz, dh0[n], dc0[n], dpeephole = kernels.lstm_backward(dh, grad_h_T[n], grad_c_T[n], *recurrence)
        products.add_layer(n, dz, dpeephole)
        if n:
            if skip:
                torch.mm(draw.flatten(0, -2), of_head[n - 1], out=dh_rows)
            dh_rows.addmm_(dz.flatten(0, -2), layers[n].weight_ih[:, -H:], beta=float(skip))
        del dz  # before the next one is made
    return products.x, dtarget, products.weights, dh0, dc0


class OverTime:
    """The gradients that are products over all time, from those of the head's output and of every layer's z.

    weights: those of the weights, in their order and dtypes. x: that of x, empty unless wanted. Each is whole once
    `add_head` and, for every layer, `add_layer` have been called, in any order.
    """

    def __init__(
        self,
        x: Tensor,
        weights: list[Tensor],
        h: Tensor,
        h0: Tensor,
        lengths: Tensor | None,
        skip: bool,
        peephole: bool,
        want_x: bool,
    ) -> None:
        self.layers, _, _ = layers_of(weights, peephole)
        self.x = x.new_zeros(x.shape) if want_x else x.new_empty(0)
        self._given, self._h, self._h0, self._lengths = x, h, h0.to(h.dtype), lengths
        self._skip, self._want_x = skip, want_x
        self._of_layers: list[list[Tensor]] = [[] for _ in self.layers]
        self._of_head: list[Tensor] = []

    @property
    def weights(self) -> list[Tensor]:
        """In the operators' order."""
        return [*(gradient for layer in self._of_layers for gradient in layer), *self._of_head]

    def add_head(self, draw: Tensor) -> None:
        """From the gradient of the head's output, (T, B, D) or packed."""
        self._of_head = [*side_by_side_gradients(draw, list(self._h if self._skip else self._h[-1:]))]

    def add_layer(self, n: int, dz: Tensor, dpeephole: Tensor) -> None:
        """From the gradients of layer n's z, (T, B, 4H) or packed, and of its peephole, of any dtype; empty without."""
        layer = self.layers[n]
        weight_ih, bias = side_by_side_gradients(dz, _inputs(self._given, list(self._h[:n]), self._skip))
        weight_hh = recurrent_gradient(dz, self._h[n], self._h0[n], self._lengths)
        self._of_layers[n] = [weight_ih, weight_hh, bias, bias.clone()]
        if layer.peephole is not None:
            self._of_layers[n].append(dpeephole.to(layer.peephole.dtype))
        if self._want_x and (n == 0 or self._skip):
            self.x.flatten(0, -2).addmm_(dz.flatten(0, -2), layer.weight_ih[:, : self.x.shape[-1]])


def _inputs(x: Tensor, below: list[Tensor], skip: bool) -> list[Tensor]:
    """What a layer reads side by side, from x and the outputs of the layers below it."""
    return [x, *below[-1:]] if skip or not below else below[-1:]


def _with_batch(packed: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Packed rows as the steps of one sequence."""
    return tuple(v[:, None] for v in tensors) if packed else tensors


def _blocks(nll: Tensor, lengths: Tensor | None, rows_at_once: int | None) -> Iterator[tuple[slice, Tensor | None]]:
    """Steps of nll (T, B), of so many rows at most but one step at least; and the lengths counted from the first."""
    T, B = nll.shape
    if rows_at_once is None or rows_at_once >= T * B:
        yield slice(T), lengths
        return
    at_once = max(1, rows_at_once // B)
    for t in range(0, T, at_once):
        yield slice(t, t + at_once), None if lengths is None else lengths - t
