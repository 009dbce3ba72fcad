"""What the kernels promise: the same bits in every run, CUDA graphs, and one compilation for every length and batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from fusedmdn.ops import launch, plans

from fusedmdn import ops

from .. import precision
from ..works import loss as loss_work
from . import layer
from .machine import Machine, Outputs
from .sizes import Sizes

Json = dict[str, Any]
Subject = TypeVar("Subject")  # of promises
DTYPE = torch.bfloat16
NO_FIT = "plan does not fit"


def repeated(machine: Machine, sizes: Sizes) -> Json:
    """One persistent forward and backward pass again and again: a step read before it was there would show."""
    T, B, H = shape_of(sizes)
    run = layer.planned(layer.ours(T, B, H, DTYPE, machine.device).both, "persistent")
    different = repeats(run, sizes.runs)
    trouble = f"not bitwise equal: {different} of {sizes.runs} runs" if different else None
    return {"trouble": trouble, "T": T, "B": B, "H": H, "runs": sizes.runs, "different": different}


def graph(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """Forward and backward captured and replayed, on the captured inputs and on others in their place."""
    T, B, H = shape_of(sizes)
    static, other = (layer.ours(T, B, H, DTYPE, machine.device, seed) for seed in (0, 1))
    different = replays(machine, layer.planned(static.both, plan), static.leaves, [static.leaves, other.leaves])
    trouble = f"replay is not eager: {different} of 2 inputs" if different else None
    return {"trouble": trouble, "T": T, "B": B, "H": H, "different": different}


def compiled(machine: Machine, sizes: Sizes) -> Json:
    """How often every kernel is compiled, over many T and B, with one plan each way; but those of sampling."""
    H = sizes.hidden
    with machine.compilations() as counts:
        for T, B in sizes.shapes:
            ours = layer.ours(T, B, H, DTYPE, machine.device)
            for forward, backward in plans_of_a_layer(H, launch.device_of(ours.grad)):
                with ops.plan(forward):
                    h = ours.call(*ours.leaves.values())
                with ops.plan(backward):
                    ours.backward(h)
            raw, target = (value.to(machine.device) for value in loss_work.arguments(T, B))
            loss_work.our_mean(loss_work.M)(raw.to(DTYPE).requires_grad_(), target).backward()
    return judged(counts) | {"shapes": list(sizes.shapes), "H": H}


def judged(counts: Mapping[str, int]) -> Json:
    """How often every kernel was compiled, which should be once."""
    several = {kernel: count for kernel, count in counts.items() if count != 1}
    trouble = f"compiled more than once: {several}" if several else None if counts else "nothing was compiled"
    return {"trouble": trouble, "variants": dict(counts)}


def plans_of_a_layer(H: int, device: plans.Device) -> Iterator[tuple[plans.Plan, plans.Plan]]:
    """One plan of each kind, forward and backward, that serves every batch."""
    yield plans.stepwise_plan(H), plans.stepwise_plan(H)
    yield from zip(
        *(
            plans.persistent_plans(direction, H, 1, DTYPE.itemsize, "ieee", device)[:1]
            for direction in ("forward", "backward")
        ),
        strict=False,
    )


def tried(
    promises: Mapping[str, Callable[[Subject], str | None]],
    subjects: Iterable[tuple[str, str]],
    make: Callable[[str, str], Subject],
    plans_of: Callable[[Subject], Json],
    plan: str,
) -> Json:
    """Every promise of every subject that the plan fits; all have their turn, whichever is broken.

    Args:
        promises: give what is wrong, by name.
        subjects: models and, of `precision.DTYPES`, what they store and multiply.
        make: a subject.
        plans_of: the plans that it runs by; raises RuntimeError where the one that is forced does not fit.
        plan: is forced.
    """
    found: Json = {}
    outcomes: dict[str, str | None] = {}
    unfit = []
    for model, elements in subjects:
        with precision.products(elements), ops.plan(plan):
            subject = make(model, elements)
            try:
                found[f"{model}, {elements}"] = plans_of(subject)
            except RuntimeError as error:
                if NO_FIT not in str(error):
                    raise
                unfit.append(str(error))
                continue
            for name, promise in promises.items():
                outcomes[f"{name}, {model}, {elements}"] = said(promise, subject)
    trouble = "; ".join(f"{name}: {wrong}" for name, wrong in outcomes.items() if wrong)
    part = {"trouble": trouble or None, "plans": found, "promises": outcomes}
    return part | {"left out": "; ".join(unfit)} if unfit else part


def said(promise: Callable[[Subject], str | None], subject: Subject) -> str | None:
    """What is wrong, an exception too."""
    try:
        return promise(subject)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').partition(chr(10))[0]}"


def repeats(run: Callable[[], Outputs], runs: int) -> dict[str, int]:
    """In how many of so many runs each value was not that of the first, bit for bit."""
    first, different = run(), Counter[str]()
    for _ in range(runs - 1):
        different.update(unequal(run(), first))
    return dict(different)


def replays(machine: Machine, run: Callable[[], Outputs], leaves: Outputs, inputs: Sequence[Outputs]) -> dict[str, int]:
    """For how many inputs, written into the leaves, each value of a captured run's replay is not a plain run's."""
    replay, outputs = machine.capture(run)
    different = Counter[str]()
    for given in inputs:
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(given[name])
        replay()
        captured = {name: value.clone() for name, value in outputs.items()}
        different.update(unequal(captured, run()))
    return dict(different)


def unequal(a: Outputs, b: Outputs) -> list[str]:
    """The names of values that differ in any bit, NaN included."""
    return [name for name in a if not torch.equal(_bits(a[name]), _bits(b[name]))]


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().view(torch.uint8)


def shape_of(sizes: Sizes) -> tuple[int, int, int]:
    """T, B and H of what is repeated and captured."""
    return sizes.steps, sizes.batch, sizes.hidden
