"""How `lstm_mdn_nll` runs on a GPU: a pure function of the sizes, the dtype and the device, so testable without one.

Two plans. *Fused*: one cooperative launch for all steps, layers, the head and the likelihood, weights on chip, T + L
barriers (kernels/triton/lstm_mdn_nll.py). *Composed*: the layers one after another, each by its own plan (plans.py),
between matrix products of all steps, then the loss. Both directions are chosen for themselves: what forward keeps for
backward is the same. Nothing is launched that is not co-resident: a grid has at most one program for each
multiprocessor, whose shared memory holds it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from . import cost, forced
from . import plans as recurrence
from .plans import ALL, ANY, SHARED, Device, chunks

ROWS = 16  # sequences of a tile: what a matrix instruction takes at the least
COLUMNS = 16  # of the head, of one program
INPUTS = 14  # columns of the input that the fused plan takes at most; with the bias, one matrix instruction's
OUTPUTS = 387  # of the head, at most, of the fused plan: 64 components; more spill in the likelihood
LAYERS = 3  # at most, of the fused plan; with more that the head reads, registers are not verified
MARGIN = 1.1  # of the composition's cycles: not counted are its launches and the memory of its projections
ALIGNED = 16  # elements to a multiple of which a row of the gradient of raw is padded


class Fused(NamedTuple):
    """Grid (programs, groups) of programs that own `units` units of a layer or `columns` outputs of the head."""

    units: int
    columns: int
    width: int
    ahead: int
    precision: str
    programs: int
    groups: int
    rows: int = ROWS
    name: str = "fused"


class Composed(NamedTuple):
    """`lstm` for each layer, matrix products of all steps, and `mdn_nll`."""

    name: str = "composed"


Plan = Fused | Composed


class Staging(NamedTuple):
    """Units of a program, and how it stages rows (kernels/triton/product.py).

    For H up to `largest`, on all targets but some; `stacked`: only for more than one layer.
    """

    units: int
    width: int
    ahead: int
    largest: int = ANY
    but: tuple[str, ...] = ()
    stacked: bool = False


# By direction and precision, for each number of units in order of preference. What is not here spills registers.
STAGING: dict[tuple[str, str], tuple[Staging, ...]] = {
    ("forward", "ieee"): (
        Staging(8, 128, ALL),
        Staging(8, 64, 0),
        Staging(16, 128, ALL, but=("sm_100", "sm_120")),
        Staging(16, 128, ALL, stacked=True),
        Staging(16, 64, 0, but=("sm_100", "sm_120")),
    ),
    ("backward", "ieee"): (
        Staging(8, 128, ALL),
        Staging(8, 64, 2),
        Staging(8, 16, 4, but=("sm_120",)),
        Staging(8, 16, 4, largest=900),
        Staging(16, 128, ALL),
        Staging(16, 64, 2, largest=512),
        Staging(16, 64, 0, but=("sm_100",)),
    ),
    ("forward", "tf32"): (
        Staging(8, 128, ALL),
        Staging(8, 32, 0),
        Staging(16, 128, ALL, but=("sm_100",)),
        Staging(16, 32, 0),
    ),
    ("backward", "tf32"): (
        Staging(8, 128, ALL),
        Staging(8, 32, 0, but=("sm_100", "sm_120")),
        Staging(8, 16, 4, largest=512),
        Staging(8, 16, 2, largest=512),
        Staging(8, 32, 2, largest=900, but=("sm_100",)),
        Staging(16, 32, 0),
    ),
    ("forward", "tf32x3"): (
        Staging(8, 32, 0, largest=512, but=("sm_100", "sm_120")),
        Staging(8, 16, 2, largest=900, but=("sm_90", "sm_100", "sm_120")),
        Staging(8, 32, 0, largest=128),
        Staging(16, 32, 0, but=("sm_90", "sm_100", "sm_120")),
        Staging(16, 32, 0, largest=128, but=("sm_100",)),
    ),
    ("backward", "tf32x3"): (
        Staging(8, 32, 0, but=("sm_90", "sm_100", "sm_120")),
        Staging(8, 16, 4, but=("sm_100", "sm_120")),
        Staging(8, 16, 0, largest=128),
        Staging(16, 16, 0, but=("sm_100",)),
    ),
}


def programs(direction: str, L: int, H: int, D: int, units: int) -> int:
    """Of a column of the grid: each layer's, and the head's and the likelihood's, or that of the gradient of raw."""
    return L * -(-H // units) + (-(-D // COLUMNS) + 1 if direction == "forward" else 1)


def fused_plans(
    direction: str, L: int, H: int, D: int, B: int, size: int, precision: str, device: Device
) -> list[Fused]:
    """Every fused plan that fits, one for each number of units; D outputs of the head, elements of `size` bytes."""
    found: dict[int, Fused] = {}
    for units, width, ahead, largest, but, stacked in STAGING[direction, precision]:
        needed = programs(direction, L, H, D, units)
        if units in found or largest < H or device.target in but or stacked > (L > 1) or not fits(L, D, needed, device):
            continue
        plan = Fused(units, COLUMNS, width, ahead, precision, needed, 1)
        if shared_memory(direction, L, H, D, plan, size) <= device.shared:
            found[units] = plan._replace(groups=min(-(-B // ROWS), device.processors // needed))
    return list(found.values())


def fits(L: int, D: int, needed: int, device: Device) -> bool:
    """Whether the GPU runs so many programs side by side, and the kernel is verified for these sizes."""
    return device.target in SHARED and L <= LAYERS and D <= OUTPUTS and needed <= device.processors


def shared_memory(direction: str, L: int, H: int, D: int, plan: Fused, size: int) -> int:
    """Bytes of shared memory of a program, at most, elements of `size` bytes.

    Its weights, and rows on their way or partial sums; "tf32x3" keeps rows on their way in registers. The compile gate
    holds this against what the compiler says.
    """
    forward = direction == "forward"
    K, N = (H, 4 * plan.units) if forward else (4 * H, plan.units)
    pieces, matrices = chunks(K, plan.width), 2 if L > 1 else 1
    padded = [slices * width for _, slices, width in pieces] * matrices
    others = 16 * N if forward else -(-D // ALIGNED) * ALIGNED * N
    ahead = 0 if plan.precision == "tf32x3" else min(plan.ahead, len(pieces))
    moving = max(sum(padded[k : k + ahead + 1]) for k in range(len(padded)))
    if 0 < ahead < len(pieces) and padded[-1] < padded[0]:  # the last piece finds no place among the others
        moving += padded[-1]
    passing = max(moving * plan.rows * size, pieces[0][1] * plan.rows * N * 4)
    layer = (sum(padded) * N + others) * size + passing
    head = (L * sum(padded) // matrices * plan.columns * size + passing) if forward else 0
    return max(layer, head)


def waves_of(plan: Fused, direction: str, H: int, D: int) -> cost.Waves:
    """How a fused plan cuts a step, for what it costs."""
    forward, layer = direction == "forward", -(-H // plan.units)
    K, N = (H, 4 * plan.units) if forward else (4 * H, plan.units)
    raw = 0 if forward else -(-D // ALIGNED) * ALIGNED
    beside = INPUTS + 2 if forward else covered(raw, plan.width)
    head = -(-D // plan.columns) if forward else 0
    return cost.Waves(plan.rows, layer, K, covered(K, plan.width), N, raw, beside, head, plan.columns)


def covered(K: int, width: int) -> int:
    """Columns that the pieces of `chunks` have together."""
    return sum(slices * wide for _, slices, wide in chunks(K, width))


def cycles(
    plan: Plan, direction: str, L: int, H: int, D: int, B: int, size: int, precision: str, device: Device
) -> float:
    """The rank of a plan, by a step of the whole batch: the fewer, the better."""
    rate = cost.rate(device.target, size, precision)
    if isinstance(plan, Composed):
        layer = recurrence.ranked(direction, H, B, size, precision, device)[0]
        # the products over all time that the fused plan makes on its way: of what lies below, and of the head
        products = B * H * (4 * H * (L - 1) + L * D)
        moved = B * ((8 * L + L - 1) * H + (L * H + 2 * D)) * size
        over_time = (products / rate + moved / cost.L2) / device.processors
        return L * recurrence.cycles(layer, direction, H, B, size, precision, device) + over_time
    # the input's columns and the padding of raw's gradient are left out: nothing next to latencies that are assumed
    raw = D if direction == "backward" else 0
    read, multiplied = cost.program(L, waves_of(plan, direction, H, D)._replace(raw=raw, beside=raw), size)
    work = read * min(B / plan.rows, 1) / cost.PORT + multiplied / rate + cost.WAVE
    step = cost.Step(0, 0, 0, 1, 0, 1.0)
    return cost.cycles(step, work, -(-B // (plan.rows * plan.groups)))


@lru_cache(maxsize=4096)
def ranked(
    direction: str, L: int, H: int, D: int, B: int, size: int, precision: str, device: Device
) -> tuple[Plan, ...]:
    """Every plan that fits, the best first."""
    plans: list[Plan] = [*fused_plans(direction, L, H, D, B, size, precision, device), Composed()]

    def rank(plan: Plan) -> float:
        handicap = MARGIN if isinstance(plan, Composed) else 1.0
        return handicap * cycles(plan, direction, L, H, D, B, size, precision, device)

    return tuple(sorted(plans, key=rank))


def choose(
    direction: str,
    L: int,
    H: int,
    D: int,
    B: int,
    dtype: torch.dtype,
    device: Device,
    *,
    inputs: int = 3,
    tf32: bool = False,
) -> Plan:
    """The plan for one direction ("forward" or "backward") of L layers of H units, with D outputs of the head.

    `inputs`: columns of the input. `tf32`: torch's setting allows it in float32 matrix products.

    Raises:
        PlanError: a plan is forced that does not fit.
    """
    wanted = forced.plan_of("lstm_mdn_nll")
    if isinstance(wanted, Plan):
        return wanted
    precision = recurrence.precision_of(dtype, tf32)
    plans = ranked(direction, L, H, D, B, dtype.itemsize, precision, device)
    if inputs > INPUTS:
        plans = (Composed(),)
    if wanted is not None:
        plans = tuple(plan for plan in plans if plan.name == wanted)
        if not plans:
            sizes = f"{direction}, L={L}, H={H}, D={D}, {inputs} inputs, {dtype}, {precision}"
            raise forced.PlanError(f"the {wanted} plan does not fit: {sizes}, {device}")
    return plans[0]
