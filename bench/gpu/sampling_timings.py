"""What sampling takes: every plan that fits beside the loop that users write; a step's time, points, peak memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch

from ..cell import Cell, Contender, Prepared
from ..problems import strokes
from ..samplers import check_draws
from . import layer
from .machine import Machine
from .network import PLANS, SEED, Loop, Network
from .sizes import Sampling, Sizes
from .timings import deviation, measure, outcome

Json = dict[str, Any]
LOOP_ROWS = 4  # over which the loop's network is checked
LOOP_DRAWS = 100_000  # from one mixture, whose moments are checked


def sampling(machine: Machine, sizes: Sizes, name: str) -> Json:
    """One model, in every dtype and batch."""
    cells = []
    for elements in sizes.sampling.elements:
        with layer.products(layer.ELEMENTS[elements][1]):
            network = Network(name, sizes.sampling.units, elements, machine.device)
            cells += [_timed(machine, sizes, network, elements, *batch) for batch in sizes.sampling.batches]
    return outcome(cells)


def _timed(machine: Machine, sizes: Sizes, network: Network, elements: str, B: int, steps: int) -> Json:
    """One cell, with points a second and the plan that is taken by default."""
    contenders = list(_contenders(network, sizes.sampling, B, steps))
    cell = Cell("sampling", network.name, {"elements": elements, "B": B, "steps": steps}, "us/step", contenders)
    found = measure(cell, machine, sizes.sampling.repeats, sizes.without)
    for result in found["results"]:
        result["points_per_second"] = 1e6 * B / result["median"] if result["median"] else None
    return {**found, "chosen": network.plan(B)._asdict()}


def _contenders(network: Network, sizes: Sampling, B: int, steps: int) -> Iterator[Contender]:
    for plan in PLANS:
        yield Contender(plan, "ours", functools.partial(_ours, network, sizes, plan, B, steps), math.inf, steps)
    yield Contender("nn.LSTM loop", "peer", functools.partial(_loop, network, sizes, B), math.inf, sizes.loop_steps)


def _ours(network: Network, sizes: Sampling, plan: str, B: int, steps: int) -> Prepared:
    """Timed as users call it; fewer steps are checked."""
    checked = layer.planned(lambda: network.draw(network.start(B), sizes.checked)[0], plan)
    run = layer.planned(lambda: {"points": network.model.generate(B, steps, seed=SEED).points}, plan)
    return Prepared(run, lambda: network.deviation(checked()))


def _loop(network: Network, sizes: Sampling, B: int) -> Prepared:
    """Its network is checked over given rows, its draws by their moments."""
    loop, x = Loop(network), strokes(LOOP_ROWS, B).to(network.device)

    def error() -> float:
        check_draws(loop, network.model, LOOP_DRAWS)
        same, exact = (functools.partial(network.raw, x, dtype) for dtype in (network.dtype, torch.float64))
        return deviation(lambda: {"raw": loop.raw(x)}, same, exact)

    return Prepared(lambda: loop.sample(B, sizes.loop_steps), error)
