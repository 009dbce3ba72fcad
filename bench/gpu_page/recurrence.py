"""The recurrence: floors of a step, which plan, what cannot run persistent, what forward keeps for backward."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from fusedmdn.ops import cost, plans

from tests.compile_gate import shipped

from ..markdown import table
from .common import GPUS, NUMBERS, Numbers, Rows, device_of, kib

DIRECTIONS = ("forward", "backward")
FLOOR_H, FLOOR_B = (400, 512, 900, 1024), (16, 64, 256)
PLAN_B = (1, 16, 64, 256, 1024)
MEMORY_H = 400

HEAD = """## Recurrence: which plans there are

16×8·4 is a persistent plan, one cooperative launch for all steps: a program owns 8 hidden units, sequences come in
tiles of 16, and 4 programs for every 8 units share the tiles. *step* is the stepwise plan: a matrix product and a
pointwise kernel every step.

## Recurrence: floors of a step on an {gpu}

One step of one layer, without what happens once for all steps (the input's projection, the weights' gradients).
H hidden units, B sequences, e bytes an element; R×U·G the plan, P = ⌈H/U⌉. Forward K = H and N = 4U, backward K = 4H
and N = U; K′ ≥ K is what the chunks of `plans.chunks` cover.

| column | persistent | stepwise | computed by |
|---|---|---|---|
| memory, forward | BH(9e + 4): `xw`, `h`, gates and cell state kept | the same | `cost.memory` |
| memory, backward | BH(9e + 8): gradient of `h`, gates, two cell states, gradient of `xw` | the same | `cost.memory` |
| L2 | P·B·K·e: every program reads all of its rows of `h` (or `dz`) | 4H²e + 5BHe | `cost.Step.exchange` |
| products | P·⌈B/R⌉·R·K′·N multiply-adds; + over B·4H² | 4BH² | `cost.Step.multiply_adds` |
| floor | max(memory / W, n·products / (F·share)) | the same | `cost.Step.floor` |

`plans.step_cost` makes the `cost.Step`. W = {bandwidth:g} TB/s; F · 10⁻¹² = {rates} multiply-adds a
second; share = P·G/{processors} of the multiprocessors, 1 stepwise; n = 3 for float32 without TF32, of which the
persistent kernels make three TF32 products (stepwise: n = 1, at the float32 rate). *m*: the memory decides, *p*: the
products. The division by W presumes that these bytes cross the memory bus; what a short sequence leaves in L2 need not.
Barriers are a tile's, launches the batch's. Registers of a thread, bytes that it spills, and shared memory of a program
are the compiler's, for sm_90.
"""


def sections(rows: Rows) -> Iterator[str]:
    """All of them."""
    gpu = cost.H100
    rates = ", ".join(f"{rate / 1e12:g} ({name})" for name, rate in gpu.multiply_adds.items())
    yield HEAD.format(gpu=gpu.name, bandwidth=gpu.bandwidth / 1e12, rates=rates, processors=gpu.processors)
    for numbers, direction in itertools.product(NUMBERS, DIRECTIONS):
        yield f"### {numbers.title}, {direction}\n"
        yield from floors(rows, numbers, direction)
    for section in decisions(), misfits(), kept():
        yield from section


def variant_of(direction: str, numbers: Numbers, H: int, plan: plans.Plan) -> str:
    """The kernel that this plan launches, as the compile gate calls it."""
    if isinstance(plan, plans.Stepwise):
        return f"lstm_stepwise.{direction} {numbers.label} H{H} stepwise"
    ahead = "all" if plan.ahead == plans.ALL else plan.ahead
    shape = f"{plan.precision} {plan.rows}x{plan.units} width {plan.width} ahead {ahead}"
    return f"lstm_persistent.{direction} {numbers.label} H{H} {shape}"


def notation(plan: plans.Plan) -> str:
    """A plan in a few characters."""
    return f"{plan.rows}×{plan.units}·{plan.groups}" if isinstance(plan, plans.Persistent) else "step"


def grid_of(plan: plans.Plan, H: int, B: int) -> str:
    """Programs of a launch."""
    if isinstance(plan, plans.Persistent):
        return f"{plan.programs}×{plan.groups}"
    return f"{B}×{-(-H // plan.block)}"


class Floor(NamedTuple):
    """The two divisions, in seconds; the floor is the larger."""

    memory: float
    products: float


def floor_of(step: cost.Step, plan: plans.Plan, precision: str) -> Floor:
    """`cost.Step.floor` on an H100, for either of its divisions alone."""
    rate = {"ieee": "bf16", "tf32": "tf32", "tf32x3": "tf32"}[precision]
    if precision == "tf32x3" and isinstance(plan, plans.Persistent):
        step = step._replace(multiply_adds=3 * step.multiply_adds)
    elif precision == "tf32x3":
        rate = "float32"
    return Floor(step._replace(multiply_adds=0).floor(cost.H100, rate), step._replace(memory=0).floor(cost.H100, rate))


def floors(rows: Rows, numbers: Numbers, direction: str) -> Iterator[str]:
    """The chosen plan's cost for every size."""
    device, size, lines = device_of("sm_90"), numbers.dtype.itemsize, []
    for H, B in itertools.product(FLOOR_H, FLOOR_B):
        plan = plans.choose(direction, H, B, numbers.dtype, device, tf32=numbers.tf32)
        step = plans.step_cost(plan, direction, H, B, size, device)
        floor = floor_of(step, plan, numbers.precision)
        padding = step.multiply_adds / (B * 4 * H * H) - 1
        figures = rows.of(variant_of(direction, numbers, H, plan), "sm_90")
        lines.append(
            [
                *(str(H), str(B), notation(plan), grid_of(plan, H, B)),
                *(f"{step.memory / 1e6:.2f}", f"{step.exchange / 1e6:.2f}"),
                f"{step.multiply_adds / 1e6:,.1f} + {100 * padding:.1f}%",
                f"{max(floor) * 1e6:.2f} {'m' if floor.memory >= floor.products else 'p'}",
                *(str(figures["registers"]), str(figures["spills"]), kib(figures["shared"])),
                *(str(step.barriers), str(step.launches)),
            ]
        )
    header = ["H", "B", "plan", "grid", "memory, MB", "L2, MB", "products, 10⁶", "floor, µs"]
    yield from table([*header, "registers", "spills", "shared, KiB", "barriers", "launches"], lines)


def decisions() -> Iterator[str]:
    """The planner's choice for every target, size and batch."""
    yield "## Recurrence: what the planner chooses\n"
    yield f"bfloat16, forward / backward, where they differ; columns are B = {', '.join(map(str, PLAN_B))}.\n"
    lines = []
    for target, name in GPUS.items():
        device = device_of(target)
        gpu = f"{name}, {target}, {device.processors}"
        grid = {H: [decision(H, B, device) for B in PLAN_B] for H in shipped.SIZES}
        if {cell for cells in grid.values() for cell in cells} == {"step"}:
            lines.append([gpu, "all", *["step"] * len(PLAN_B)])
            continue
        lines += [[gpu if shipped.SIZES[0] == H else "", str(H), *cells] for H, cells in grid.items()]
    yield from table(["GPU, target, multiprocessors", "H", *map(str, PLAN_B)], lines)


def decision(H: int, B: int, device: plans.Device) -> str:
    """Both directions' plans in bfloat16."""
    chosen = [notation(plans.choose(direction, H, B, torch.bfloat16, device)) for direction in DIRECTIONS]
    return " / ".join(dict.fromkeys(chosen))


def misfits() -> Iterator[str]:
    """Where no persistent plan fits, and what stands in its way."""
    yield "## Recurrence: what cannot run persistent\n"
    yield "At any B; where the table above says *step* of a size that is not here, the planner ranked that first."
    yield "float16 is as bfloat16. Each rows×units with what it lacks; *registers*: the compiler would spill.\n"
    lines = []
    for target, numbers in itertools.product(GPUS, NUMBERS):
        device = device_of(target)
        if target not in plans.SHARED:
            continue
        reasons = {
            (direction, H): misfit(direction, H, numbers, device)
            for direction, H in itertools.product(DIRECTIONS, shipped.SIZES)
        }
        for H in shipped.SIZES:
            found = {direction: reasons[direction, H] for direction in DIRECTIONS if reasons[direction, H]}
            for reason in dict.fromkeys(found.values()):
                alike = [direction for direction in found if found[direction] == reason]
                lines.append([f"{GPUS[target]}, {numbers.title}", str(H), " and ".join(alike), reason])
    yield from table(["GPU, elements", "H", "direction", "why"], lines)
    without = ", ".join(f"{name} ({target})" for target, name in GPUS.items() if target not in plans.SHARED)
    yield f"No persistent plan at all, whatever the size, is offered on {without}.\n"


def misfit(direction: str, H: int, numbers: Numbers, device: plans.Device) -> str:
    """Why no persistent plan fits; empty if one does."""
    size, precision = numbers.dtype.itemsize, numbers.precision
    if plans.persistent_plans(direction, H, 1, size, precision, device):
        return ""
    return "; ".join(
        f"{rows}×{units}: {lack}"
        for rows, units in plans.STAGING[direction, precision]
        for lack in [lacking(direction, H, (rows, units), size, precision, device)]
    )


def lacking(direction: str, H: int, shape: tuple[int, int], size: int, precision: str, device: plans.Device) -> str:
    """What a persistent plan of this shape has too little of."""
    programs = -(-H // shape[1])
    if programs > device.processors:
        return f"{programs} programs > {device.processors}"
    staging = [
        (width, ahead)
        for largest, width, ahead, but in plans.STAGING[direction, precision][shape]
        if largest >= H and device.target not in but
    ]
    if not staging:
        return "registers"
    least = min(plans.shared_memory(direction, precision, H, (*shape, *staged), size) for staged in staging)
    return f"{kib(least)} KiB > {kib(device.shared)}"


def kept() -> Iterator[str]:
    """Memory for backward."""
    yield "## Recurrence: what forward keeps for backward\n"
    yield f"Bytes a token and layer, at H = {MEMORY_H}. `FusedLSTMMDN(recompute=True)` has the gates computed again."
    yield "The layer's input is kept either way and not counted.\n"
    lines = [
        [dtype, f"{4 * MEMORY_H * e + 4 * MEMORY_H + MEMORY_H * e:,}", f"{4 * MEMORY_H + MEMORY_H * e:,}"]
        for dtype, e in (("bfloat16", 2), ("float32", 4))
    ]
    yield from table(["", "gates kept: 4He + 4H + He", "gates computed again: 4H + He"], lines)
