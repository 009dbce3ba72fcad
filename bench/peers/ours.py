"""FusedLSTMMDN itself, trained as the peers are."""

from __future__ import annotations

import contextlib
import copy

from torch import Tensor

from fusedmdn import FusedLSTMMDN, ops

from ..cell import Cannot
from ..problems import Problem
from .training import TorchTrainer


class OurTrainer(TorchTrainer):
    """A copy of the model, trained; plan: what `ops.plan` takes, None for the one that is chosen.

    Raises:
        Cannot: TF32 or fp16 on a CPU.
    """

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str, plan: str | None = None) -> None:
        if dtype == "fp16" and model.head.weight.device.type == "cpu":
            raise Cannot("our C++ kernels compute in float32 and bfloat16")
        self.model, self.plan = copy.deepcopy(model), plan
        super().__init__(dict(self.model.named_parameters()), dtype)
        for name in ("clip_gates", "clip_output"):
            bound = getattr(model, name)
            if bound is not None:  # of the derivative that is propagated, and that is scaled
                setattr(self.model, name, bound * self.scale)
        self.x, self.target, self.rows = problem.x, problem.target, problem.rows
        self.lengths = None if problem.lengths is None else problem.lengths.to(self.device)

    def loss(self) -> Tensor:
        """See `TorchTrainer.loss`."""
        nll = self.model(self.x, lengths=self.lengths, target=self.target)[0]
        return nll.mean() if self.lengths is None else nll.sum() / self.rows

    def forward(self) -> None:
        """See `TorchTrainer.forward`."""
        with self._planned():
            super().forward()

    def backward(self) -> None:
        """See `TorchTrainer.backward`."""
        with self._planned():
            super().backward()

    def _planned(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.plan is None else ops.plan(self.plan)
