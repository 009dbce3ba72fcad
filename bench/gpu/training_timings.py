"""What a training step takes: the whole loss by either plan beside nn.LSTM with an eager loss; only what is right."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from ..cell import Cell, Contender, Prepared
from ..problems import relative
from ..works.train import TOLERANCE
from . import layer
from .machine import Machine, Outputs
from .objective import PLANS, Objective, of_torch
from .sizes import Sizes
from .timings import WARM_UP, deviation, measure, outcome

Json = dict[str, Any]
# Of nn.LSTM, which may round where it likes: its deviation tells that it does the same work, not how well.
TOLERANCES = {"bfloat16": 0.05, "float32": TOLERANCE, "float32, TF32 allowed": 0.02}


def training(machine: Machine, sizes: Sizes, name: str) -> Json:
    """One model, forward and backward without optimiser, in every dtype and batch; all sequences of one length."""
    cells = []
    for elements, B in itertools.product(sizes.elements, sizes.batches):
        with layer.products(layer.ELEMENTS[elements][1]):
            objective = Objective(name, sizes.training.units, elements, (sizes.steps, B), machine.device)
            setup = {"elements": elements, "T": sizes.steps, "B": B}
            chosen = _chosen(objective)
            cell = Cell("training", name, setup, "ms", list(_contenders(objective, chosen["name"])))
            cells.append({**measure(cell, machine, sizes.repeats, sizes.without), "chosen": chosen})
    return outcome(cells)


def _chosen(objective: Objective) -> Json:
    """The plans that are taken by default, and what their contender is called."""
    plans = objective.plans()
    names = [plan["name"] for plan in plans.values()]
    each = ", ".join(f"{name} {direction}" for name, direction in zip(names, plans, strict=True))
    return {**plans, "name": names[0] if len(set(names)) == 1 else each}


def _contenders(objective: Objective, chosen: str) -> Iterator[Contender]:
    """Each plan both ways, what is chosen where that is one plan forward and another backward, and nn.LSTM."""
    same, exact = objective.references(Objective.step)
    runs = {chosen: objective.step} | {plan: layer.planned(objective.step, plan) for plan in PLANS}
    for name in dict.fromkeys((*PLANS, chosen)):
        prepare = functools.partial(Prepared, runs[name], functools.partial(deviation, runs[name], same, exact))
        yield Contender(name, "ours", prepare, math.inf, warm_up=WARM_UP)
    prepare = functools.partial(_peer, objective, exact)
    yield Contender("nn.LSTM + eager loss", "peer", prepare, TOLERANCES[objective.elements], warm_up=WARM_UP)


def _peer(objective: Objective, exact: Callable[[], Outputs]) -> Prepared:
    run = of_torch(objective)
    return Prepared(run, lambda: max(relative(value, exact()[name]) for name, value in run().items()))
