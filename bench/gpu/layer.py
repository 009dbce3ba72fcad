"""One LSTM layer on fixed inputs, by our operators or by nn.LSTM: its output and the gradients of all that it reads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from fusedmdn.ops import plans
from torch import Tensor, nn

from fusedmdn import ops

from .machine import Outputs

ELEMENTS = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float32": (torch.float32, "ieee"),
    "float32, TF32 allowed": (torch.float32, "tf32"),
}
LEAVES = ("x", "weight_ih", "bias", "weight_hh")


class Layer:
    """The layer: `call` makes h (T, B, H) of the leaves, whose gradients are of sum(h grad)."""

    def __init__(self, call: Callable[..., Tensor], leaves: dict[str, Tensor], grad: Tensor) -> None:
        self.call, self.leaves, self.grad = call, leaves, grad

    def forward(self) -> Outputs:
        """h, nothing kept for backward."""
        with torch.no_grad():
            return {"h": self.call(*self.leaves.values())}

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


def of_torch(layer: Layer) -> Layer:
    """nn.LSTM with the same weights and input."""
    x, weight_ih, bias, weight_hh = layer.leaves.values()
    module = nn.LSTM(x.shape[-1], weight_hh.shape[1], device=x.device, dtype=x.dtype)
    with torch.no_grad():
        module.weight_ih_l0.copy_(weight_ih)
        module.weight_hh_l0.copy_(weight_hh)
        module.bias_ih_l0.copy_(bias)
        module.bias_hh_l0.zero_()
    parameters = module.weight_ih_l0, module.bias_ih_l0, module.weight_hh_l0
    return Layer(lambda x, *_: module(x)[0], dict(zip(LEAVES, (x, *parameters), strict=True)), layer.grad)


def reference(layer: Layer, dtype: torch.dtype) -> Outputs:
    """What the plain-PyTorch reference makes of the same inputs in a dtype."""
    leaves = {name: leaf.detach().to(dtype).requires_grad_() for name, leaf in layer.leaves.items()}
    with ops.backend("reference"):
        return Layer(_lstm, leaves, layer.grad.to(dtype)).both()


def planned(run: Callable[[], Outputs], plan: str | plans.Plan) -> Callable[[], Outputs]:
    """`run` with the plan forced."""

    def forced() -> Outputs:
        with ops.plan(plan):
            return run()

    return forced


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """How float32 matrix products are computed inside, ours as well as cuBLAS's and cuDNN's: "ieee" or "tf32"."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = precision
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def _lstm(x: Tensor, weight_ih: Tensor, bias: Tensor, weight_hh: Tensor) -> Tensor:
    return ops.lstm(nn.functional.linear(x, weight_ih, bias), weight_hh)[0]
