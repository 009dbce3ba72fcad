"""Training by one operator: fused or composed, what cannot be fused, floors of a step, why raw is kept for backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fusedmdn.ops import cost, plans, training_plans
from fusedmdn.ops.training_plans import Fused

from tests.compile_gate import shipped

from ..markdown import table
from .common import GPUS, NUMBERS, Numbers, Rows, device_of, kib
from .recurrence import DIRECTIONS, notation
from .recurrence import grid_of as grid_of_recurrence
from .sampling import ELEMENTS, LAYERS, MIXTURES, described, network_of, outputs

PLAN_B = (1, 16, 64, 256, 1024)
EXPECTED = ((3, 400), (2, 512), (3, 512), (1, 900), (1, 1024), (2, 900), (3, 900))  # where a reader asks why not
GRAVES, STEPS, FLOOR_B = "B", 700, (16, 64, 256)
RATES = {"ieee": ("bf16", 1), "tf32": ("tf32", 1), "tf32x3": ("tf32", 3)}  # of which products, how many for one
HEADER = (
    *("B", "plan", "grid", "barriers", "launches", "memory, MB", "L2, MB", "products, 10⁶", "padding", "floor, µs"),
    *("registers", "spills", "shared, KiB"),
)
LIBRARY = {"ieee": ("bf16", 1), "tf32": ("tf32", 1), "tf32x3": ("float32", 1)}  # the same of products left to torch

CHOICE = f"""## Training: what the planner chooses

`lstm_mdn_nll` is the whole loss of given sequences. *fused*: one cooperative launch each way, all weights on chip, the
layers a wavefront, T + L barriers, backward one more. *composed*: the layers one after another, each by its own plan,
between matrix products of all steps, then the loss.

L layers of H units, {MIXTURES} components, a Bernoulli pen; `training_plans.choose` was asked at
B = {", ".join(map(str, PLAN_B))}, for each direction by itself. "fused to 64" is fused at all of these up to 64 and
composed at the others; where they differ, *fwd* and *bwd*, forward and backward, say when each is fused. The choice
ranks by latencies that an H100 has measured. float16 is as bfloat16; float32 is without TF32,
three TF32 products for one. MI300X (gfx942) is composed only.
"""

MISFITS = """## Training: what cannot be fused

At any B, of sizes that one might expect to. Each number of units that a program may own, with what it lacks: programs,
of which a multiprocessor has one at most; shared memory; or *registers*: the compiler would spill, so no staging is
listed for that GPU. A dash where a plan fits.
"""

FLOORS = """## Training: floors of a step on an {gpu}

**Arithmetic on a datasheet's figures, never an expected time.** One step, one way, of Graves's network
({network}, D = {D}), T = {T} steps, without what comes after the loop and is alike in all plans (the weights'
gradients). What sets the plans apart, barriers and launches, is not in a floor; they are counted, for all T steps.

*fused* R×U is the best fused plan that fits, in tiles of R sequences, U units to a program. *composed* has the plan
that is chosen for each layer's recurrence. The planner's choice is bold. *cuDNN* is its standard algorithm, which
PyTorch asks for at this size: for each step and layer a matrix product, its weights read from L2 again, and a pointwise
kernel, as the stepwise plan is counted, but with cell states of e bytes, so 10BHe forward and 11BHe backward; no
layer's work is fused with another's, and the loss is counted as if it were one kernel.

e bytes an element; P = ⌈H/U⌉ programs for each layer, Q = ⌈D/{columns}⌉ for the head; S layers read the input and are
read by the head (all, with skips); V = 2L − 1 matrices of the layers, m = 2 where L > 1, else 1: zeros stand for what
the first layer (backward, the last) has not. D′ is D up to a multiple of {aligned}, B′ is B up to one of R. K′ is what
the chunks of `plans.chunks` cover, of H forward, of 4H backward, D″ what they cover of D′. *each*: the recurrence's
column, above, of L layers.

| column | fused | composed, cuDNN | `cost.Training` |
|---|---|---|---|
| barriers | T + L, bwd T + L + 1, of a tile | LT persistent, else 0 | `barriers` |
| launches | 1 | L + 2 forward, L + 1 backward; and L persistent, else 2LT | `launches` |
| memory, fwd | B(LH(5e + 4) + e(I + D) + 4I + 4) | each + B(e(4LH + (L − 1)H + S(I + H) + 2D) + 4I + 4) | `memory` |
| memory, bwd | B(LH(8e + 8) + e(D + D′) + 4I + 4) | each + B(e(LH + 4(L − 1)H + (S + 2)D) + 4I + 4) | `memory` |
| L2, fwd | B(He(VP + SQ) + 4D) | each | `exchange` |
| L2, bwd | BPe(4HV + SD′) | each | `exchange` |
| products, fwd | B′(4UPL(mK′ + {inputs}) + {columns}QSK′) | each + B(4H(SI + (L − 1)H) + SHD) | `multiply_adds` |
| products, bwd | B′UPL(mK′ + D″) | each + B(4(L − 1)H² + SHD) | `multiply_adds` |
| padding | 1 − B(4H(VH + SI) + SHD) / products; bwd no SI | the same | `needed` |
| floor | max(memory / W, n·products / (F·share)) | the same, both of all parts | `moves`, `products` |

Memory is what must be read or written once: forward the input, the target, `h`, gates, cell states, raw (the head's
output) and the loss; backward gates, two cell states, raw, the target, and the gradients of the loss, of raw and of the
gates. Where it is not fused, the hoisted projections are written and read too, raw or its gradient is written by one
kernel and read by the next, and so is the gradient of `h`. L2 is what programs read in the loop of what others wrote,
and weights read again. W, F and n are the recurrence's, share = programs of the grid / {processors}; products over all
time are torch's: n = 1, share = 1, as cuDNN's, in float32 without TF32 at the float32 rate. *m*: the memory decides,
*p*: the products. A matrix product is one launch at the least. Registers of a thread, bytes that it spills, and shared
memory of a program are the compiler's, for sm_90, of the kernel with {mixtures} components, skips, peepholes, lengths.
"""

KEPT = """## Training: what forward keeps for backward

Bytes of a sequence and step, of Graves's network: `h`, gates and cell states of all layers, and raw, the head's
outputs.

{table}
The fused kernel has no need of raw in memory but for backward, and writes it: {raw} bytes in bfloat16. To compute it
anew would take a product of S·H·D = {products:,} multiply-adds, {h:,} bytes of `h` read again, {ratio:.0f} times
those of raw, and one more barrier.
"""


def sections(rows: Rows) -> Iterator[str]:
    """All of them."""
    yield CHOICE
    for numbers in ELEMENTS:
        yield f"### Training chosen in {numbers.title}\n"
        yield from decisions(numbers)
    yield MISFITS
    yield from misfits()
    gpu, network = cost.H100, network_of(GRAVES)
    yield FLOORS.format(
        gpu=gpu.name, network=described(GRAVES), D=network.D, T=STEPS, aligned=training_plans.ALIGNED,
        columns=training_plans.COLUMNS, inputs=training_plans.INPUTS + 2, processors=gpu.processors, mixtures=MIXTURES,
    )  # fmt: skip
    for numbers, direction in itertools.product(NUMBERS, DIRECTIONS):
        yield f"### A step of training in {numbers.title}, {direction}\n"
        yield from floors(rows, numbers, direction)
    yield from kept()


def decisions(numbers: Numbers) -> Iterator[str]:
    """The planner's choices for every size, target and batch; sizes that are alike in one row."""
    grid = {
        (L, H): tuple(decision(L, H, numbers, device_of(target)) for target in plans.SHARED)
        for L, H in itertools.product(LAYERS, shipped.SIZES)
    }
    lines = []
    for (L, cells), alike in itertools.groupby(grid, lambda size: (size[0], grid[size])):
        lines.append([str(L), ", ".join(str(H) for _, H in alike), *cells])
    yield from table(["L", "H", *(GPUS[target] for target in plans.SHARED)], lines)


def decision(L: int, H: int, numbers: Numbers, device: plans.Device) -> str:
    """At which batches each direction is fused."""
    forward, backward = (batches(direction, L, H, numbers, device) for direction in DIRECTIONS)
    if forward == backward:
        return {"always": "fused", "never": "composed"}.get(forward, f"fused {forward}")
    return f"fwd {forward} / bwd {backward}"


def batches(direction: str, L: int, H: int, numbers: Numbers, device: plans.Device) -> str:
    """Those at which one direction is fused."""
    D, dtype, tf32 = outputs(MIXTURES), numbers.dtype, numbers.tf32
    chosen = {B: training_plans.choose(direction, L, H, D, B, dtype, device, tf32=tf32).name for B in PLAN_B}
    runs = [(name, list(alike)) for name, alike in itertools.groupby(chosen, chosen.__getitem__)]
    return ", ".join(between(alike[0], alike[-1]) for name, alike in runs if name == "fused") or "never"


def between(first: int, last: int) -> str:
    """From one of the batches to another, in words."""
    if (first, last) == (PLAN_B[0], PLAN_B[-1]):
        return "always"
    if first == last:
        return f"at {first}"
    if first == PLAN_B[0]:
        return f"to {last}"
    return f"from {first}" if last == PLAN_B[-1] else f"{first} to {last}"


def misfits() -> Iterator[str]:
    """Sizes without a fused plan, and what stands in its way; directions and elements that are alike in one row."""
    lines = []
    for L, H in EXPECTED:
        found: dict[tuple[str, ...], dict[str, list[str]]] = {}
        for direction, numbers in itertools.product(DIRECTIONS, NUMBERS):
            cells = tuple(misfit(direction, L, H, numbers, device_of(target)) or "–" for target in plans.SHARED)
            found.setdefault(cells, {}).setdefault(direction, []).append(numbers.title)
        for cells, alike in found.items():
            if set(cells) == {"–"}:
                continue
            for titles in dict.fromkeys(map(tuple, alike.values())):
                directions = " and ".join(direction for direction in alike if tuple(alike[direction]) == titles)
                elements = "all" if len(titles) == len(NUMBERS) else "; ".join(titles)
                lines.append([f"{L}×{H}", elements, directions, *cells])
    yield from table(["L×H", "elements", "direction", *(GPUS[target] for target in plans.SHARED)], lines)


def misfit(direction: str, L: int, H: int, numbers: Numbers, device: plans.Device) -> str:
    """Why no fused plan fits; empty if one does."""
    size, precision = numbers.dtype.itemsize, numbers.precision
    if training_plans.fused_plans(direction, L, H, outputs(MIXTURES), 1, size, precision, device):
        return ""
    tried = dict.fromkeys(staging.units for staging in training_plans.STAGING[direction, precision])
    return "; ".join(f"{units} units: {lacking(direction, L, H, units, size, precision, device)}" for units in tried)


def lacking(direction: str, L: int, H: int, units: int, size: int, precision: str, device: plans.Device) -> str:
    """What a fused plan of so many units has too little of."""
    programs = training_plans.programs(direction, L, H, outputs(MIXTURES), units)
    if programs > device.processors:
        return f"{programs} programs > {device.processors}"
    needed = least_shared(direction, L, H, units, size, precision, device.target)
    return f"{kib(needed)} KiB > {kib(device.shared)}" if needed else "registers"


def least_shared(direction: str, L: int, H: int, units: int, size: int, precision: str, target: str) -> int:
    """Bytes of shared memory of a program of so many units, staged as takes least; 0 where no staging is listed."""
    D, columns = outputs(MIXTURES), training_plans.COLUMNS
    return min(
        (
            training_plans.shared_memory(
                direction, L, H, D, Fused(units, columns, staging.width, staging.ahead, precision, 0, 0), size
            )
            for staging in training_plans.STAGING[direction, precision]
            if staging.units == units and staging.largest >= H and target not in staging.but
            if L > 1 or not staging.stacked
        ),
        default=0,
    )


class Part(NamedTuple):
    """Of a step: what it costs, of which of the datasheet's products, how many for one."""

    cost: cost.Training
    rate: str
    times: int


class Row(NamedTuple):
    """A way to run a step: its name in the table, its grid, its parts one after another, the compile gate's kernel."""

    title: str
    grid: str
    parts: tuple[Part, ...]
    variant: str = ""


def fused_row(direction: str, numbers: Numbers, network: cost.Network, B: int) -> Row | None:
    """The best fused plan, whether or not it is chosen; None if none fits."""
    L, H, D = network[:3]
    device, size, precision = device_of("sm_90"), numbers.dtype.itemsize, numbers.precision
    ranked = training_plans.ranked(direction, L, H, D, B, size, precision, device)
    plan = next((plan for plan in ranked if isinstance(plan, Fused)), None)
    if plan is None:
        return None
    waves = training_plans.waves_of(plan, direction, H, D)
    share = plan.programs * plan.groups / device.processors
    step = cost.training(direction, network, STEPS, B, size, waves, share)
    title, grid = f"{plan.rows}×{plan.units}", f"{plan.programs}×{plan.groups}"
    return Row(title, grid, (Part(step, *RATES[precision]),), variant_of(direction, numbers, L, H, plan))


def composed_row(direction: str, numbers: Numbers, network: cost.Network, B: int) -> Row:
    """Each layer's chosen recurrence, the products over all time, the loss."""
    device, size = device_of("sm_90"), numbers.dtype.itemsize
    plan = plans.choose(direction, network.H, B, numbers.dtype, device, tf32=numbers.tf32)
    step = plans.step_cost(plan, direction, network.H, B, size, device)
    rates = RATES if isinstance(plan, plans.Persistent) else LIBRARY
    parts = in_parts(direction, numbers, network, B, step, rates)
    return Row(notation(plan), grid_of_recurrence(plan, network.H, B), parts)


def cudnn_row(direction: str, numbers: Numbers, network: cost.Network, B: int) -> Row:
    """As composed of stepwise plans, but it may keep cell states in its own elements."""
    H, size = network.H, numbers.dtype.itemsize
    step = plans.step_cost(plans.stepwise_plan(H), direction, H, B, size, device_of("sm_90"))
    spared = B * H * (4 - size) * (1 if direction == "forward" else 2)
    step = step._replace(memory=step.memory - spared)
    return Row("step", "–", in_parts(direction, numbers, network, B, step, LIBRARY))


def in_parts(
    direction: str, numbers: Numbers, network: cost.Network, B: int, step: cost.Step, rates: dict[str, tuple[str, int]]
) -> tuple[Part, ...]:
    """The layers' recurrences, each of which costs `step`, and what lies between them."""
    between = cost.over_time(direction, network, B, numbers.dtype.itemsize)
    layers = cost.recurrences(step, network.L, network.H, STEPS, B)
    return Part(layers, *rates[numbers.precision]), Part(between, *LIBRARY[numbers.precision])


def variant_of(direction: str, numbers: Numbers, L: int, H: int, plan: Fused) -> str:
    """The kernel that this plan launches, as the compile gate calls it."""
    ahead = "all" if plan.ahead == plans.ALL else plan.ahead
    sizes, tile = f"{numbers.label} H{H} M{MIXTURES} bernoulli L{L}", f"{plan.precision} {plan.rows}x{plan.units}"
    return f"lstm_mdn_nll.{direction} {sizes} {tile} width {plan.width} ahead {ahead}"


class Floor(NamedTuple):
    """The two divisions, in seconds; the floor is the larger."""

    moves: float
    products: float


def floor_of(parts: tuple[Part, ...]) -> Floor:
    """Of parts one after another, on an H100."""
    moves = sum(part.cost.moves(cost.H100) for part in parts)
    return Floor(moves, sum(part.times * part.cost.products(cost.H100, part.rate) for part in parts))


def floors(rows: Rows, numbers: Numbers, direction: str) -> Iterator[str]:
    """What a step costs fused, composed and by cuDNN."""
    network, device, lines = network_of(GRAVES), device_of("sm_90"), []
    L, H, D = network[:3]
    for B in FLOOR_B:
        chosen = training_plans.choose(direction, L, H, D, B, numbers.dtype, device, tf32=numbers.tf32).name
        for name, row_of in WAYS.items():
            title, row = f"**{name}**" if name == chosen else name, row_of(direction, numbers, network, B)
            if row is None:
                lacks = misfit(direction, L, H, numbers, device)
                lines.append([str(B), f"{title} does not fit: {lacks}", *["–"] * (len(HEADER) - 2)])
                continue
            figures = rows.of(row.variant, "sm_90") if row.variant else None
            lines.append([str(B), f"{title} {row.title}", row.grid, *costs(row.parts), *compiled(figures)])
    yield from table(HEADER, lines)


def costs(parts: tuple[Part, ...]) -> list[str]:
    """The table's middle: all parts together."""
    barriers = sum(part.cost.barriers for part in parts)
    launches = sum(part.cost.launches for part in parts)
    memory = sum(part.cost.memory for part in parts)
    exchange = sum(part.cost.exchange for part in parts)
    multiply_adds = sum(part.cost.multiply_adds for part in parts)
    needed = sum(part.cost.needed for part in parts)
    floor = floor_of(parts)
    return [
        *(f"{barriers:,}", f"{launches:,}", f"{memory / 1e6:.2f}", f"{exchange / 1e6:,.2f}"),
        *(f"{multiply_adds / 1e6:,.1f}", f"{100 * (1 - needed / multiply_adds):.1f}%"),
        f"{max(floor) * 1e6:.2f} {'m' if floor.moves >= floor.products else 'p'}",
    ]


def compiled(figures: dict[str, Any] | None) -> list[str]:
    """The table's end: what the compiler says of a fused kernel."""
    if figures is None:
        return ["–"] * 3
    return [str(figures["registers"]), str(figures["spills"]), kib(figures["shared"])]


def kept() -> Iterator[str]:
    """Memory for backward, and why raw is in it."""
    network, lines = network_of(GRAVES), []
    LH = network.L * network.H
    for title, e in (("bfloat16", 2), ("float32", 4)):
        layers, raw = LH * (5 * e + 4), network.D * e
        figures = [LH * e, 4 * LH * e, 4 * LH, raw]
        lines.append([title, *(f"{figure:,}" for figure in figures), f"{100 * raw / layers:.1f}%"])
    header = ["", "h: LHe", "gates: 4LHe", "cell states: 4LH", "raw: De", "raw over the others"]
    read = network.heads * network.H
    yield KEPT.format(
        table="\n".join(table(header, lines)), raw=network.D * 2, products=read * network.D, h=read * 2,
        ratio=read / network.D,
    )  # fmt: skip


WAYS: dict[str, Callable[[str, Numbers, cost.Network, int], Row | None]] = {
    "fused": fused_row,
    "composed": composed_row,
    "cuDNN": cudnn_row,
}
