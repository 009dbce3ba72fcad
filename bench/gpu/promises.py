"""What the kernels promise: the same bits in every run, CUDA graphs, and one compilation for every length and batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fusedmdn.ops import launch, plans

from fusedmdn import ops

from ..works import loss as loss_work
from . import layer
from .machine import Machine, Outputs
from .sizes import Sizes

Json = dict[str, Any]
DTYPE = torch.bfloat16


def repeated(machine: Machine, sizes: Sizes) -> Json:
    """One persistent forward and backward pass again and again: a step read before it was there would show."""
    T, B, H = _shape(sizes)
    run = layer.planned(layer.ours(T, B, H, DTYPE, machine.device).both, "persistent")
    first, different = run(), Counter[str]()
    for _ in range(sizes.runs - 1):
        different.update(unequal(run(), first))
    trouble = f"not bitwise equal: {dict(different)} of {sizes.runs} runs" if different else None
    return {"trouble": trouble, "T": T, "B": B, "H": H, "runs": sizes.runs, "different": dict(different)}


def graph(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """Forward and backward captured and replayed, on the captured inputs and on others in their place."""
    T, B, H = _shape(sizes)
    static, other = (layer.ours(T, B, H, DTYPE, machine.device, seed) for seed in (0, 1))
    run, different = layer.planned(static.both, plan), Counter[str]()
    replay, outputs = machine.capture(run)
    for inputs in (static, other):
        with torch.no_grad():
            for name, leaf in static.leaves.items():
                leaf.copy_(inputs.leaves[name])
        replay()
        captured = {name: value.clone() for name, value in outputs.items()}
        different.update(unequal(captured, run()))
    trouble = f"replay is not eager: {dict(different)} of 2 inputs" if different else None
    return {"trouble": trouble, "T": T, "B": B, "H": H, "different": dict(different)}


def compiled(machine: Machine, sizes: Sizes) -> Json:
    """How often every kernel is compiled, over many T and B, with one plan each way; but those of sampling."""
    H = sizes.hidden[0]
    with machine.compilations() as counts:
        for T, B in sizes.shapes:
            ours = layer.ours(T, B, H, DTYPE, machine.device)
            for forward, backward in _plans(H, launch.device_of(ours.grad)):
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


def _plans(H: int, device: plans.Device) -> Iterator[tuple[plans.Plan, plans.Plan]]:
    """One plan of each kind, forward and backward, that serves every batch."""
    yield plans.stepwise_plan(H), plans.stepwise_plan(H)
    yield from zip(
        *(
            plans.persistent_plans(direction, H, 1, DTYPE.itemsize, "ieee", device)[:1]
            for direction in ("forward", "backward")
        ),
        strict=False,
    )


def unequal(a: Outputs, b: Outputs) -> list[str]:
    """The names of values that differ in any bit, NaN included."""
    return [name for name in a if not torch.equal(_bits(a[name]), _bits(b[name]))]


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().view(torch.uint8)


def _shape(sizes: Sizes) -> tuple[int, int, int]:
    return sizes.steps, sizes.batches[len(sizes.batches) // 2], sizes.hidden[0]
