"""The recurrence on kernels/triton/lstm_persistent.py and lstm_stepwise.py, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import plans, reference, tuned
from ..launch import device_of, launch
from .arguments import (
    COUNTER,
    INDEPENDENT,
    aligned,
    bound_of,
    cooperative,
    given,
    kernel_dtype,
    lengths_of,
    rows_of,
    same_dtype,
    tf32_allowed,
)
from .refused import or_else

Saved = tuple[Tensor, Tensor, Tensor]  # h, gates and cells


def plan_of(direction: str, H: int, B: int, like: Tensor) -> plans.Plan:
    """The plan of a call on this tensor's device."""
    device = device_of(like)
    return plans.choose(direction, H, B, like.dtype, device, tf32=tf32_allowed(), tuned=tuned.load(like.device))


def _run(direction: str, H: int, B: int, like: Tensor, persistent: Any, stepwise: Any) -> Any:
    """Run the plan; stepwise in place of a persistent one that the device refuses."""
    plan = plan_of(direction, H, B, like)

    def step() -> Any:
        return stepwise(plans.stepwise_plan(H))

    if isinstance(plan, plans.Stepwise):
        return step()
    key = direction, H, like.dtype, like.device, *plan[:-2]
    return or_else("lstm", key, lambda: persistent(plan), step, f"lstm {direction} runs step by step")


def _matrix_arguments(plan: plans.Persistent, K: int, H: int) -> dict[str, Any]:
    chunks = plans.chunks(K, plan.width)
    return {
        "H": H,
        "CHUNKS": chunks,
        "AHEAD": min(plan.ahead, len(chunks)),
        "ROWS": plan.rows,
        "UNITS": plan.units,
        "PRECISION": plan.precision,
    }


def lstm(
    xw: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    clip: float | None,
    save: bool,
    out: Saved | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """kernels/triton/lstm_*.py; arguments and results as `reference.lstm`.

    Kept for backward, a token and layer, e bytes an element of xw: 4H e of gates, 4H of cell state and H e of h.
    """
    return _recurrence(xw, weight_hh, h0, c0, peephole, lengths, save_gates=save, save_cells=save, out=out)


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    bias: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `lstm`, arguments and results as `reference.lstm_layer`; kept for backward: 4H of cell state and H e of h."""
    xw = torch.nn.functional.linear(x, weight_ih, bias)
    h, h_T, c_T, _, cells = _recurrence(xw, weight_hh, h0, c0, peephole, lengths, save_gates=False, save_cells=True)
    return h, h_T, c_T, cells


def lstm_gates(
    xw: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    cells: Tensor,
) -> Tensor:
    """One product over all time and one pointwise kernel; arguments and result as `reference.lstm_gates`."""
    kernel_dtype("xw", xw)
    if xw.dim() == 2:
        where = reference.packed_rows(lengths, len(xw))
        xw, h, cells = (reference.unpack(v, where) for v in (xw, h, cells))
        return lstm_gates(xw, weight_hh, h0, c0, peephole, lengths, h, cells)[where]
    (T, B, H), f32 = cells.shape, torch.float32
    weight = same_dtype("weight_hh", weight_hh, xw, 4 * H, H).t()
    h = same_dtype("h", h, xw, T, B, H)
    z = xw.new_empty(T, B, 4 * H)
    if z.numel():
        torch.mm(given("h0", h0, xw, xw.dtype, B, H), weight, out=z[0])
        torch.mm(h[:-1].flatten(0, 1), weight, out=z[1:].flatten(0, 1))
        block = plans.stepwise_plan(H).block
        arguments = {
            "xw": given("xw", xw, xw, xw.dtype, T, B, 4 * H),
            "z": z,
            "c0": given("c0", c0, xw, f32, B, H),
            "peephole": None if peephole is None else given("peephole", peephole, xw, f32, 3, H),
            "lengths": lengths_of(lengths, xw, B),
            "cells": given("cells", cells, xw, f32, T, B, H),
            "T": T,
            "B": B,
            "H": H,
            "BLOCK": block,
        }
        launch("lstm_stepwise.gates", (T * B, -(-H // block)), arguments, INDEPENDENT)
    return z


def _recurrence(
    xw: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    *,
    save_gates: bool,
    save_cells: bool,
    out: Saved | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, h_T, c_T, and gates and cells, empty where not asked for; written into `out` where it is given."""
    kernel_dtype("xw", xw)
    if xw.dim() not in (2, 3) or xw.shape[-1] % 4:
        raise ValueError(f"xw: expected shape (T, B, 4H), or (rows, 4H) packed, got {tuple(xw.shape)}")
    if xw.dim() == 2:
        where = reference.packed_rows(lengths, len(xw))
        unpacked = reference.unpack(xw, where), weight_hh, h0, c0, peephole, lengths
        h, h_T, c_T, gates, cells = _recurrence(*unpacked, save_gates=save_gates, save_cells=save_cells)
        saved = h[where], *(v[where] if len(v) else v.flatten(0, 1) for v in (gates, cells))
        h, gates, cells = saved if out is None else (o.copy_(v) for o, v in zip(out, saved, strict=True))
        return h, h_T, c_T, gates, cells
    T, B, H, f32 = *xw.shape[:2], xw.shape[2] // 4, torch.float32
    xw = given("xw", xw, xw, xw.dtype, T, B, 4 * H)
    weight_hh = same_dtype("weight_hh", weight_hh, xw, 4 * H, H)
    h0, c_T = given("h0", h0, xw, xw.dtype, B, H), given("c0", c0, xw, f32, B, H).clone()
    if out is None:
        kept = (T if save else 0 for save in (save_gates, save_cells))
        out = xw.new_empty(T, B, H), xw.new_empty(next(kept), B, 4 * H), xw.new_empty(next(kept), B, H, dtype=f32)
    h, gates, cells = written = [aligned(v) for v in out]
    h_T = h0.clone()
    common = {
        "xw": xw,
        "peephole": None if peephole is None else given("peephole", peephole, xw, f32, 3, H),
        "lengths": lengths_of(lengths, xw, B),
        "h": h,
        "h_T": h_T,
        "c_T": c_T,
        "gates": gates if save_gates else None,
        "cells": cells if save_cells else None,
        "T": T,
        "B": B,
    }

    def persistent(plan: plans.Persistent) -> None:
        counters = torch.zeros(-(-B // plan.rows), COUNTER, dtype=torch.int32, device=xw.device)
        arguments = {"weight": weight_hh, "h0": h0, "counters": counters, **_matrix_arguments(plan, H, H)}
        launch("lstm_persistent.forward", (plan.programs, plan.groups), common | arguments, cooperative(plan.ahead))

    def stepwise(plan: plans.Stepwise) -> None:
        z, previous, weight = xw.new_empty(B, 4 * H), h0, weight_hh.t()
        arguments = common | {"z": z, "H": H, "BLOCK": plan.block}
        for t in range(T):
            torch.mm(previous, weight, out=z)
            launch("lstm_stepwise.forward", (B, -(-H // plan.block)), arguments | {"t": t}, INDEPENDENT)
            previous = h[t]

    if h.numel():
        _run("forward", H, B, xw, persistent, stepwise)
    h, gates, cells = (v if v is o else o.copy_(v) for v, o in zip(written, out, strict=True))
    return h, h_T, c_T, gates, cells


def lstm_backward(
    grad_h: Tensor,
    grad_h_T: Tensor,
    grad_c_T: Tensor,
    weight_hh: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kernels/triton/lstm_*.py; arguments and results as `reference.lstm_backward`."""
    kernel_dtype("gates", gates)
    if cells.dim() not in (2, 3):
        raise ValueError(f"cells: expected shape (T, B, H), or (rows, H) packed, got {tuple(cells.shape)}")
    if cells.dim() == 2:
        where = reference.packed_rows(lengths, len(cells))
        grad_h, gates, cells = (reference.unpack(v, where) for v in (grad_h, gates, cells))
        rest = weight_hh, c0, peephole, lengths, gates, cells, clip
        dz, dh0, dc0, dpeephole = lstm_backward(grad_h, grad_h_T, grad_c_T, *rest)
        return dz[where], dh0, dc0, dpeephole
    (T, B, H), f32 = cells.shape, torch.float32
    gates = given("gates", gates, gates, gates.dtype, T, B, 4 * H)
    weight_hh = same_dtype("weight_hh", weight_hh, gates, 4 * H, H)
    grad_h = rows_of("grad_h", grad_h, gates, T, B, H)
    dh0 = given("grad_h_T", grad_h_T, gates, f32, B, H)
    dc = given("grad_c_T", grad_c_T, gates, f32, B, H).clone()
    lengths = lengths_of(lengths, gates, B)
    dz = torch.empty_like(gates)
    common = {
        "grad_h": grad_h,
        "grad_h_T": dh0,
        "c0": given("c0", c0, gates, f32, B, H),
        "peephole": None if peephole is None else given("peephole", peephole, gates, f32, 3, H),
        "lengths": lengths,
        "gates": gates,
        "cells": given("cells", cells, gates, f32, T, B, H),
        "dz": dz,
        "dc": dc,
        "bound": bound_of(clip),
        "T": T,
        "B": B,
        "grad_stride_t": grad_h.stride(0),
        "grad_stride_b": grad_h.stride(1),
    }

    def persistent(plan: plans.Persistent) -> Tensor:
        counters = torch.zeros(-(-B // plan.rows), COUNTER, dtype=torch.int32, device=gates.device)
        sums = cells.new_empty(plan.groups, 3, H)
        arguments = {"weight": weight_hh, "dpeephole": sums, "counters": counters}
        arguments |= _matrix_arguments(plan, 4 * H, H)
        launch("lstm_persistent.backward", (plan.programs, plan.groups), common | arguments, cooperative(plan.ahead))
        return sums

    def stepwise(plan: plans.Stepwise) -> Tensor:
        dh = gates.new_zeros(B, H)
        sums = cells.new_zeros((B if peephole is not None else 0), 3, H)
        arguments = common | {"dh": dh, "dpeephole": sums, "H": H, "BLOCK": plan.block}
        for t in reversed(range(T)):
            launch("lstm_stepwise.backward", (B, -(-H // plan.block)), arguments | {"t": t}, INDEPENDENT)
            if t:
                torch.mm(dz[t], weight_hh, out=dh)
        return sums

    if not dz.numel():
        return dz, dh0.clone(), dc, cells.new_zeros(0 if peephole is None else (3, H))
    sums = _run("backward", H, B, gates, persistent, stepwise)
    first = (dz[0] @ weight_hh).to(f32)
    dh0 = first if lengths is None else torch.where((lengths > 0)[:, None], first, dh0)
    return dz, dh0, dc, cells.new_empty(0) if peephole is None else sums.sum(0)
