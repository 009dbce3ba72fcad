"""How sampling runs on a GPU: a pure function of the sizes, the dtype and the device, so testable without one.

Three plans (kernels/triton/generate_resident.py, generate_rows.py). *Resident*: one cooperative launch, the layers'
weights on chip, L + 1 grid barriers a step: the shortest step of small batches. *Rows*: one launch, a program steps its
own sequences and streams the weights from L2: for small networks and many sequences. *Graph*: L + 2 launches a step,
captured and replayed: for what neither serves well. Nothing is launched that is not co-resident: the resident grid has
at most one program for each multiprocessor, whose shared memory holds it.

A sequence's bits must not depend on its batch: for given layers, H, M, dtype and device, a plan by its name has the
same tiles whatever B is. Only how many programs share the work follows B.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from . import cost, forced
from .plans import ALL, ANY, SHARED, Device, chunks

ROWS = 16  # sequences of a resident tile: what a matrix instruction takes at the least
CAPTURED = 32  # steps in a graph


class Resident(NamedTuple):
    """Grid (programs, groups) of programs that own `units` units of each layer and `columns` outputs of the head."""

    units: int
    columns: int
    width: int
    ahead: int
    precision: str
    programs: int
    groups: int
    rows: int = ROWS
    name: str = "resident"


class Rows(NamedTuple):
    """Blocks of `rows` sequences; a tile of `units` units or `columns` outputs at a time, K in pieces of `depth`."""

    rows: int
    units: int
    columns: int
    depth: int
    stages: int
    precision: str
    programs: int
    name: str = "rows"


class Graph(NamedTuple):
    """The same tiles, with a program for each; `captured` steps in a graph."""

    rows: int
    units: int
    columns: int
    depth: int
    stages: int
    precision: str
    captured: int = CAPTURED
    name: str = "graph"


Plan = Resident | Rows | Graph


class Staging(NamedTuple):
    """Units of a resident program, and how it stages rows (kernels/triton/product.py).

    For up to so many layers, H up to `largest`, on all targets but some.
    """

    units: int
    width: int
    ahead: int
    layers: int = 3
    largest: int = ANY
    but: tuple[str, ...] = ()


class Tiling(NamedTuple):
    """Of the other plans; stages of the loop over K are in shared memory. On all targets but some."""

    rows: int
    units: int
    stages: int
    but: tuple[str, ...] = ()


# By precision, in order of preference, the first that fits being taken. What is not here spills registers.
STAGING: dict[str, tuple[Staging, ...]] = {
    "ieee": (
        Staging(8, 128, ALL),
        Staging(8, 64, 0),
        Staging(16, 128, ALL, layers=1),
        Staging(16, 64, 0, layers=1),
        Staging(4, 128, ALL),
    ),
    "tf32": (Staging(8, 128, ALL), Staging(8, 32, 0, but=("sm_120",)), Staging(8, 16, 0), Staging(4, 128, ALL)),
    "tf32x3": (
        Staging(8, 32, 0, largest=512, but=("sm_100", "sm_120")),
        Staging(8, 32, 0, largest=512, layers=1),
        Staging(8, 16, 0, largest=900, layers=1),
        Staging(8, 32, 0, layers=1),
        Staging(4, 32, 0, but=("sm_100", "sm_120")),
        Staging(4, 32, 0, layers=1),
    ),
}
OUTPUTS = 387  # of the head, at most, of a resident plan: 64 components; more spill in the draw
TILING: dict[str, tuple[Tiling, ...]] = {
    "ieee": (Tiling(64, 32, 3, but=("sm_100",)), Tiling(64, 16, 3)),
    "tf32": (Tiling(64, 32, 3, but=("sm_90", "sm_100")), Tiling(32, 32, 3)),
    "tf32x3": (Tiling(32, 32, 3, but=("sm_80",)), Tiling(16, 32, 2)),
}


def resident_plan(L: int, H: int, D: int, B: int, size: int, precision: str, device: Device) -> Resident | None:
    """The resident plan, if there is one that fits; D outputs of the head, elements of `size` bytes."""
    if device.target not in SHARED or D > OUTPUTS:
        return None
    for units, width, ahead, layers, largest, but in STAGING[precision]:
        programs = -(-H // units)
        if layers < L or largest < H or device.target in but or programs > device.processors:
            continue
        plan = Resident(units, head_columns(D, programs), width, ahead, precision, programs, 1)
        if shared_memory(plan, L, H, size) <= device.shared:
            return plan._replace(groups=min(-(-B // ROWS), device.processors // programs))
    return None


def head_columns(D: int, programs: int) -> int:
    """Outputs of the head that a program computes: D over all, up to a power of two that a matrix instruction takes."""
    return max(8, 1 << (-(-D // programs) - 1).bit_length())


def shared_memory(plan: Resident, L: int, H: int, size: int) -> int:
    """Bytes of shared memory of a resident program, elements of `size` bytes.

    Its layers' weights; besides, the rows on their way and the head's weights of one layer, or partial sums. For
    "tf32x3" rows and weights on their way are in registers, all but one piece. The compile gate holds this against what
    the compiler says.
    """
    pieces, N = chunks(H, plan.width), 4 * plan.units
    padded = sum(slices * width for _, slices, width in pieces)
    in_registers = plan.precision == "tf32x3"
    moving = padded if plan.ahead and not in_registers else max(slices * width for _, slices, width in pieces)
    head = max((width for _, slices, width in pieces if slices == 1), default=0) if in_registers else padded
    passing = max((moving * plan.rows + head * plan.columns) * size, pieces[0][1] * plan.rows * N * 4)
    return (2 * L - 1) * padded * N * size + passing


def depth(H: int) -> int:
    """Of K that a stage of the loop takes: the largest whose padding of H costs at most a twentieth."""
    return next((d for d in (64, 32) if -(-H // d) * d <= 1.05 * H), 16)


def streaming_plans(H: int, B: int, precision: str, device: Device) -> list[Rows | Graph]:
    """The plans that stream the weights; the graph fits everywhere.

    On AMD's GPUs the rows plan has more addresses than there are scalar registers, and spills.
    """
    rows, units, stages, _ = next(t for t in TILING[precision] if device.target not in t.but)
    amd = is_amd(device)
    tile = rows, units, 2 * units, depth(H), 2 if amd else stages, precision
    graph, blocks = Graph(*tile), -(-B // rows)
    return [graph] if amd else [Rows(*tile, min(blocks, device.processors)), graph]


def is_amd(device: Device) -> bool:
    """Whether it is one of AMD's GPUs."""
    return device.target.startswith("gfx")


def precisions(dtype: torch.dtype, device: Device) -> tuple[str, ...]:
    """How products of this dtype may be computed: as they are, or float32 by three TF32 products, or by one."""
    return ("ieee",) if dtype != torch.float32 or is_amd(device) else ("tf32x3", "tf32")


def cycles(plan: Plan, L: int, H: int, D: int, B: int, size: int, device: Device) -> float:
    """The rank of a plan, by a step of the whole batch: the fewer, the better."""
    rate = cost.rate(device.target, size, plan.precision)
    blocks = -(-B // plan.rows)
    if isinstance(plan, Resident):
        padded = sum(slices * width for _, slices, width in chunks(H, plan.width))
        work = plan.rows * H * size / cost.PORT + plan.rows * padded * (8 * plan.units + plan.columns) / rate
        step = cost.Step(0, 0, 0, 1, 0, 1.0)
        return (L + 1) * cost.cycles(step, work, -(-blocks // plan.groups))
    tiles = [(2 if n else 1) * H for n in range(L)]  # K of a layer's tiles of 4 units
    head = L * H
    busy = min(blocks * -(-H // plan.units) if isinstance(plan, Graph) else blocks, device.processors)
    port = min(cost.PORT, cost.L2 * device.processors / busy)

    def tile(K: int, N: int) -> float:
        return cost.TILE + max(K * (N + plan.rows) * size / port, plan.rows * K * N / rate)

    layers = [tile(K, 4 * plan.units) for K in tiles]
    if isinstance(plan, Rows):
        one = sum(layers) * -(-H // plan.units) + tile(head, plan.columns) * -(-D // plan.columns) + cost.TILE
        return one * -(-blocks // plan.programs)
    waves = -(-blocks * -(-H // plan.units) // device.processors)
    of_head = -(-blocks * -(-D // plan.columns) // device.processors)
    return (L + 2) * cost.NODE + sum(layers) * waves + tile(head, plan.columns) * of_head


@lru_cache(maxsize=4096)
def ranked(L: int, H: int, D: int, B: int, size: int, precision: str, device: Device) -> tuple[Plan, ...]:
    """Every plan that fits, the best first."""
    resident = resident_plan(L, H, D, B, size, precision, device)
    plans: list[Plan] = [*([resident] if resident else []), *streaming_plans(H, B, precision, device)]
    return tuple(sorted(plans, key=lambda plan: cycles(plan, L, H, D, B, size, device)))


def choose(
    L: int, H: int, D: int, B: int, dtype: torch.dtype, device: Device, *, tf32: bool = False, resident: bool = True
) -> Plan:
    """The plan for L layers of H units, D = P + 6M outputs and B sequences.

    `tf32`: torch's setting allows it in float32 matrix products. `resident`: a cooperative launch may be chosen.

    Raises:
        PlanError: a plan is forced that does not fit.
    """
    wanted = forced.plan_of("generate")
    if isinstance(wanted, Plan):
        return wanted
    exact, *fast = precisions(dtype, device)
    precision = fast[0] if fast and tf32 else exact
    plans = ranked(L, H, D, B, dtype.itemsize, precision, device)
    if wanted is not None:
        plans = tuple(plan for plan in plans if plan.name == wanted)
        if not plans:
            sizes = f"L={L}, H={H}, D={D}, {dtype}, {precision}"
            raise forced.PlanError(f"the {wanted} plan does not fit: {sizes}, {device}")
    return next(plan for plan in plans if resident or not isinstance(plan, Resident))
