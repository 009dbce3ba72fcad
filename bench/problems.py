"""What is trained on: random strokes with a fixed seed, the float64 reference's answers, and deviations from them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedmdn import FusedLSTMMDN, ops

PEN_UP = 0.07  # share of rows that end a stroke
# of `deviation`; where every step multiplies by a cast weight, autograd sums its gradients over the steps in that dtype
TOLERANCES = {"float32": 5e-5, "tf32": 1e-2, "bf16": 1e-1, "fp16": 5e-2}


@dataclass(frozen=True)
class Problem:
    """Inputs and rows to predict, (T, B, 3) each; lengths (B) on the CPU, None where all are T.

    The loss is the mean per row that counts.
    """

    x: Tensor
    target: Tensor
    lengths: Tensor | None = None

    @property
    def lengths_of_all(self) -> Tensor:
        """lengths, also where all are T."""
        T, B = self.x.shape[:2]
        return torch.full((B,), T) if self.lengths is None else self.lengths

    @property
    def rows(self) -> int:
        """Rows that count."""
        return int(self.lengths_of_all.sum())

    def to(self, device: torch.device | str) -> Problem:
        """The same with its rows on a device."""
        return Problem(self.x.to(device), self.target.to(device), self.lengths)


@dataclass(frozen=True)
class Answer:
    """A loss and its gradients by FusedLSTMMDN's parameter names."""

    loss: float
    gradients: dict[str, Tensor]


def strokes(T: int, B: int, seed: int = 1) -> Tensor:
    """Rows (T, B, 3): normal offsets, Bernoulli ends of stroke."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(T, B, 2, generator=generator)
    eos = (torch.rand(T, B, 1, generator=generator) < PEN_UP).float()
    return torch.cat([offsets, eos], -1)


def problem(T: int, B: int, *, ragged: bool = False) -> Problem:
    """Strokes and the same a step later; ragged: lengths uniform in T/3..T, zeros beyond them."""
    rows = strokes(T + 1, B)
    x, target = rows[:-1].contiguous(), rows[1:].contiguous()
    if not ragged:
        return Problem(x, target)
    lengths = torch.randint(T // 3, T + 1, (B,), generator=torch.Generator().manual_seed(2))
    inside = (torch.arange(T)[:, None] < lengths)[..., None]
    return Problem(x * inside, target * inside, lengths)


def mean_nll(model: FusedLSTMMDN, problem: Problem) -> Tensor:
    """The model's own loss, per row that counts."""
    nll = model(problem.x, lengths=problem.lengths, target=problem.target)[0]
    return nll.mean() if problem.lengths is None else nll.sum() / problem.rows


def answer(model: FusedLSTMMDN, loss: Tensor) -> Answer:
    """The loss's value and, after its backward pass, the model's gradients."""
    return Answer(loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def reference(model: FusedLSTMMDN, problem: Problem) -> Answer:
    """Loss and gradients of the plain-PyTorch reference in float64."""
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    with ops.backend("reference"):
        loss = mean_nll(exact, Problem(problem.x.double(), problem.target.double(), problem.lengths))
        loss.backward()
    return answer(exact, loss)


def relative(value: Tensor, exact: Tensor) -> float:
    """The largest deviation, relative to the exact values' largest; infinite where it is no number."""
    if value.shape != exact.shape:
        raise ValueError(f"expected shape {tuple(exact.shape)}, got {tuple(value.shape)}")
    deviation = ((value.double() - exact.double()).abs().max() / exact.double().abs().max()).item()
    return deviation if deviation == deviation else float("inf")


def deviation(given: Answer, exact: Answer) -> float:
    """The largest relative deviation of the loss and of any parameter's gradient."""
    if given.gradients.keys() != exact.gradients.keys():
        raise ValueError(f"gradients differ in {sorted(given.gradients.keys() ^ exact.gradients.keys())}")
    parts = [relative(torch.tensor(given.loss), torch.tensor(exact.loss))]
    parts += [relative(gradient, exact.gradients[name]) for name, gradient in given.gradients.items()]
    return max(parts)
