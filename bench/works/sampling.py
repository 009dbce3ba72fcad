"""Sampling: one call draws `steps` rows of every sequence, each row fed back as the next input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from fusedmdn import FusedLSTMMDN

from .. import floors, peers, plans
from ..cell import Cell, Contender, Prepared
from ..contracts import Sampler
from ..machine import Machine
from ..models import build
from ..precision import TORCH
from ..problems import strokes
from ..samplers import TOLERANCES, check_draws, exact_raw, largest, our_error, run_ours
from ..settings import Part, Settings

Json = dict[str, Any]
PLANS = ("resident", "rows", "graph")
CHECK_STEPS = 16  # teacher-forced, by which a sampler is checked
CHECK_DRAWS = 20_000  # rows drawn from one mixture, whose moments are checked
LOOP_STEPS = 100  # at most, of one timing of a loop in Python: its steps are all alike, and slow


def cells(part: Part, settings: Settings, machine: Machine, ceilings: Json) -> Iterator[Cell]:
    """One cell for each setup; a peer is built, and its draws checked, once for all of them."""
    assert part.model is not None
    kind = machine.kind
    model = build(part.model, settings.hidden).to(machine.device)
    samplers = {
        (name, dtype): functools.cache(functools.partial(_checked, make, model, dtype, machine.threads))
        for dtype in settings.dtypes
        for name, make in peers.sampling(kind).items()
    }
    for setup in part.setups:
        batch, steps = setup["B"], setup["steps"]
        x = strokes(CHECK_STEPS, batch).to(machine.device)
        exact = functools.cache(functools.partial(exact_raw, model, x))
        contenders, found = [], {}
        for dtype in settings.dtypes:
            contenders += list(_ours(model, dtype, batch, steps, kind, settings.grid))
            for name, made in samplers:
                if made == dtype:
                    fewer = min(steps, LOOP_STEPS) if name in peers.LOOPS else steps
                    contenders.append(_peer(name, dtype, samplers[name, dtype], x, exact, fewer))
            floor = floors.sampling(model, batch, steps, dtype, ceilings, kind)
            if floor is not None:
                found[dtype] = floor
        yield Cell("sampling", part.model, setup, "us/step", contenders, found)


def _checked(make: Callable[..., Sampler], model: FusedLSTMMDN, dtype: str, threads: int) -> Sampler:
    sampler = make(model, dtype, threads)
    check_draws(sampler, model, CHECK_DRAWS)
    return sampler


def _ours(model: FusedLSTMMDN, dtype: str, batch: int, steps: int, kind: str, grid: str) -> Iterator[Contender]:
    """As it is by default; on a GPU, in the full grid, also with each plan forced, so that its choice can be judged."""
    ours = _our(model, "ours", dtype, "ours", batch, steps, None)
    if kind != "cuda":
        yield ours
        return
    yield replace(ours, plan=lambda: plans.sampling(model, batch, TORCH[dtype])._asdict())
    for plan in PLANS if grid != "default" else ():
        yield _our(model, f"ours, {plan}", dtype, "variant", batch, steps, plan)


def _our(model: FusedLSTMMDN, name: str, dtype: str, role: str, batch: int, steps: int, plan: str | None) -> Contender:
    def prepare() -> Prepared:
        run = functools.partial(run_ours, model, dtype, batch, steps, plan)
        return Prepared({"sampling": run}, lambda: our_error(model, dtype, batch, CHECK_STEPS, plan))

    return Contender(name, dtype, role, prepare, TOLERANCES[dtype], steps)


def _peer(
    name: str, dtype: str, make: Callable[[], Sampler], x: Tensor, exact: Callable[[], Tensor], steps: int
) -> Contender:
    """A peer at the batch of x; exact: the raw outputs that it must give over x."""
    batch = x.shape[1]

    def prepare() -> Prepared:
        sampler = make()
        run = functools.partial(sampler.sample, batch, steps)
        return Prepared({"sampling": run}, lambda: largest(sampler.raw(x), exact()))

    seen = name not in peers.UNSEEN or x.device.type == "cpu"
    return Contender(name, dtype, "peer", prepare, TOLERANCES[dtype], steps, peers.WARM_UP.get(name, 1), allocates=seen)
