"""Training steps, forward, backward and optimiser apart: equal lengths, ragged, clipped at every step, peepholes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fusedmdn import FusedLSTMMDN

from .. import floors, peers, plans
from ..cell import Cannot, Cell, Contender, Prepared
from ..contracts import MakeTrainer
from ..machine import Machine
from ..models import build
from ..peers.ours import OurTrainer
from ..peers.torch_training import CellTrainer
from ..precision import TORCH
from ..problems import TOLERANCES, Answer, Problem, deviation, problem, reference
from ..settings import CLIPPED, EQUAL, PEEPHOLES, RAGGED, Part, Settings

Json = dict[str, Any]
CLIP = 10.0  # Graves's bound
BITING = 1e-4  # a bound that a mean loss's gradients do exceed, so that the check sees the clipping
FEW = 12  # steps of that check, of as many sequences as are timed, which decide on the plan
PLANS = ("fused", "composed")
OPTIONS: dict[str, Json] = {CLIPPED: {"clip_gates": CLIP}, PEEPHOLES: {"peephole": True}}


class Question:
    """A model, a problem, and their exact answer, computed when it is first asked for."""

    def __init__(self, model: FusedLSTMMDN, given: Problem) -> None:
        self.model, self.given = model, given
        self.found: Answer | Cannot | None = None

    def exact(self) -> Answer:
        """By the float64 reference; raises Cannot, every time, if it could not be computed."""
        if self.found is None:
            try:
                self.found = reference(self.model, self.given)
            except (MemoryError, RuntimeError) as trouble:
                line = str(trouble).strip().partition("\n")[0]
                self.found = Cannot(f"not checked: the float64 reference could not be computed: {line}")
        if isinstance(self.found, Cannot):
            raise self.found
        return self.found


def cells(part: Part, settings: Settings, machine: Machine, ceilings: Json) -> Iterator[Cell]:
    """One cell for each setup."""
    assert part.model is not None
    for setup in part.setups:
        yield _cell(part.model, setup, settings, machine, ceilings)


def _cell(name: str, setup: Json, settings: Settings, machine: Machine, ceilings: Json) -> Cell:
    kind, shape = setup["lengths"], (setup["T"], setup["B"])
    make = functools.partial(build, name, settings.hidden)
    given = problem(*shape, ragged=kind == RAGGED).to(machine.device)
    plain = make().to(machine.device)
    asked = [Question(make(**OPTIONS.get(kind, {})).to(machine.device), given)]
    if kind == CLIPPED:
        asked.append(Question(make(clip_gates=BITING).to(machine.device), problem(FEW, setup["B"]).to(machine.device)))
    unlike = [Question(plain, given)] if kind in OPTIONS else asked
    contenders = []
    for dtype in settings.dtypes:
        contenders += list(_ours(dtype, asked, machine.kind, settings.grid))
        contenders += [_contender(n, dtype, "peer", m, asked) for n, m in _peers(kind, machine.kind).items()]
        if kind in OPTIONS:
            what = {CLIPPED: "unclipped", PEEPHOLES: "no peepholes"}[kind]
            standin = f"nn.LSTMCell loop, {what} (stand-in)"
            contenders.append(_contender(standin, dtype, "stand-in", CellTrainer, unlike))
    least = {dtype: floors.training(plain, given.rows, dtype, ceilings, setup["B"]) for dtype in settings.dtypes}
    found = {dtype: floor for dtype, floor in least.items() if floor is not None}
    return Cell("training", name, {**setup, "rows": given.rows}, "ms", contenders, found)


def _peers(kind: str, device: str) -> dict[str, MakeTrainer]:
    if kind == EQUAL:
        return peers.training(device)
    if kind == RAGGED:
        return peers.ragged(device)
    return peers.written_out(device)


def _ours(dtype: str, asked: list[Question], kind: str, grid: str) -> Iterator[Contender]:
    """As it is by default; on a GPU, in the full grid, also with each plan forced, so that its choice can be judged."""
    ours = _contender("ours", dtype, "ours", OurTrainer, asked)
    if kind != "cuda":
        yield ours
        return
    model, B = asked[0].model, asked[0].given.x.shape[1]
    yield replace(ours, plan=lambda: plans.training(model, B, TORCH[dtype]))
    for plan in PLANS if grid != "default" else ():
        yield _contender(f"ours, {plan}", dtype, "variant", functools.partial(OurTrainer, plan=plan), asked)


def _contender(name: str, dtype: str, role: str, make: MakeTrainer, asked: list[Question]) -> Contender:
    """Timed on the first question, right on all of them."""

    def prepare() -> Prepared:
        trainer = make(asked[0].model, asked[0].given, dtype)

        def error() -> float:
            errors = [deviation(trainer.answer(), asked[0].exact())]
            errors += [deviation(make(q.model, q.given, dtype).answer(), q.exact()) for q in asked[1:]]
            return max(errors)

        return Prepared(trainer.phases, error, trainer.clear)

    seen = name not in peers.UNSEEN or asked[0].given.x.device.type == "cpu"
    return Contender(name, dtype, role, prepare, TOLERANCES[dtype], warm_up=peers.WARM_UP.get(name, 1), allocates=seen)
