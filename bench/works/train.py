"""Training steps, forward and backward without optimiser: equal lengths, ragged, clipped at every step, peepholes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor

from fusedmdn import FusedLSTMMDN

from ..cell import Cell, Contender, Prepared
from ..models import build
from ..peers import torch_losses, torch_training
from ..problems import Answer, Problem, answer, deviation, mean_nll, problem, reference
from ..settings import Settings

TOLERANCE = 1e-3
CLIP = 10.0  # Graves's bound
BITING = 1e-4  # a bound that a mean loss's gradients do exceed, so that the check sees the clipping
SMALL = (12, 4)  # (T, B) of that check


class Trainer(Protocol):
    """What does a training step."""

    def step(self, problem: Problem) -> object:
        """The step that is timed."""

    def answer(self, problem: Problem) -> Answer:
        """What a step computes."""


class OurTrainer:
    """FusedLSTMMDN itself."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        self.model = model

    def step(self, problem: Problem) -> Tensor:
        """See `Trainer.step`."""
        self.model.zero_grad()
        loss = mean_nll(self.model, problem)
        loss.backward()
        return loss

    def answer(self, problem: Problem) -> Answer:
        """See `Trainer.answer`."""
        return answer(self.model, self.step(problem))


Make = Callable[[FusedLSTMMDN], Trainer]


def _jax(model: FusedLSTMMDN) -> Trainer:
    from ..peers.jax_peer import JaxTrainer

    return JaxTrainer(model)


def _compiled(model: FusedLSTMMDN) -> Trainer:
    return torch_training.LSTMTrainer(model, torch_losses.compiled_mean(model.num_mixtures))


class Work:
    """The training cells of one model."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, (self.T, self.B) = name, settings.sizes.train
        self.build = functools.partial(build, name, settings.sizes.hidden)

    def cells(self) -> Iterator[Cell]:
        """Four cells; the stand-in of the last two does less work than is asked, which its name says."""
        whole, ragged = problem(self.T, self.B), problem(self.T, self.B, ragged=True)
        small = problem(*SMALL)
        plain, clipped, peephole = self.build(), self.build(clip_gates=CLIP), self.build(peephole=True)
        biting = self.build(clip_gates=BITING)
        plain_check = self._check(plain, whole)
        clip_checks = [self._check(clipped, whole), self._check(biting, small)]
        peephole_check = self._check(peephole, whole)
        yield self._cell(
            "equal",
            [
                self._contender("ours", OurTrainer, [plain_check]),
                self._contender("nn.LSTM + eager loss", torch_training.LSTMTrainer, [plain_check]),
                self._contender("nn.LSTM + torch.compile loss", _compiled, [plain_check]),
                self._contender("JAX", _jax, [plain_check]),
            ],
        )
        ragged_check = self._check(plain, ragged)
        yield self._cell(
            "ragged",
            [
                self._contender("ours", OurTrainer, [ragged_check]),
                self._contender("nn.LSTM padded", torch_training.PaddedTrainer, [ragged_check]),
                self._contender("nn.LSTM packed", torch_training.PackedTrainer, [ragged_check]),
            ],
            {"rows": ragged.rows},
        )
        written, standin = torch_training.WrittenCellTrainer, torch_training.CellTrainer
        yield self._cell(
            "clipped",
            [
                self._contender("ours", OurTrainer, clip_checks),
                self._contender("written-out cell loop, hooks", written, clip_checks),
                self._contender("nn.LSTMCell loop, unclipped (stand-in)", standin, [plain_check]),
            ],
        )
        yield self._cell(
            "peepholes",
            [
                self._contender("ours", OurTrainer, [peephole_check]),
                self._contender("written-out cell loop, peepholes", written, [peephole_check]),
                self._contender("nn.LSTMCell loop, no peepholes (stand-in)", standin, [plain_check]),
            ],
        )

    def _cell(self, kind: str, contenders: list[Contender], more: dict[str, Any] | None = None) -> Cell:
        setup = {"lengths": kind, "T": self.T, "B": self.B} if kind in ("equal", "ragged") else {}
        setup = setup or {"variant": kind, "T": self.T, "B": self.B}
        return Cell("train", self.name, {**setup, **(more or {})}, "ms", contenders)

    def _check(self, model: FusedLSTMMDN, given: Problem) -> tuple[FusedLSTMMDN, Problem, Callable[[], Answer]]:
        """A model, a problem, and their exact answer, computed when it is first asked for."""
        return model, given, functools.cache(lambda: reference(model, given))

    def _contender(
        self, name: str, make: Make, checks: list[tuple[FusedLSTMMDN, Problem, Callable[[], Answer]]]
    ) -> Contender:
        """Timed on the first check's model and problem, right on all of them."""

        def prepare() -> Prepared:
            trainer, given = make(checks[0][0]), checks[0][1]

            def error() -> float:
                errors = [deviation(trainer.answer(given), checks[0][2]())]
                errors += [deviation(make(model).answer(other), exact()) for model, other, exact in checks[1:]]
                return max(errors)

            return Prepared(lambda: trainer.step(given), error)

        return Contender(name, "ours" if name == "ours" else "peer", prepare, TOLERANCE, warm_up=0)


def cells(settings: Settings) -> Iterator[Cell]:
    """Four cells for each model."""
    for name in settings.models_train:
        yield from Work(name, settings).cells()
