"""Sampling on kernels/triton/generate_resident.py and generate_rows.py: one operator, three plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import sampling_plans
from ..checks import PEN_LOGITS, ROW, check_options, check_weights
from ..launch import Options, capturing, device_of, kernel, launch
from ..plans import WARPS, chunks
from ..reference import END
from ..sampling_plans import Graph, Resident, Rows
from ..sizes import MOST
from .arguments import COUNTER, INDEPENDENT, cooperative, given, kernel_dtype, lengths_of, tf32_allowed
from .network import Network, laid_out
from .refused import or_else
from .replay import replay

DRAWN = 512  # elements of what is drawn at a time, sequences x components
AT_ONCE = 16  # sequences that are drawn at a time, at most


def generate(
    weights: list[Tensor],
    h: Tensor,
    c: Tensor,
    row: Tensor,
    drawn: Tensor,
    done: Tensor,
    seed: Tensor,
    steps: int,
    bias: Tensor,
    temperature: Tensor,
    prime: Tensor | None,
    prime_lengths: Tensor | None,
    num_mixtures: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results as `reference.generate`."""
    like, f32, i64 = weights[0], torch.float32, torch.int64
    kernel_dtype("weights[0]", like)
    check_options(pen, means, num_mixtures)
    check_weights(weights, h, ROW[pen], num_mixtures, pen, skip, peephole)
    (L, B, H), I, P = h.shape, ROW[pen], PEN_LOGITS[pen]
    TP = 0 if prime is None else prime.shape[1]
    D = P + 6 * num_mixtures
    if max(max(L, COUNTER // sampling_plans.ROWS) * B, TP + steps, 4 * H * H) >= MOST:
        raise ValueError(
            f"generate: L={L}, H={H}, {B} sequences of {TP} + {steps} rows overflow 32-bit counters; lower the "
            "largest: a job can be cut anywhere"
        )
    done, drawn = given("done", done, like, torch.bool, B), given("drawn", drawn, like, i64, B)
    read = lengths_of(prime_lengths, like, B) if TP else None
    primed = torch.full_like(drawn, TP) if read is None else read.clamp(0, TP)  # a GPU's have not been looked at
    state = {
        "h": like.new_empty(2, L, B, H),
        "c": given("c", c, like, f32, L, B, H).clone(),
        "row": given("row", row, like, f32, B, I).clone(),
        "stops": torch.where(done, 0, primed + steps).to(torch.int32),
        "points": like.new_zeros(steps, B, I, dtype=f32),
    }
    state["h"][0] = given("h", h, like, like.dtype, L, B, H)
    told = {
        "prime": given("prime", prime, like, f32, B, TP, I) if TP and prime is not None else state["row"],
        "primed": primed,
        "seed": given("seed", seed.to(like.device), like, i64, 2),
        "drawn": drawn,
        "bias": given("bias", bias, like, f32, B),
        "temperature": given("temperature", temperature, like, f32, B),
        "raw": like.new_empty(B, D, dtype=f32),
        "B": B,
        "TP": TP,
    }
    constants = {"I": I, "M": num_mixtures, "MP": 1 << (num_mixtures - 1).bit_length(), "P": P}
    constants |= {"SIGMOID": means == "sigmoid", "SKIP": skip}

    def run(resident: bool) -> Tensor:
        call = L, H, D, B, like.dtype, device_of(like)
        plan = sampling_plans.choose(*call, tf32=tf32_allowed(), resident=resident)
        network = laid_out(weights, L, H, I, skip, peephole, plan)
        return RUN[type(plan)](plan, network, state | told | constants, TP + steps)

    if B and TP + steps:
        key = "generate", L, H, num_mixtures, like.dtype, like.device
        what = "generate runs without the weights on chip"
        state["stops"] = or_else("generate", key, lambda: run(True), lambda: run(False), what)
    odd = (state["stops"] % 2 == 1)[:, None]
    last_h = torch.where(odd, state["h"][1], state["h"][0])
    count = torch.where(done, 0, state["stops"] - primed)
    ends = torch.zeros_like(done)
    if pen == "categorical":
        ends = (count > 0) & (state["row"][:, END] > 0.5)
    return state["points"], count - ends.to(i64), last_h, state["c"], state["row"], drawn + count, done | ends


def _resident(plan: Resident, network: Network, arguments: dict[str, Any], steps: int) -> Tensor:
    """One cooperative launch."""
    B, like, pieces = arguments["B"], network.inputs, chunks(network.H, plan.width)
    if (steps + 1) * (network.L + 1) * plan.programs >= MOST:
        raise ValueError(
            f"generate: {steps} rows are more than 32-bit counters hold by the resident plan; lower max_steps"
        )
    stops = arguments["stops"].repeat(plan.programs, 1)
    scratch = {
        "stops": stops,
        "z": like.new_empty(network.L, B, 4 * network.H),
        "counters": torch.zeros(-(-B // plan.rows), COUNTER, dtype=torch.int32, device=like.device),
    }
    constants = {"CHUNKS": pieces, "AHEAD": min(plan.ahead, len(pieces)), "ROWS": plan.rows, "UNITS": plan.units}
    constants |= {"COLUMNS": plan.columns, "PRECISION": plan.precision}
    taken = _taken_by("generate_resident.generate", network._asdict() | arguments | scratch | constants)
    launch("generate_resident.generate", (plan.programs, plan.groups), taken, cooperative(plan.ahead))
    return stops[-1]


def _rows(plan: Rows, network: Network, arguments: dict[str, Any], steps: int) -> Tensor:
    """One launch of programs that wait for no other."""
    zero = torch.zeros(1, dtype=torch.int32, device=network.inputs.device)
    known = network._asdict() | arguments | {"zero": zero} | _tiles(plan, arguments)
    taken = _taken_by("generate_rows.generate", known)
    options = Options(WARPS, registers=255)  # there is at most one program on a multiprocessor
    launch("generate_rows.generate", (plan.programs,), taken, options)
    return arguments["stops"]


def _graph(plan: Graph, network: Network, arguments: dict[str, Any], steps: int) -> Tensor:
    """L + 2 launches a step: captured and replayed, or as they are in a caller's own capture and in the simulator.

    The first step is launched as it is, which compiles and loads the kernels. A step too many does nothing.
    """
    like, tiles = network.inputs, _tiles(plan, arguments)
    blocks, parts = (-(-arguments["B"] // size) for size in (plan.rows, tiles["DRAWS"]))
    clock = torch.zeros(parts, dtype=torch.int32, device=like.device)
    known = network._asdict() | arguments | {"clock": clock, "D": arguments["P"] + 6 * arguments["M"]} | tiles
    layer, outputs, rows = (_taken_by(f"generate_rows.{name}", known) for name in ("layer", "outputs", "rows"))

    def step() -> None:
        for n in range(network.L):
            grid = blocks, -(-network.H // plan.units)
            launch("generate_rows.layer", grid, layer | {"n": n}, Options(WARPS))
        launch("generate_rows.outputs", (blocks, network.DP // plan.columns), outputs, Options(WARPS))
        launch("generate_rows.rows", (parts,), rows, INDEPENDENT)

    step()
    if like.device.type == "cuda" and not capturing(like.device):
        replay(like.device, step, steps - 1, plan.captured)
    else:
        for _ in range(steps - 1):
            step()
    return arguments["stops"]


def _tiles(plan: Rows | Graph, arguments: dict[str, Any]) -> dict[str, Any]:
    draws = min(plan.rows, AT_ONCE, max(1, DRAWN // arguments["MP"]))
    names = "ROWS", "UNITS", "COLUMNS", "DEPTH", "STAGES", "PRECISION"
    return dict(zip(names, plan[: len(names)], strict=True)) | {"DRAWS": draws}


def _taken_by(name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Of what is known, the arguments of a kernel."""
    return {k: known[k] for k in kernel(name).arg_names if k in known}


RUN: dict[type, Callable[[Any, Network, dict[str, Any], int], Tensor]] = {
    Resident: _resident,
    Rows: _rows,
    Graph: _graph,
}
