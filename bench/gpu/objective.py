"""What is trained: a model's loss of fixed rows and its gradients, by our operator or the reference."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from fusedmdn.ops.layout import alive
from torch import Tensor

from fusedmdn import ops

from .. import plans
from ..models import build
from ..precision import TORCH
from ..problems import strokes
from .machine import Outputs

PLANS = "fused", "composed"


class Objective:
    """A model of the benchmark and rows (T, B, 3), all the same for a seed; another seed has other weights too.

    Ragged: of 0 to T rows that count, NaN beyond. The rows are numbers of the weights' dtype, held in float32.
    """

    def __init__(
        self,
        name: str,
        units: int | None,
        elements: str,
        shape: tuple[int, int],
        device: torch.device,
        *,
        ragged: bool = False,
        seed: int = 0,
    ) -> None:
        self.name, self.elements, self.dtype, (T, B) = name, elements, TORCH[elements], shape
        self.model = build(name, units).to(device, self.dtype)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1 + seed / 8)
        rows, self.lengths = strokes(T, B, 1 + seed).to(self.dtype).float(), None
        if ragged:
            lengths = torch.randint(T + 1, (B,), generator=torch.Generator().manual_seed(seed))
            rows = torch.where(alive(T, lengths), rows, math.nan)
            self.lengths = lengths.to(device)
        self.rows = rows.to(device)

    @property
    def parameters(self) -> Outputs:
        """By their names."""
        return dict(self.model.named_parameters())

    @property
    def leaves(self) -> Outputs:
        """All that is read."""
        lengths = {} if self.lengths is None else {"lengths": self.lengths}
        return {"rows": self.rows, **lengths, **self.parameters}

    def plans(self) -> dict[str, Any]:
        """Of each direction; raises RuntimeError where one is forced that does not fit."""
        return plans.training(self.model, self.rows.shape[1], self.dtype)

    def both(self) -> Outputs:
        """All outputs, and the gradients of their means' sum."""
        outputs, leaves = self.forward()
        return {name: value.detach() for name, value in outputs.items()} | self.backward(outputs, leaves)

    def forward(self) -> tuple[Outputs, Outputs]:
        """The loss of every row and the last state; and the leaves that have gradients."""
        rows = self.rows.detach().requires_grad_()
        nll, (h, c, _) = self.model.nll(rows, self.lengths, reduction="none", return_state=True)
        return {"nll": nll, "h": h, "c": c}, {"rows": rows, **self.parameters}

    def backward(self, outputs: Outputs, leaves: Outputs) -> Outputs:
        """The leaves' gradients."""
        total = torch.stack([value.mean().to(outputs["nll"].dtype) for value in outputs.values()]).sum()
        return gradients(total, leaves)

    def references(self, method: Callable[[Objective], Outputs]) -> tuple[Callable[[], Outputs], Callable[[], Outputs]]:
        """What a method gives by the plain-PyTorch reference in its dtype and in float64, computed when first asked."""

        def by_reference(dtype: torch.dtype) -> Outputs:
            other = copy.copy(self)
            other.model = copy.deepcopy(self.model).to(dtype)
            other.rows = self.rows.to(torch.promote_types(dtype, torch.float32))
            with ops.backend("reference"):
                return method(other)

        same, exact = (functools.cache(functools.partial(by_reference, d)) for d in (self.dtype, torch.float64))
        return same, exact


def gradients(loss: Tensor, leaves: Outputs) -> Outputs:
    """Of all leaves, by their names."""
    return dict(zip(leaves, torch.autograd.grad(loss, tuple(leaves.values())), strict=True))
