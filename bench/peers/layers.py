"""What trainers share that compose a stack of layers written by somebody else than PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedmdn import FusedLSTMMDN

from ..models import copied, inputs_of
from ..problems import Problem
from .torch_losses import mean_over
from .training import TorchTrainer, row_weights


class LayerTrainer(TorchTrainer):
    """A stack of somebody's layers with the head and the loss; `_layer` is one of them.

    With `batch_first` a layer reads and gives (B, T, ·): the problem is transposed beforehand, not in every step.
    """

    batch_first = False

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str) -> None:
        self.L, self.H, self.skip = model.num_layers, model.hidden_size, model.skip
        self.p = self._parameters(model)
        super().__init__(self.p, dtype)
        self.x, self.target, weights = problem.x, problem.target, row_weights(problem)
        if self.batch_first:
            self.x, self.target = (rows.transpose(0, 1).contiguous() for rows in (self.x, self.target))
            weights = None if weights is None else weights.t().contiguous()
        self.mean = mean_over(weights, model.num_mixtures)

    def loss(self) -> Tensor:
        """See `TorchTrainer.loss`."""
        outputs: list[Tensor] = []
        for n in range(self.L):
            outputs.append(self._layer(n, inputs_of(self.x, outputs, self.skip)))
        top = torch.cat(outputs, -1) if self.skip else outputs[-1]
        return self.mean(F.linear(top, self.p["head.weight"], self.p["head.bias"]), self.target)

    def _parameters(self, model: FusedLSTMMDN) -> dict[str, Tensor]:
        return copied(model)

    def _layer(self, n: int, below: Tensor) -> Tensor:
        raise NotImplementedError
