"""The loss alone, forward and gradient of the raw output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fusedmdn import ops

from .. import floors, peers
from ..cell import Cell, Contender, Prepared
from ..contracts import Loss, MakeLoss
from ..machine import Machine
from ..precision import TORCH
from ..problems import Answer, deviation, strokes
from ..settings import Part, Settings

Json = dict[str, Any]
M = 20
COLUMNS = 1 + 6 * M  # of raw
TOLERANCES = {"float32": 5e-5, "bf16": 2e-2, "fp16": 5e-3}  # of the largest value; it has no products, so no tf32


def our_mean(M: int) -> Loss:
    """Mean of our operator's loss."""
    return lambda raw, target: ops.mdn_nll(raw, target, num_mixtures=M).mean()


def arguments(T: int, B: int) -> tuple[Tensor, Tensor]:
    """Raw outputs (T, B, 1 + 6M) and rows (T, B, 3)."""
    return torch.randn(T, B, COLUMNS, generator=torch.Generator().manual_seed(0)), strokes(T, B)


class TorchLoss:
    """A loss of PyTorch tensors, and its gradient."""

    def __init__(self, make: MakeLoss, raw: Tensor, target: Tensor) -> None:
        self.loss, self.raw, self.target = make(M), raw.detach().requires_grad_(), target
        self.value: Tensor | None = None
        self.phases = {"forward": self.forward, "backward": self.backward}

    def forward(self) -> None:
        """The loss."""
        self.clear()
        self.value = self.loss(self.raw, self.target)

    def backward(self) -> None:
        """The gradient of raw."""
        assert self.value is not None
        self.value.backward()

    def clear(self) -> None:
        """Drop both."""
        self.value = self.raw.grad = None

    def answer(self) -> Answer:
        """What the phases compute."""
        self.forward()
        self.backward()
        assert self.value is not None
        assert self.raw.grad is not None
        return Answer(self.value.item(), {"raw": self.raw.grad})


def cells(part: Part, settings: Settings, machine: Machine, ceilings: Json) -> Iterator[Cell]:
    """One cell for each setup."""
    for setup in part.setups:
        raw, target = (value.to(machine.device) for value in arguments(setup["T"], setup["B"]))
        rows, columns = target[..., 0].numel(), raw.shape[-1]
        contenders, found = [], {}
        for dtype in (dtype for dtype in settings.dtypes if dtype in TOLERANCES):
            given = raw.to(TORCH[dtype])
            exact = functools.cache(functools.partial(_reference, given, target))
            contenders.append(_contender("ours", dtype, "ours", our_mean, given, target, exact))
            for name, make in peers.losses(machine.kind).items():
                contenders.append(_contender(name, dtype, "peer", make, given, target, exact))
            floor = floors.loss(rows, columns, dtype, ceilings)
            if floor is not None:
                found[dtype] = floor
        yield Cell("loss", None, {"rows": rows, "columns": columns}, "ms", contenders, found)


def _contender(
    name: str, dtype: str, role: str, make: MakeLoss, raw: Tensor, target: Tensor, exact: Callable[[], Answer]
) -> Contender:
    def prepare() -> Prepared:
        loss = TorchLoss(make, raw, target)
        return Prepared(loss.phases, lambda: deviation(loss.answer(), exact()), loss.clear)

    seen = name not in peers.UNSEEN or raw.device.type == "cpu"
    return Contender(name, dtype, role, prepare, TOLERANCES[dtype], allocates=seen)


def _reference(raw: Tensor, target: Tensor) -> Answer:
    with ops.backend("reference"):
        return TorchLoss(our_mean, raw.double(), target.double()).answer()
