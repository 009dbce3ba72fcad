"""One LSTM layer on fixed inputs, by our operators: its output and the gradients of all that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from fusedmdn.ops import plans
from torch import Tensor, nn

from fusedmdn import ops

from .machine import Outputs

LEAVES = ("x", "weight_ih", "bias", "weight_hh")


class Layer:
    """The layer: `call` makes h (T, B, H) of the leaves, whose gradients are of sum(h grad)."""

    def __init__(self, call: Callable[..., Tensor], leaves: dict[str, Tensor], grad: Tensor) -> None:
        self.call, self.leaves, self.grad = call, leaves, grad

    def both(self) -> Outputs:
        """h and the gradients."""
        h = self.call(*self.leaves.values())
        return {"h": h.detach(), **dict(zip(self.leaves, self.backward(h), strict=True))}

    def backward(self, h: Tensor) -> tuple[Tensor, ...]:
        """The gradients."""
        return torch.autograd.grad(h, tuple(self.leaves.values()), self.grad)


def ours(T: int, B: int, H: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Layer:
    """Our operators on H inputs, as of a layer that is not the first; random, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (T, B, H), "weight_ih": (4 * H, H), "bias": (4 * H,), "weight_hh": (4 * H, H), "grad": (T, B, H)}
    scales = {"weight_ih": 1 / math.sqrt(H), "bias": 0.1, "weight_hh": 1 / math.sqrt(H)}
    made = {
        name: (torch.randn(shape, generator=generator) * scales.get(name, 1.0)).to(device, dtype)
        for name, shape in shapes.items()
    }
    return Layer(_lstm, {name: made[name].requires_grad_() for name in LEAVES}, made["grad"])


def planned(run: Callable[[], Outputs], plan: str | plans.Plan) -> Callable[[], Outputs]:
    """`run` with the plan forced."""

    def forced() -> Outputs:
        with ops.plan(plan):
            return run()

    return forced


def _lstm(x: Tensor, weight_ih: Tensor, bias: Tensor, weight_hh: Tensor) -> Tensor:
    return ops.lstm(nn.functional.linear(x, weight_ih, bias), weight_hh)[0]
