"""What of the page is shown beside measurements: floors and resources of the planner's choices, on an H100."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fusedmdn.ops import cost, plans, sampling_plans, training_plans

from .. import models
from ..markdown import table
from . import recurrence, sampling, training
from .common import NUMBERS, MissingRowError, Numbers, Rows, device_of, kib

ELEMENTS = NUMBERS[:2]
BATCHES = (1, 16, 64, 256)
TARGET = "sm_90"
INTRODUCTION = f"""## GPU: floors, not measured

**Nothing here was measured. Every time in this section is arithmetic on the datasheet of an {cost.H100.name}: a floor,
and never an expected time;** latencies, barriers and launches are not in it. Of each network of `bench/models.py` at
batch B: the plan that the planner chooses, the least time of one step by it, and what the compiler says of its kernel,
as registers of a thread, bytes that it spills, and shared memory of a program. *p*: products decide, *m*: memory, *l*:
loads from L2. Composed training shows the kernel of its recurrence. A dash: a kernel that is not among those that were
compiled. Kernels of sampling and of fused training are those with {sampling.MIXTURES} components; training counts
{training.STEPS} steps. Formulas, the other plans and other GPUs are in [gpu.md](gpu.md). `make gpu` and `make bench`
measure on a machine that has one.
"""
HEADER = ("network", "B", "plan", "floor of a step, µs", "registers", "spills, bytes", "shared, KiB")


def sections(rows: Rows) -> Iterator[str]:
    """Sampling and training, each in bfloat16 and float32."""
    yield INTRODUCTION
    for numbers in ELEMENTS:
        yield f"### GPU floors: sampling in {numbers.title}\n"
        yield from table(HEADER, [sampled(rows, numbers, name, B) for name, B in cells()])
    for numbers in ELEMENTS:
        yield f"### GPU floors: training in {numbers.title}\n"
        lines = [
            trained(rows, numbers, name, B, direction)
            for (name, B), direction in itertools.product(cells(), recurrence.DIRECTIONS)
        ]
        yield from table([*HEADER[:2], "direction", *HEADER[2:]], lines)


def cells() -> Iterator[tuple[str, int]]:
    """Every network at every batch."""
    return itertools.product(models.CONFIGS, BATCHES)


def sampled(rows: Rows, numbers: Numbers, name: str, B: int) -> list[str]:
    """One step of sampling by the plan that is chosen."""
    network, device = sampling.network_of(name), device_of(TARGET)
    L, H, D = network[:3]
    plan = sampling_plans.choose(L, H, D, B, numbers.dtype, device)
    step = sampling.step_of(plan, network, B, numbers.dtype.itemsize, device)
    rate, count = sampling.RATES[numbers.precision]
    loads, products = step.loads(cost.H100), count * step.products(cost.H100, rate)
    floor = f"{max(loads, products) * 1e6:.2f} {'l' if loads >= products else 'p'}"
    shape = f"{plan.name} {plan.rows}×{plan.units}"
    return [of(name), str(B), shape, floor, *resources(rows, sampling.variant_of(numbers, L, H, plan))]


def trained(rows: Rows, numbers: Numbers, name: str, B: int, direction: str) -> list[str]:
    """One step of training, one way, by the plan that is chosen; composed, the kernel is the recurrence's."""
    network, device = sampling.network_of(name), device_of(TARGET)
    L, H, D = network[:3]
    way = training_plans.choose(direction, L, H, D, B, numbers.dtype, device, tf32=numbers.tf32).name
    row = training.WAYS[way](direction, numbers, network, B)
    assert row is not None, f"the planner chose a plan that does not fit: {way}, {name}, B {B}, {direction}"
    variant = row.variant
    if not variant:
        plan = plans.choose(direction, H, B, numbers.dtype, device, tf32=numbers.tf32)
        variant = recurrence.variant_of(direction, numbers, H, plan)
    floor = training.floor_of(row.parts)
    shown = f"{max(floor) * 1e6:.2f} {'m' if floor.moves >= floor.products else 'p'}"
    return [of(name), str(B), direction, f"{way} {row.title}", shown, *resources(rows, variant)]


def of(name: str) -> str:
    """A network by its letter, and what it is."""
    return f"{name}: {sampling.described(name)}"


def resources(rows: Rows, variant: str) -> list[str]:
    """What the compiler says of a kernel; dashes for one that the compile gate does not compile."""
    try:
        figures = rows.of(variant, TARGET)
    except MissingRowError:
        return ["–"] * 3
    return [str(figures["registers"]), str(figures["spills"]), kib(figures["shared"])]
