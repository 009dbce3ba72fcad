"""The loss alone, forward and gradient of the raw output; its time, and its peak memory in a process of its own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fusedmdn import ops

from ..cell import Cell, Contender, Prepared, describe, result
from ..memory import peak_over_raw
from ..peers import torch_losses
from ..problems import Answer, deviation, strokes
from ..settings import Settings

M = 20
TOLERANCE = 1e-3


def our_mean(M: int) -> torch_losses.Loss:
    """Mean of our operator's loss."""
    return lambda raw, target: ops.mdn_nll(raw, target, num_mixtures=M).mean()


TORCH: dict[str, Callable[[int], torch_losses.Loss]] = {
    "ours": our_mean,
    "eager": torch_losses.eager_mean,
    "naive eager": torch_losses.naive_mean,
    "torch.compile": torch_losses.compiled_mean,
}


def arguments(T: int, B: int) -> tuple[Tensor, Tensor]:
    """Raw outputs (T, B, 1 + 6M) and rows (T, B, 3)."""
    return torch.randn(T, B, 1 + 6 * M, generator=torch.Generator().manual_seed(0)), strokes(T, B)


def forward_and_gradient(loss: torch_losses.Loss, raw: Tensor, target: Tensor) -> Answer:
    """The loss and its gradient of raw."""
    leaf = raw.detach().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    assert leaf.grad is not None
    return Answer(value.item(), {"raw": leaf.grad})


def cells(settings: Settings) -> Iterator[Cell]:
    """The one cell that is timed."""
    T, B = settings.sizes.loss
    calls = settings.sizes.loss_calls
    raw, target = arguments(T, B)
    exact = functools.cache(lambda: _reference(raw, target))

    def prepare_torch(make: Callable[[int], torch_losses.Loss]) -> Prepared:
        loss = make(M)
        return Prepared(
            lambda: [forward_and_gradient(loss, raw, target) for _ in range(calls)],
            lambda: deviation(forward_and_gradient(loss, raw, target), exact()),
        )

    def prepare_jax() -> Prepared:
        from ..peers.jax_peer import JaxLoss

        peer = JaxLoss(raw, target, M)
        return Prepared(lambda: [peer.step() for _ in range(calls)], lambda: deviation(peer.answer(), exact()))

    contenders = [
        Contender(name, _role(name), functools.partial(prepare_torch, make), TOLERANCE, calls)
        for name, make in TORCH.items()
    ]
    contenders.append(Contender("JAX", "peer", prepare_jax, TOLERANCE, calls))
    yield Cell("loss", None, {"rows": T * B, "columns": 1 + 6 * M}, "ms", contenders)


def memory(settings: Settings, timed: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Peak memory above y, the raw output, as a multiple of it, of the contenders that were timed.

    The gradient of y counts.
    """
    T, B = settings.sizes.loss
    load, results = os.getloadavg(), []
    for entry in timed["results"]:
        name, values, reason = entry["contender"], [], entry["reason"]
        if name not in TORCH:
            continue
        if reason is None:
            say(f"{name}, peak memory")
            try:
                values = peak_over_raw(name, T, B)
            except RuntimeError as trouble:
                reason = str(trouble)
        results.append(result(name, entry["role"], values, [], "x y", None, 0.0, reason))
    return describe(Cell("loss memory", None, timed["setup"], "x y", []), load, results)


def _role(name: str) -> str:
    return "ours" if name == "ours" else "peer"


def _reference(raw: Tensor, target: Tensor) -> Answer:
    with ops.backend("reference"):
        return forward_and_gradient(our_mean(M), raw.double(), target.double())
