"""How the recurrence runs on a GPU: a pure function of the sizes, the dtype and the device, so testable without one.

Two plans. *Persistent*: one cooperative launch for all steps, weights on chip; every program has UNITS hidden units and
tiles of ROWS sequences (kernels/triton/lstm_persistent.py). *Stepwise*: a matrix product and a pointwise kernel a step.
Persistent wherever it fits and `cost` ranks it first. Nothing is launched that is not co-resident: a grid has at most
one program for each multiprocessor, whose shared memory holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from . import cost, forced

WARPS = 8  # of a persistent program
THREADS = 32  # of a warp
BLOCK = 256  # units of a stepwise program, at most
SLICE = 16  # columns that one matrix instruction takes at the least; K is padded to a multiple of it
SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}  # KiB a block may have
ANY, ALL = 1 << 30, 1 << 30


class Staging(NamedTuple):
    """How a persistent program stages rows for its products (kernels/triton/product.py), and where the compiler can.

    For H up to `largest`, on all targets but some: slices at most `width` columns wide, `ahead` chunks on their way.
    """

    largest: int
    width: int
    ahead: int
    but: tuple[str, ...] = ()


# By direction and precision, then by rows and units of a program: in order of preference, the first that fits being
# taken. The wider and the further ahead, the shorter a step; the limits are where the compiler would spill registers.
STAGING: dict[tuple[str, str], dict[tuple[int, int], tuple[Staging, ...]]] = {
    ("forward", "ieee"): {
        (16, 8): (Staging(ANY, 128, ALL), Staging(ANY, 64, 0)),
        (16, 16): (Staging(ANY, 128, ALL), Staging(ANY, 64, 0)),
        (32, 16): (Staging(512, 128, ALL, but=("sm_100", "sm_120")),),
    },
    ("backward", "ieee"): {
        (16, 8): (
            Staging(512, 128, ALL),
            Staging(ANY, 128, ALL, but=("sm_100",)),
            Staging(ANY, 64, 0, but=("sm_100", "sm_120")),
            Staging(ANY, 32, 0),
        ),
        (16, 16): (Staging(512, 128, ALL), Staging(ANY, 64, 0, but=("sm_80", "sm_86", "sm_89"))),
        (32, 16): (Staging(512, 128, ALL),),
    },
    ("forward", "tf32"): {
        (16, 8): (Staging(ANY, 128, ALL), Staging(ANY, 64, 0)),
        (16, 16): (Staging(512, 128, ALL), Staging(512, 64, 0)),
    },
    ("backward", "tf32"): {
        (16, 8): (Staging(400, 128, ALL), Staging(ANY, 64, 0)),
        (16, 16): (Staging(400, 128, ALL), Staging(400, 64, 0)),
    },
    ("forward", "tf32x3"): {
        (16, 8): (
            Staging(128, 128, ALL),
            Staging(256, 128, 0),
            Staging(512, 128, 0, but=("sm_100", "sm_120")),
            Staging(512, 16, 4, but=("sm_120",)),
            Staging(512, 16, 0),
            Staging(ANY, 16, 2),
        ),
        (16, 16): (Staging(256, 32, 0, but=("sm_100", "sm_120")),),
    },
    ("backward", "tf32x3"): {
        (16, 8): (
            Staging(ANY, 16, 4, but=("sm_86", "sm_89", "sm_90", "sm_100", "sm_120")),
            Staging(ANY, 16, 2, but=("sm_86", "sm_89", "sm_120")),
            Staging(256, 32, 0),
            Staging(512, 16, 0),
        ),
        (16, 16): (Staging(256, 16, 4),),
    },
}


class Device(NamedTuple):
    """What a plan depends on: the compiler's target, how many multiprocessors, shared memory of a block in bytes."""

    target: str
    processors: int
    shared: int


class Persistent(NamedTuple):
    """Grid (programs, groups) of programs that own `units` units and, in turn, tiles of `rows` sequences."""

    rows: int
    units: int
    width: int
    ahead: int
    precision: str
    programs: int
    groups: int
    name: str = "persistent"


class Stepwise(NamedTuple):
    """A matrix product and a pointwise kernel of blocks of `block` units, every step."""

    block: int
    name: str = "stepwise"


Plan = Persistent | Stepwise
Chunks = tuple[tuple[int, int, int], ...]
# (direction, H, "bfloat16", "float16", "tf32" or "tf32x3"): B: identity(plan)
Tuned = Mapping[tuple[str, int, str], Mapping[int, tuple[str, int, int]]]


@cache
def chunks(K: int, width: int) -> Chunks:
    """(offset, slices, width) of pieces that cover K (kernels/triton/product.py).

    Rounded up to a multiple of all warps' slices where that costs at most a twentieth more multiply-adds, else to one
    matrix instruction's.
    """
    wide = WARPS * SLICE
    end = -(-K // wide) * wide
    if end > 1.05 * K:
        end = -(-K // SLICE) * SLICE
    pieces, offset = [], 0
    while offset < end:
        slices = WARPS if end - offset >= wide else 1
        room = min((end - offset) // slices, width)
        widest = 1 << (room.bit_length() - 1)
        pieces.append((offset, slices, widest))
        offset += slices * widest
    return tuple(pieces)


def shared_memory(direction: str, precision: str, H: int, plan: tuple[int, int, int, int], size: int) -> int:
    """Bytes of shared memory of a persistent program with (rows, units, width, ahead), elements of `size` bytes.

    Its weights, and rows on their way or partial sums; "tf32x3" keeps rows on their way in registers. The compile gate
    holds this against what the compiler says.
    """
    rows, units, width, ahead = plan
    K, N = (H, 4 * units) if direction == "forward" else (4 * H, units)
    pieces = chunks(K, width)
    padded = sum(slices * w for _, slices, w in pieces)
    moving = padded if ahead and precision != "tf32x3" else max(slices * w for _, slices, w in pieces)
    return padded * N * size + max(moving * rows * size, pieces[0][1] * rows * N * 4)


def precision_of(dtype: torch.dtype, tf32: bool) -> str:
    """How products are computed: "ieee" where the matrix units take the dtype, "tf32" where torch's setting allows it.

    Else "tf32x3", the sum of three such products, which is as exact as float32.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if tf32 else "tf32x3"


def persistent_plans(direction: str, H: int, B: int, size: int, precision: str, device: Device) -> list[Persistent]:
    """Every persistent plan that fits, for elements of `size` bytes."""
    plans = []
    for (rows, units), staging in STAGING[direction, precision].items():
        programs = -(-H // units)
        groups = min(-(-B // rows), device.processors // programs)
        if not groups or device.target not in SHARED:
            continue
        for largest, width, ahead, but in staging:
            shared = shared_memory(direction, precision, H, (rows, units, width, ahead), size)
            if largest >= H and shared <= device.shared and device.target not in but:
                plans.append(Persistent(rows, units, width, ahead, precision, programs, groups))
                break
    return plans


def stepwise_plan(H: int) -> Stepwise:
    """The plan that fits everywhere."""
    return Stepwise(min(BLOCK, 1 << max(H - 1, 1).bit_length()))


def step_cost(plan: Plan, direction: str, H: int, B: int, size: int, device: Device) -> cost.Step:
    """What a step of this plan moves and multiplies."""
    memory = cost.memory(direction, H, B, size)
    if isinstance(plan, Stepwise):
        weights = 4 * H * H * size
        return cost.Step(memory, weights + B * 5 * H * size, B * 4 * H * H, 0, 2, 1.0)
    K = H if direction == "forward" else 4 * H
    N = plan.units * (4 if direction == "forward" else 1)
    rows = -(-B // plan.rows) * plan.rows
    padded = sum(slices * width for _, slices, width in chunks(K, plan.width))
    share = plan.programs * plan.groups / device.processors
    return cost.Step(memory, plan.programs * B * K * size, plan.programs * rows * padded * N, 1, 0, share)


def cycles(plan: Plan, direction: str, H: int, B: int, size: int, precision: str, device: Device) -> float:
    """The rank of a plan: the fewer, the better."""
    step = step_cost(plan, direction, H, B, size, device)
    rate = cost.rate(device.target, size, precision)
    if isinstance(plan, Stepwise):
        rate = cost.FLOAT32 if precision == "tf32x3" else rate
        moved = (step.exchange + step.memory) / (cost.PORT * device.processors)
        return cost.cycles(step, moved + step.multiply_adds / (rate * device.processors), 1)
    programs = plan.programs * plan.groups
    tiles = -(-B // plan.rows)
    work = (step.exchange / cost.PORT + step.multiply_adds / rate) / (plan.programs * tiles)
    if plan.rows * plan.units < THREADS * WARPS:
        work += cost.NARROW * cost.TILE
    return cost.cycles(step, work, -(-tiles * plan.programs // programs))


@lru_cache(maxsize=4096)
def ranked(direction: str, H: int, B: int, size: int, precision: str, device: Device) -> tuple[Plan, ...]:
    """Every plan that fits, the best first."""
    plans: list[Plan] = [*persistent_plans(direction, H, B, size, precision, device), stepwise_plan(H)]
    return tuple(sorted(plans, key=lambda plan: cycles(plan, direction, H, B, size, precision, device)))


def choose(
    direction: str,
    H: int,
    B: int,
    dtype: torch.dtype,
    device: Device,
    *,
    tf32: bool = False,
    tuned: Tuned | None = None,
) -> Plan:
    """The plan for one direction ("forward" or "backward") of the recurrence.

    `tf32`: torch's setting allows it in float32 matrix products. `tuned`: what `fusedmdn tune` measured on this device.

    Raises:
        PlanError: a plan is forced that does not fit.
    """
    wanted = forced.plan_of("lstm")
    if isinstance(wanted, (Persistent, Stepwise)):
        return wanted
    precision = precision_of(dtype, tf32)
    plans = ranked(direction, H, B, dtype.itemsize, precision, device)
    if wanted is not None:
        plans = tuple(plan for plan in plans if plan.name == wanted)
        if not plans:
            raise forced.PlanError(
                f"the {wanted} plan does not fit: {direction}, H={H}, {dtype}, {precision}, {device}"
            )
    measured = (tuned or {}).get((direction, H, precision if dtype == torch.float32 else str(dtype)[6:]))
    if measured and wanted is None:
        best = measured[min((b for b in measured if b >= B), default=max(measured))]
        plans = tuple(plan for plan in plans if identity(plan) == best) or plans
    return plans[0]


def identity(plan: Plan) -> tuple[str, int, int]:
    """What `fusedmdn tune` remembers of a plan: its name, rows and units."""
    return (plan.name, plan.rows, plan.units) if isinstance(plan, Persistent) else (plan.name, 0, 0)


@cache
def device_of(device: torch.device) -> Device:
    """The properties of a CUDA (or ROCm) device."""
    properties: Any = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Device(properties.gcnArchName.split(":")[0], properties.multi_processor_count, 0)
    # of a family (8.x, 9.x, …) the newest that there are figures for
    known = [name for name in SHARED if name[3:-1] == str(properties.major)]
    target = max((n for n in known if int(n[3:]) <= 10 * properties.major + properties.minor), default="unknown")
    return Device(target, properties.multi_processor_count, properties.shared_memory_per_block_optin)
