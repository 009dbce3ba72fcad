"""Calls of every operator, to be compared with the reference: the same on every machine, NaN where nothing is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import reference
from ..ops.checks import PEN_LOGITS, ROW
from ..ops.layout import accumulate, alive

SEED = 1
CLIP = 0.02
LAYERS = 2
RADIUS = 3.0  # of the circle on which the components' means lie, so that another choice is far away
LAYER = ("h", "h_T", "c_T")


class Sizes(NamedTuple):
    """Of what is compared; none of them fits a kernel's tiles."""

    steps: int = 13
    sequences: int = 37
    hidden: int = 140
    mixtures: int = 5


class Call(NamedTuple):
    """Arguments of an operator without checks, its outputs' names, and where they may hold anything."""

    arguments: Sequence[Any]
    outputs: Sequence[str]
    free: dict[str, Tensor] = {}  # noqa: RUF012


class Inputs:
    """What operators are given, random but the same on every machine.

    `full`: ragged lengths, peepholes, skip connections, clips that bite, a categorical pen and sigmoid means; else none
    of them.
    """

    def __init__(self, sizes: Sizes, device: torch.device, dtype: torch.dtype, full: bool) -> None:
        self.sizes, self.device, self.dtype, self.full = sizes, device, dtype, full
        self.pen, self.means = ("categorical", "sigmoid") if full else ("bernoulli", "linear")
        self.clip = CLIP if full else None
        self.generator = torch.Generator().manual_seed(SEED)
        T, B = sizes[:2]
        self.lengths: Tensor | None = None
        self.live = torch.ones(T, B, 1, dtype=torch.bool, device=device)
        if full:
            lengths = torch.randint(T + 1, (B,), generator=self.generator)
            lengths[0], lengths[-1] = T, 0
            self.lengths = lengths.to(device)
            self.live = alive(T, self.lengths)

    def normal(self, *shape: int, like: torch.dtype | None = None, std: float = 1.0) -> Tensor:
        """Normal numbers, of the dtype compared unless another is given."""
        return (std * torch.randn(*shape, generator=self.generator)).to(self.device, like or self.dtype)

    def unread(self, value: Tensor) -> Tensor:
        """NaN where sequences have ended."""
        return torch.where(self.live.view(*self.live.shape[: value.dim()]), value, math.nan)

    def rows(self, *shape: int) -> Tensor:
        """Stroke rows in float32."""
        P = PEN_LOGITS[self.pen]
        pens = torch.randint(max(P, 2), shape, generator=self.generator)
        one_hot = torch.nn.functional.one_hot(pens, max(P, 2))[..., -P:].to(self.device, torch.float32)
        return torch.cat([self.normal(*shape, 2, like=torch.float32, std=0.5), one_hot], -1)

    def layer(self, below: int, L: int = 1) -> list[Tensor]:
        """Weights of the layers of a network over rows of so many columns."""
        H, weights, std = self.sizes.hidden, [], self.sizes.hidden**-0.5
        for n in range(L):
            width = below if n == 0 else H + below * self.full
            weights += [self.normal(4 * H, width, std=std), self.normal(4 * H, H, std=std)]
            weights += [self.normal(4 * H, std=std), self.normal(4 * H, std=std)]
            weights += [self.normal(3, H, like=accumulate(self.dtype), std=0.1)] * self.full
        return weights

    def head(self) -> list[Tensor]:
        """Weights of the head: components on a circle, one row in twenty ends a categorical sequence."""
        P, M, H = PEN_LOGITS[self.pen], self.sizes.mixtures, self.sizes.hidden
        bias, angle = torch.zeros(P + 6 * M), 2 * math.pi * torch.arange(M) / M
        bias[:P] = torch.tensor([1.0, 0.0, -1.6])[:P]
        bias[P + M : P + 3 * M] = RADIUS * torch.cat([angle.cos(), angle.sin()])
        weight = self.normal(P + 6 * M, H * (LAYERS if self.full else 1), std=0.1 * H**-0.5)
        return [weight, bias.to(self.device, self.dtype)]

    def state(self, *layers: int) -> tuple[Tensor, Tensor]:
        """h and c."""
        shape = *layers, self.sizes.sequences, self.sizes.hidden
        return self.normal(*shape), self.normal(*shape, like=accumulate(self.dtype))

    def recurrence(self) -> tuple[Any, ...]:
        """weight_hh, h0, c0, peephole, lengths and clip of a layer."""
        _, weight, _, _, *peephole = self.layer(1)
        return weight, *self.state(), peephole[0] if peephole else None, self.lengths, self.clip


def _lstm(inputs: Inputs) -> Call:
    T, B, H, _ = inputs.sizes
    xw = inputs.unread(inputs.normal(T, B, 4 * H))
    return Call((xw, *inputs.recurrence(), True), (*LAYER, "gates", "cells"))


def _lstm_backward(inputs: Inputs) -> Call:
    _, weight, _, c0, peephole, lengths, clip, _ = (forward := _lstm(inputs)).arguments
    h, h_T, c_T, gates, cells = reference.lstm(*forward.arguments)
    grads = inputs.unread(inputs.normal(*h.shape)), inputs.normal(*h_T.shape), inputs.normal(*c_T.shape, like=c_T.dtype)
    outputs = ("xw", "h0", "c0", "peephole")
    return Call((*grads, weight, c0, peephole, lengths, gates, cells, clip), outputs)


def _lstm_layer(inputs: Inputs) -> Call:
    T, B, H, _ = inputs.sizes
    x, bias = torch.where(inputs.live, inputs.normal(T, B, H), 0), inputs.normal(4 * H)
    weight_ih = inputs.normal(4 * H, H, std=H**-0.5)
    return Call((x, weight_ih, bias, *inputs.recurrence()), (*LAYER, "cells"))


def _lstm_gates(inputs: Inputs) -> Call:
    T, B, H, _ = inputs.sizes
    xw = torch.where(inputs.live, inputs.normal(T, B, 4 * H), 0)
    given = xw, *inputs.recurrence(), True
    h, _, _, _, cells = reference.lstm(*given)
    return Call((*given[:-2], h, cells), ("gates",))


def _mdn_nll(inputs: Inputs) -> Call:
    T, B, _, M = inputs.sizes
    raw = inputs.unread(inputs.normal(T, B, PEN_LOGITS[inputs.pen] + 6 * M, std=0.5))
    target = inputs.unread(inputs.rows(T, B))
    return Call((raw, target, inputs.lengths, inputs.pen, M, inputs.means, inputs.clip), ("nll",))


def _mdn_nll_backward(inputs: Inputs) -> Call:
    arguments = _mdn_nll(inputs).arguments
    grad = inputs.unread(inputs.normal(*inputs.sizes[:2], like=accumulate(inputs.dtype)))
    return Call((grad, *arguments, True), ("raw", "target"))


def _lstm_mdn_nll(inputs: Inputs) -> Call:
    T, B, _, M = inputs.sizes
    full, pen = inputs.full, inputs.pen
    x = torch.where(inputs.live, inputs.normal(T, B, ROW[pen]), 0)
    weights = [*inputs.layer(ROW[pen], LAYERS), *inputs.head()]
    options = M, pen, inputs.means, full, full, inputs.clip, inputs.clip, True
    arguments = x, inputs.unread(inputs.rows(T, B)), weights, *inputs.state(LAYERS), inputs.lengths, *options
    return Call(arguments, ("nll", "h_T", "c_T", "h", "gates", "cells", "raw"), {"raw": ~inputs.live})


def _lstm_mdn_nll_backward(inputs: Inputs) -> Call:
    given = _lstm_mdn_nll(inputs).arguments
    nll, h_T, c_T, *saved = reference.lstm_mdn_nll(*given)
    grads = [inputs.normal(*v.shape, like=nll.dtype) for v in (nll, h_T, c_T)]
    each = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole"][: 5 if inputs.full else 4]
    names = [f"{name}_l{n}" for n in range(LAYERS) for name in each]
    outputs = ("x", "target", *names, "head.weight", "head.bias", "h0", "c0")
    return Call((inputs.unread(grads[0]), *grads[1:], *given[:6], *saved, *given[6:-1], True, True), outputs)


def _generate(inputs: Inputs) -> Call:
    T, B, _, M = inputs.sizes
    full, pen, means = inputs.full, inputs.pen, "linear"  # a sigmoid would bring the components close together
    acc, device = accumulate(inputs.dtype), inputs.device
    row, drawn = torch.zeros(B, ROW[pen], device=device, dtype=acc), torch.zeros(B, device=device, dtype=torch.int64)
    state = *inputs.state(LAYERS), row, drawn, drawn.bool()
    bias, temperature = (torch.full((B,), value, device=device) for value in ((0.4, 0.9) if full else (0.0, 1.0)))
    prime: tuple[Tensor | None, Tensor | None] = None, None
    if inputs.lengths is not None:
        prime = inputs.unread(inputs.rows(T, B)).transpose(0, 1).contiguous(), inputs.lengths
    weights, seed = [*inputs.layer(ROW[pen], LAYERS), *inputs.head()], torch.tensor([SEED, 1 << 40])
    return Call(
        (weights, *state, seed.to(device), T, bias, temperature, *prime, M, pen, means, full, full),
        ("points", "lengths", "h", "c", "row", "drawn", "done"),
    )


CALLS: dict[str, Callable[[Inputs], Call]] = {
    "lstm": _lstm,
    "lstm_backward": _lstm_backward,
    "lstm_layer": _lstm_layer,
    "lstm_gates": _lstm_gates,
    "mdn_nll": _mdn_nll,
    "mdn_nll_backward": _mdn_nll_backward,
    "lstm_mdn_nll": _lstm_mdn_nll,
    "lstm_mdn_nll_backward": _lstm_mdn_nll_backward,
    "generate": _generate,
}
