"""What training promises, plan by plan: the reference's values, the same bits in every run, CUDA graphs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from fusedmdn.ops import launch, plans, training_plans

from fusedmdn import ops

from ..plans import DIRECTIONS
from .accuracy import deviation
from .machine import Machine
from .objective import Objective
from .promises import judged, plans_of_a_layer, repeats, replays, shape_of, tried
from .sizes import Sizes

Json = dict[str, Any]
Promise = Callable[[Machine, Sizes, Objective], str | None]  # gives what is wrong
Forced = tuple[str | training_plans.Fused, str | plans.Plan]  # of the network, and of the layers of a composed one


def plain(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """Values, and the same bits in every run."""
    return every({"values": values, "repeated": repeated}, machine, sizes, plan)


def captured(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """CUDA graphs, in a part of their own: after a failed capture nothing else may run."""
    return every({"replayed": replayed}, machine, sizes, plan)


def every(promises: dict[str, Promise], machine: Machine, sizes: Sizes, plan: str) -> Json:
    """Every promise of every model and dtype that the plan fits."""
    T, B, _ = shape_of(sizes)
    found = tried(
        {name: functools.partial(promise, machine, sizes) for name, promise in promises.items()},
        itertools.product(sizes.training.promised, sizes.elements),
        lambda model, elements: ragged(machine, sizes, model, elements, (T, B)),
        Objective.plans,
        plan,
    )
    return found | {"T": T, "B": B}


def ragged(
    machine: Machine, sizes: Sizes, model: str, elements: str, shape: tuple[int, int], seed: int = 0
) -> Objective:
    """What keeps the promises: sequences of any length, NaN in their padding."""
    return Objective(model, sizes.training.units, elements, shape, machine.device, ragged=True, seed=seed)


def values(machine: Machine, sizes: Sizes, objective: Objective) -> None:
    """The loss of every row, the last state and every gradient by the accuracy rule."""
    deviation(objective.both, *objective.references(Objective.both))


def repeated(machine: Machine, sizes: Sizes, objective: Objective) -> str | None:
    """The same call again and again: what is read before it is there would show."""
    different = repeats(objective.both, sizes.runs)
    return f"not bitwise equal: {different} of {sizes.runs} runs" if different else None


def replayed(machine: Machine, sizes: Sizes, objective: Objective) -> str | None:
    """One graph, replayed on its own rows, lengths and weights, and on others in their place."""
    T, B, _ = shape_of(sizes)
    other = ragged(machine, sizes, objective.name, objective.elements, (T, B), seed=1)
    inputs = [objective.leaves, other.leaves]
    different = replays(machine, objective.both, objective.leaves, inputs)
    return f"replay is not eager: {different} of {len(inputs)} inputs" if different else None


def compiled(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """How often every kernel is compiled, over many T and B, with one plan of each kind each way."""
    with machine.compilations() as counts:
        for shape in sizes.shapes:
            objective = ragged(machine, sizes, sizes.training.promised[0], "bf16", shape)
            with ops.plan(plan):
                objective.plans()
            for forward, backward in _serving(objective, plan):
                with ops.plan(forward[0]), ops.plan(forward[1]):
                    outputs, leaves = objective.forward()
                with ops.plan(backward[0]), ops.plan(backward[1]):
                    objective.backward(outputs, leaves)
    return judged(counts) | {"shapes": list(sizes.shapes)}


def _serving(objective: Objective, plan: str) -> Iterator[tuple[Forced, Forced]]:
    """What to force forward and backward that serves every batch."""
    model, device = objective.model, launch.device_of(objective.model.head.weight)
    if plan == "composed":
        for forward, backward in plans_of_a_layer(model.hidden_size, device):
            yield (plan, forward), (plan, backward)
        return
    network = model.num_layers, model.hidden_size, model.head.out_features, 1
    each = (training_plans.fused_plans(d, *network, objective.dtype.itemsize, "ieee", device)[0] for d in DIRECTIONS)
    forward, backward = ((fused, "stepwise") for fused in each)
    yield forward, backward
