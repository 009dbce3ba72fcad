"""What contenders are, whoever they are: trainers, samplers and losses, and how each of them is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from fusedmdn import FusedLSTMMDN

from .problems import Answer, Problem


class Trainer(Protocol):
    """Does training steps of one model on one problem, in one precision; it has a copy of the model's weights.

    phases: the parts of a step, run in this order and timed apart: "forward", "backward" and "optimiser", or "forward +
    backward" of those that cannot part them.
    """

    @property
    def phases(self) -> Mapping[str, Callable[[], object]]:
        """See the class."""

    def clear(self) -> None:
        """Drop what the phases have left behind, as gradients are."""

    def answer(self) -> Answer:
        """Loss and gradients of one fresh forward and backward: unscaled, of float32 or float64, by our names."""


class Sampler(Protocol):
    """Samples by one model, in one precision.

    Tensors are float32 and on the model's device, whatever dtype the network inside has.
    """

    def raw(self, x: Tensor) -> Tensor:
        """Raw outputs (T, B, 1 + 6M) of given rows (T, B, 3), step by step by the network that `sample` runs."""

    def draw(self, raw: Tensor) -> Tensor:
        """A row (N, 3) from each raw output (N, 1 + 6M), by the draws that `sample` makes."""

    def sample(self, batch: int, steps: int) -> object:
        """Rows (steps, batch, 3), each fed back; only the time it takes is looked at."""


Loss = Callable[[Tensor, Tensor], Tensor]  # the mean in nats over rows, of raw (..., 1 + 6M) and target (..., 3)

MakeTrainer = Callable[[FusedLSTMMDN, Problem, str], Trainer]  # model, problem, dtype
MakeSampler = Callable[[FusedLSTMMDN, str, int], Sampler]  # model, dtype, threads
MakeLoss = Callable[[int], Loss]  # components
