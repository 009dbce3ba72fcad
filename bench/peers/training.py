"""What all trainers by PyTorch share: the phases of a step in every precision, and how padding is masked."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import autocast
from ..problems import Answer, Problem
from .limits import refuse_tf32_on_cpu

RATE = 1e-4
SCALE = 1024.0  # of the loss in fp16, which underflows without; fixed, so that every step is the same work
NEVER = 2**31 - 1  # steps until the scale grows


class TorchTrainer:
    """Forward under autocast, backward, and Adam's step; in fp16 by a GradScaler. Subclasses say what the loss is.

    parameters are the leaves that are trained, by FusedLSTMMDN's names where `gradients` is not overridden.

    Raises:
        Cannot: TF32 on a CPU.
    """

    def __init__(self, parameters: dict[str, Tensor], dtype: str) -> None:
        self.parameters, self.dtype = parameters, dtype
        self.device = next(iter(parameters.values())).device
        refuse_tf32_on_cpu(dtype, self.device)
        self.scale = SCALE if dtype == "fp16" else 1.0
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=SCALE, growth_interval=NEVER, enabled=dtype == "fp16"
        )
        self.adam = torch.optim.Adam(parameters.values(), lr=RATE, fused=True)
        self.phases = {"forward": self.forward, "backward": self.backward, "optimiser": self.optimiser}
        self.value = torch.zeros(())

    def loss(self) -> Tensor:
        """Mean in nats per row that counts."""
        raise NotImplementedError

    def forward(self) -> None:
        """Gradients cleared, and the loss."""
        self.clear()
        with autocast(self.dtype, self.device):
            self.value = self.loss()

    def backward(self) -> None:
        """The parameters' gradients, scaled in fp16."""
        self.scaler.scale(self.value).backward()

    def optimiser(self) -> None:
        """Adam's step, of unscaled gradients."""
        self.scaler.step(self.adam)
        self.scaler.update()

    def clear(self) -> None:
        """See `Trainer.clear`."""
        self.adam.zero_grad(set_to_none=True)
        self.value = torch.zeros(())

    def gradients(self) -> dict[str, Tensor]:
        """The parameters' gradients by FusedLSTMMDN's names, as they are: scaled in fp16."""
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def answer(self) -> Answer:
        """See `Trainer.answer`."""
        self.forward()
        self.backward()
        return Answer(self.value.item(), {name: grad.float() / self.scale for name, grad in self.gradients().items()})


def row_weights(problem: Problem) -> Tensor | None:
    """By which every row's loss is multiplied (T, B): one over the rows that count, else zero; None where all do."""
    if problem.lengths is None:
        return None
    inside = torch.arange(problem.x.shape[0])[:, None] < problem.lengths
    return (inside / problem.rows).to(problem.x.device)
