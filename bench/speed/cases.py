"""What is timed: every operator at small sizes, down to those where a call's overhead is all there is.

The public API alone, so that older revisions of the package run the same cases.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedmdn import FusedLSTMMDN, ops

from ..problems import mean_nll, problem, relative, strokes

MIXTURES = 20
SEED = 0
TOLERANCE = {"float32": 1e-3, "bf16": 5e-2}  # of the largest value
COMPARED_STEPS = 4  # of generated rows: from a tie in a choice on, two right samplers may part
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

Values = tuple[Tensor, ...]
Run = Callable[[], Values]


class Wrong(Exception):
    """A case's values are not the reference's."""


class Size(NamedTuple):
    """Steps, sequences, hidden units."""

    T: int
    B: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T} B{self.B} H{self.H}"


SMALLEST = Size(10, 2, 32)
SIZES = (SMALLEST, Size(100, 16, 128))
GENERATED = (SMALLEST, Size(50, 1, 128), Size(50, 64, 128))


@dataclass(frozen=True)
class Case:
    """One thing that is timed.

    Attributes:
        work: what is done.
        name: the work, dtype and size, in words; no two cases share it.
        build: gives a callable that does the work once, waits for the device, and gives values to check.
        tolerance: largest deviation of the values from the reference's, relative to the largest.
    """

    work: str
    name: str
    build: Callable[[], Run]
    tolerance: float


def prepare(case: Case) -> Run:
    """The case's callable, run once and found right.

    Raises:
        Wrong: its values are not finite, or not the reference's.
    """
    run = case.build()
    values = run()
    with ops.backend("reference"):
        exact = case.build()()
    error = deviation(values, exact)
    if error > case.tolerance:
        raise Wrong(f"{case.name}: error {error:.1e} where {case.tolerance:g} is allowed")
    return run


def deviation(given: Values, exact: Values) -> float:
    """The largest relative deviation of any tensor; infinite where a value is not finite or a shape is another."""
    if [v.shape for v in given] != [v.shape for v in exact]:
        return float("inf")
    return max(relative(v, e) for v, e in zip(given, exact, strict=True))


def cases(devices: tuple[str, ...] = DEVICES) -> Iterator[Case]:
    """All of them, device by device."""
    for device in devices:
        for size, dtype, ragged in itertools.product(SIZES, TOLERANCE, (False, True)):
            words = f"{dtype}, {'ragged' if ragged else 'equal'}, {size}"
            yield _case("forward", words, device, functools.partial(forward, device, size, dtype, ragged), dtype)
            yield _case("backward", words, device, functools.partial(backward, device, size, dtype, ragged), dtype)
        for size in SIZES:
            yield _case("lstm", f"float32, {size}", device, functools.partial(lstm, device, size))
            yield _case("mdn_nll", f"float32, T{size.T} B{size.B}", device, functools.partial(mdn_nll, device, size))
        for size, dtype in itertools.product(GENERATED, TOLERANCE):
            run = functools.partial(generate, device, size, dtype)
            yield _case("generate", f"{dtype}, {size}", device, run, dtype)


def _case(work: str, words: str, device: str, run: Callable[[], Run], dtype: str = "float32") -> Case:
    name = f"{work}, {words}" if device == "cpu" else f"{work}, {words}, {device}"
    return Case(work, name, functools.partial(_finished, run, device), TOLERANCE[dtype])


def _finished(build: Callable[[], Run], device: str) -> Run:
    """The callable, whose work is done when it returns."""
    run = build()
    if device == "cpu":
        return run

    def finished() -> Values:
        values = run()
        torch.cuda.synchronize()
        return values

    return finished


def network(device: str, size: Size) -> FusedLSTMMDN:
    """One layer with fixed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return FusedLSTMMDN(3, size.H, 1, MIXTURES).to(device)


def _training(device: str, size: Size, dtype: str, ragged: bool) -> tuple[FusedLSTMMDN, Callable[[], Tensor]]:
    """A network, and what computes its loss."""
    model, given = network(device, size), problem(size.T, size.B, ragged=ragged)
    given = replace(given, x=given.x.to(device), target=given.target.to(device))

    def loss() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            return mean_nll(model, given)

    return model, loss


def forward(device: str, size: Size, dtype: str, ragged: bool) -> Run:
    """The loss of a network, with all that its backward pass needs."""
    _, loss = _training(device, size, dtype, ragged)
    return lambda: (loss().detach(),)


def backward(device: str, size: Size, dtype: str, ragged: bool) -> Run:
    """The gradients of a loss computed beforehand: the graph is kept, so that any number of calls can read it."""
    model, loss = _training(device, size, dtype, ragged)
    value, parameters = loss(), list(model.parameters())
    return lambda: torch.autograd.grad(value, parameters, retain_graph=True)


def lstm(device: str, size: Size) -> Run:
    """The recurrence alone, forward and gradients."""
    generator = torch.Generator().manual_seed(SEED)
    shapes = (size.T, size.B, 4 * size.H), (4 * size.H, size.H)
    xw, weight = ((torch.randn(shape, generator=generator) * size.H**-0.5).to(device) for shape in shapes)
    xw, weight = xw.requires_grad_(), weight.requires_grad_()
    gradient = torch.randn(size.T, size.B, size.H, generator=generator).to(device)

    def run() -> Values:
        h, _ = ops.lstm(xw, weight)
        return h.detach(), *torch.autograd.grad(h, (xw, weight), gradient)

    return run


def mdn_nll(device: str, size: Size) -> Run:
    """The mixture's loss alone, forward and gradient."""
    generator = torch.Generator().manual_seed(SEED)
    raw = torch.randn(size.T, size.B, 1 + 6 * MIXTURES, generator=generator).to(device).requires_grad_()
    target = strokes(size.T, size.B).to(device)

    def run() -> Values:
        loss = ops.mdn_nll(raw, target, num_mixtures=MIXTURES).mean()
        return loss.detach(), *torch.autograd.grad(loss, raw)

    return run


def generate(device: str, size: Size, dtype: str) -> Run:
    """T rows of B sequences, weights rounded to the dtype."""
    model = network(device, size)
    rounded: dict[str, Any] = {"dtype": torch.bfloat16} if dtype == "bf16" else {}
    return lambda: (model.generate(size.B, size.T, seed=SEED, **rounded).points[:, :COMPARED_STEPS],)


CASES = {case.name: case for case in cases()}
