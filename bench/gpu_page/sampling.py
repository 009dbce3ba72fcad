"""Sampling: which plan, what cannot run resident, floors of a step, what repeats bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fusedmdn.ops import cost, plans, sampling_plans
from fusedmdn.ops.sampling_plans import Graph, Plan, Resident, Rows

from tests.compile_gate import shipped

from .. import models
from ..markdown import table
from . import common
from .common import GPUS, NUMBERS, Numbers, device_of, kib

ELEMENTS = NUMBERS[:2]
MIXTURES = 20
LAYERS = (1, 2, 3)
PLAN_B = (1, 16, 64, 256, 1024, 8192)
EXPECTED = ((1, 900), (2, 400), (3, 400), (3, 512), (3, 900))  # layers and units, where a reader asks why not
NETWORKS, FLOOR_B = ("B", "A", "C", "D"), (1, 64, 1024)
RATES = {"ieee": ("bf16", 1), "tf32x3": ("tf32", 3)}  # of which products, how many for one

CHOICE = f"""## Sampling: what the planner chooses

*resident*: one cooperative launch, the layers' weights on chip, L + 1 grid barriers a step. *rows*: one launch, every
program steps its own sequences and loads all weights from L2 in every step. *graph*: the same tiles with a program for
each, L + 2 launches a step, {sampling_plans.CAPTURED} steps captured and replayed.

L layers of H units, {MIXTURES} components, a Bernoulli pen; `sampling_plans.choose` was asked at
B = {", ".join(map(str, PLAN_B))}: "resident to 64, graph" is resident at 64 and graph from the next of these on. It
ranks by latencies that an H100 has measured. float16 is as bfloat16. MI300X (gfx942) is offered
the graph plan alone.
"""

MISFITS = """## Sampling: what cannot run resident

At any B, of sizes that one might expect to. Each number of units that a program may own, with what it lacks;
*registers*: the compiler would spill.
"""

FLOORS = """## Sampling: floors of a step on an {gpu}

One step of all layers, the head and the draw, no sequence having ended; every plan that fits, the planner's choice in
bold. Networks of `bench/models.py`: L×H, M components, D = 1 + 6M outputs; S layers read the row and S are read by the
head, with skips S = L, else 1. Plan R×U: a program has R sequences and U units of a layer at a time, or C outputs.
T = ⌈B/R⌉ blocks of sequences, P = ⌈H/U⌉ tiles of units, Q of outputs. Resident a tile is a program's own, in G groups:
Q = P, C = ⌈D/P⌉ up to a power of two and 8 at least; else C = 2U and Q = ⌈D/C⌉. e bytes an element, V = 2L − 1 matrices
of the layers, N = 4U·P; K′ ≥ H: resident what `plans.chunks` covers, else a multiple of `sampling_plans.depth`.

| column | resident | rows and graph | computed by |
|---|---|---|---|
| grid | P×G | rows min(T, {processors}); graph T×P, of a layer | `sampling_plans` |
| weights | T·(S·H·D·e + X): of the head | T·(K′·(V·N + S·Q·C)·e + X): all | `cost.Sampling.weights` |
| h and raw | B·(He(V·P + S·Q) + 4D·P): every program draws | B·(He(V·P + S·Q) + 4D) | `cost.Sampling.exchange` |
| products | T·R·K′·(V·N + S·Q·C) multiply-adds | the same | `cost.Sampling.multiply_adds` |
| padding | 1 − BH(4HV + SD) / products | the same | `cost.Sampling.needed` |
| floor | max((weights + h and raw) / (W·share), n·products / (F·share)) | the same | `loads`, `products` |

X = 4N(3S + L) is the row's weights and the biases, in float32. W = {bandwidth:.2f} TB/s: {port} bytes a cycle through
each multiprocessor's port to L2, at the {clock:.2f} GHz that the datasheet's rate implies; all ports at once get less.
F as above, n = 3 in float32; share = programs of the grid / {processors}, at most 1. *l*: the loads decide, *p*: the
products. The division by W presumes that each load goes to L2; what an L1 still holds need not. Barriers are a tile's,
launches the batch's. Registers of a thread, bytes that it spills, and shared memory of a program are the compiler's,
for sm_90, of the kernel with {mixtures} components, skips, peepholes and a prime; of the graph plan, a layer's kernel.
"""

BITS = """## Sampling: what repeats bit for bit

On GPUs of one kind a plan of a name has the same tiles whatever B is; only how many programs share them follows B, and
the noise is a function of seed, index and step. So for given weights and options, by one plan and the same versions of
PyTorch and Triton, a sequence has the same bits in any batch, at any position, in whichever group of programs, and
wherever the job or its steps are cut. That is not promised across plans, kinds of GPU, element types, torch's TF32
settings or versions: sums are made in other orders, and a difference in the last bit may choose another component. The
planner goes by B (and by whether the driver refuses a cooperative launch, which a warning tells), so where batches of
different sizes must agree, force a plan: `with ops.plan("graph"):`.
"""


def sections(rows: common.Rows) -> Iterator[str]:
    """All of them."""
    yield CHOICE
    for numbers in ELEMENTS:
        yield f"### Chosen in {numbers.title}\n"
        yield from decisions(numbers)
    yield MISFITS
    yield from misfits()
    gpu = cost.H100
    yield FLOORS.format(
        gpu=gpu.name, processors=gpu.processors, port=cost.PORT, clock=gpu.clock / 1e9, mixtures=MIXTURES,
        bandwidth=cost.PORT * gpu.clock * gpu.processors / 1e12,
    )  # fmt: skip
    for numbers in ELEMENTS:
        yield f"### A step of sampling in {numbers.title}\n"
        yield from floors(rows, numbers)
    yield BITS


def outputs(M: int) -> int:
    """Of the head, with a Bernoulli pen."""
    return 1 + 6 * M


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
    """The names of the plans from batch to batch."""
    chosen = {B: sampling_plans.choose(L, H, outputs(MIXTURES), B, numbers.dtype, device).name for B in PLAN_B}
    runs = [(name, max(alike)) for name, alike in itertools.groupby(chosen, chosen.__getitem__)]
    return ", ".join(name if PLAN_B[-1] == B else f"{name} to {B}" for name, B in runs)


def misfits() -> Iterator[str]:
    """Sizes without a resident plan, and what stands in its way; GPUs that are alike in one row."""
    lines = []
    for numbers, (L, H) in itertools.product(ELEMENTS, EXPECTED):
        found: dict[str, list[str]] = {}
        for target in plans.SHARED:
            reason = misfit(L, H, numbers, device_of(target))
            if reason:
                found.setdefault(reason, []).append(GPUS[target])
        lines += [[f"{L}×{H}", numbers.title, ", ".join(gpus), reason] for reason, gpus in found.items()]
    yield from table(["L×H", "elements", "GPU", "why"], lines)


def misfit(L: int, H: int, numbers: Numbers, device: plans.Device) -> str:
    """Why no resident plan fits; empty if one does."""
    size, precision = numbers.dtype.itemsize, numbers.precision
    if sampling_plans.resident_plan(L, H, outputs(MIXTURES), 1, size, precision, device):
        return ""
    tried = dict.fromkeys(staging.units for staging in sampling_plans.STAGING[precision])
    return "; ".join(f"{units} units: {lacking(L, H, units, size, precision, device)}" for units in tried)


def lacking(L: int, H: int, units: int, size: int, precision: str, device: plans.Device) -> str:
    """What a resident plan of so many units has too little of."""
    programs = -(-H // units)
    if programs > device.processors:
        return f"{programs} programs > {device.processors}"
    columns = sampling_plans.head_columns(outputs(MIXTURES), programs)
    needed = [
        sampling_plans.shared_memory(
            Resident(units, columns, staging.width, staging.ahead, precision, programs, 1), L, H, size
        )
        for staging in sampling_plans.STAGING[precision]
        if staging.units == units and staging.layers >= L and device.target not in staging.but
    ]
    return f"{kib(min(needed))} KiB > {kib(device.shared)}" if needed else "registers"


def network_of(name: str) -> cost.Network:
    """One of the benchmark's, as it is counted."""
    config = models.CONFIGS[name]
    each = config.layers if config.skip else 1
    return cost.Network(config.layers, config.hidden, outputs(config.mixtures), 3, each, each)


def step_of(plan: Plan, network: cost.Network, B: int, size: int, device: plans.Device) -> cost.Sampling:
    """What a step of this plan loads and multiplies."""
    H, D = network.H, network.D
    if isinstance(plan, Resident):
        K = sum(slices * width for _, slices, width in plans.chunks(H, plan.width))
        layer, head = plan.programs, plan.programs
    else:
        K = -(-H // plan.depth) * plan.depth
        layer, head = -(-H // plan.units), -(-D // plan.columns)
    share = min(1.0, programs(plan, H, B) / device.processors)
    tiles = cost.Tiles(plan.rows, K, plan.units, layer, plan.columns, head)
    return cost.sampling(plan.name, network, B, size, tiles, share)


def programs(plan: Plan, H: int, B: int) -> int:
    """Of a launch; of the graph's, a layer's."""
    if isinstance(plan, Graph):
        return -(-H // plan.units) * -(-B // plan.rows)
    return plan.programs * (plan.groups if isinstance(plan, Resident) else 1)


def grid_of(plan: Plan, H: int, B: int) -> str:
    """Programs of a launch."""
    if isinstance(plan, Resident):
        return f"{plan.programs}×{plan.groups}"
    return str(plan.programs) if isinstance(plan, Rows) else f"{-(-B // plan.rows)}×{-(-H // plan.units)}"


def variant_of(numbers: Numbers, L: int, H: int, plan: Plan) -> str:
    """The kernel that this plan launches, as the compile gate calls it."""
    sizes, tile = f"{numbers.label} H{H} M{MIXTURES} bernoulli", f"{plan.precision} {plan.rows}x{plan.units}"
    if isinstance(plan, Resident):
        ahead = "all" if plan.ahead == plans.ALL else plan.ahead
        return f"generate_resident.generate {sizes} L{L} {tile} width {plan.width} ahead {ahead}"
    kernel = "generate" if isinstance(plan, Rows) else "layer"
    return f"generate_rows.{kernel} {sizes} {tile} stages {plan.stages}"


def floors(rows: common.Rows, numbers: Numbers) -> Iterator[str]:
    """The cost of every plan that fits, for the benchmark's networks."""
    device, size, lines = device_of("sm_90"), numbers.dtype.itemsize, []
    rate, count = RATES[numbers.precision]
    for name, B in itertools.product(NETWORKS, FLOOR_B):
        network = network_of(name)
        L, H, D = network[:3]
        ranked = sampling_plans.ranked(L, H, D, B, size, numbers.precision, device)
        for plan in sorted(ranked, key=lambda plan: ("resident", "rows", "graph").index(plan.name)):
            step = step_of(plan, network, B, size, device)
            loads, products = step.loads(cost.H100), count * step.products(cost.H100, rate)
            figures = rows.of(variant_of(numbers, L, H, plan), "sm_90")
            title = f"**{plan.name}**" if plan == ranked[0] else plan.name
            lines.append(
                [
                    *(described(name), str(B), f"{title} {plan.rows}×{plan.units}", grid_of(plan, H, B)),
                    *(f"{step.weights / 1e6:.2f}", f"{step.exchange / 1e6:,.2f}"),
                    *(f"{step.multiply_adds / 1e6:,.1f}", f"{100 * (1 - step.needed / step.multiply_adds):.1f}%"),
                    f"{max(loads, products) * 1e6:.2f} {'l' if loads >= products else 'p'}",
                    *(str(figures["registers"]), str(figures["spills"]), kib(figures["shared"])),
                    *(str(step.barriers), str(step.launches)),
                ]
            )
    header = ["network", "B", "plan", "grid", "weights, MB", "h and raw, MB", "products, 10⁶", "padding", "floor, µs"]
    yield from table([*header, "registers", "spills", "shared, KiB", "barriers", "launches"], lines)


def described(name: str) -> str:
    """A network of the benchmark in a few characters."""
    config = models.CONFIGS[name]
    return f"{config.layers}×{config.hidden}, M {config.mixtures}{', skips' if config.skip else ''}"
