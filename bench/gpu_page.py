"""`python -m bench.gpu_page`: write docs/gpu.md, costs of the GPU kernels that arithmetic and a compiler can tell.

Nothing on it was measured on a GPU: plans and floors are of python/plans.py and python/cost.py, registers and shared
memory of the compile gate's table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fusedmdn.ops import cost, plans

from tests.compile_gate import shipped
from tests.compile_gate import table as gate

from .markdown import table

COMMAND = "python -m bench.gpu_page"
GPUS = {
    "sm_80": "A100",
    "sm_86": "RTX 3090",
    "sm_89": "RTX 4090",
    "sm_90": "H100",
    "sm_100": "B200",
    "sm_120": "RTX 5090",
    "gfx942": "MI300X",
}
DIRECTIONS = ("forward", "backward")
FLOOR_H, FLOOR_B = (400, 512, 900, 1024), (16, 64, 256)
PLAN_B = (1, 16, 64, 256, 1024)
MEMORY_H = 400


class Numbers(NamedTuple):
    """What is stored and how it is multiplied: the table's word for the dtype, the page's title, torch's setting."""

    label: str
    title: str
    tf32: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return shipped.DTYPES[self.label]

    @property
    def precision(self) -> str:
        """As the plans call it."""
        return plans.precision_of(self.dtype, self.tf32)


NUMBERS = (
    Numbers("bf16", "bfloat16", False),
    Numbers("fp32", "float32", False),
    Numbers("fp32", "float32, TF32 allowed", True),
)

HEAD = """# GPU kernels: computed costs

**Nothing on this page was measured on a GPU.** Every time is a floor, arithmetic on a datasheet's figures, and never an
expected time: latencies, barriers and launches are not in it. `make gpu` measures.

Written by `{command}` from `python/plans.py`, `python/cost.py` and `tests/compile_gate/table.json`.

16×8·4 is a persistent plan, one cooperative launch for all steps: a program owns 8 hidden units, sequences come in
tiles of 16, and 4 programs for every 8 units share the tiles. *step* is the stepwise plan: a matrix product and a
pointwise kernel every step.

## Floors of a step on an {gpu}

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


class MissingRowError(LookupError):
    """The compile gate's table lacks a kernel that the page is to show."""


class Rows:
    """The compile gate's table."""

    def __init__(self, path: Path = gate.PATH) -> None:
        content = gate.read(path)
        self.triton, self.pairs = content["triton"], content["pairs"]

    def of(self, variant: str, target: str) -> dict[str, Any]:
        """The figures of a variant on a target."""
        key = gate.key(variant, target)
        if key not in self.pairs:
            raise MissingRowError(f"the compile gate's table has no row for {key!r}; run `{gate.REFRESH}`")
        return self.pairs[key]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"), metavar="FILE")
    given = parser.parse_args(argv)
    try:
        text = page(Rows())
    except MissingRowError as missing:
        print(missing, file=sys.stderr)
        return 1
    given.out.write_text(text)
    print(f"wrote {given.out}")
    return 0


def page(rows: Rows) -> str:
    """The whole page."""
    gpu = cost.H100
    rates = ", ".join(f"{rate / 1e12:g} ({name})" for name, rate in gpu.multiply_adds.items())
    parts = [
        HEAD.format(
            command=COMMAND, gpu=gpu.name, bandwidth=gpu.bandwidth / 1e12, rates=rates, processors=gpu.processors
        )
    ]
    for numbers in NUMBERS:
        for direction in DIRECTIONS:
            parts.append(f"### {numbers.title}, {direction}\n")
            parts.append("\n".join(floors(rows, numbers, direction)))
    parts += ["\n".join(section) for section in (decisions(), misfits(), needs(rows), kept())]
    return "\n".join(parts).rstrip() + "\n"


def device_of(target: str) -> plans.Device:
    """The GPU of a target, as the planner sees it."""
    return plans.Device(target, shipped.PROCESSORS[target], plans.SHARED.get(target, 0) * 1024)


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


def kib(size: int) -> str:
    """Bytes in KiB, rounded up to a tenth: what must fit."""
    return f"{-(-size * 10 // 1024) / 10:g}"


def decisions() -> Iterator[str]:
    """The planner's choice for every target, size and batch."""
    yield "## What the planner chooses\n"
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
    yield "## What cannot run persistent\n"
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


def needs(rows: Rows) -> Iterator[str]:
    """Registers and shared memory of all kernels, on all targets."""
    pairs = [(name.split(), figures) for name, figures in rows.pairs.items()]
    yield "## What the kernels need\n"
    yield f"{len(pairs):,} pairs of a kernel, with its sizes and options, and a target, by Triton {rows.triton}."
    yield "Least to most registers of a thread; the most shared memory of a program in KiB.\n"
    yield from spills(pairs)
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for words, figures in pairs:
        groups.setdefault((words[0], words[1]), {}).setdefault(words[-1], []).append(figures)
    lines = [
        [*key, *(span(by_target[target]) if target in by_target else "–" for target in GPUS)]
        for key, by_target in sorted(groups.items())
    ]
    yield from table(["kernel", "elements", *GPUS], lines)


def spills(pairs: list[tuple[list[str], dict[str, Any]]]) -> Iterator[str]:
    """That no kernel spills, or which do."""
    spilling: dict[str, list[int]] = {}
    for words, figures in pairs:
        if figures["spills"]:
            spilling.setdefault(" ".join(words[:2]), []).append(figures["spills"])
    if not spilling:
        yield "No pair spills a register.\n"
        return
    yield f"**{sum(map(len, spilling.values()))} pairs spill**, in bytes of a thread at most:\n"
    yield from (f"- {kernel}: {len(sizes)} pairs, {max(sizes)}" for kernel, sizes in sorted(spilling.items()))
    yield ""


def span(figures: list[dict[str, Any]]) -> str:
    """The range of registers and the largest shared memory."""
    registers = sorted({row["registers"] for row in figures})
    least, most = registers[0], registers[-1]
    return f"{least if least == most else f'{least}–{most}'}; {kib(max(row['shared'] for row in figures))}"


def kept() -> Iterator[str]:
    """Memory for backward."""
    yield "## What forward keeps for backward\n"
    yield f"Bytes a token and layer, at H = {MEMORY_H}. `FusedLSTMMDN(recompute=True)` has the gates computed again."
    yield "The layer's input is kept either way and not counted.\n"
    lines = [
        [dtype, f"{4 * MEMORY_H * e + 4 * MEMORY_H + MEMORY_H * e:,}", f"{4 * MEMORY_H + MEMORY_H * e:,}"]
        for dtype, e in (("bfloat16", 2), ("float32", 4))
    ]
    yield from table(["", "gates kept: 4He + 4H + He", "gates computed again: 4H + He"], lines)


if __name__ == "__main__":
    sys.exit(main())
