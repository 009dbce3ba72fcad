"""What is timed: the layer by either plan beside nn.LSTM, and the loss beside losses in PyTorch; only what is right."""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from fusedmdn.ops import launch, plans
from fusedmdn.ops.triton.recurrence import plan_of
from torch import Tensor

from fusedmdn import ops
from tests.accuracy import assert_accurate

from ..cell import Cell, Contender, Prepared, check, describe, title
from ..peers.torch_losses import Loss
from ..problems import relative
from ..works import loss as loss_work
from . import layer
from .machine import Machine, Outputs
from .sizes import Sizes

Json = dict[str, Any]
NO_FIT = "plan does not fit"
NO_MEMORY = "OutOfMemoryError"
UNITS = {"ms": 1.0, "us/step": 1e3}  # how many of the unit are a millisecond
WARM_UP = 3


class Wrong(Exception):
    """Results that break the accuracy rule."""


def lstm(machine: Machine, sizes: Sizes, H: int) -> Json:
    """The layer at one size."""
    cells = []
    for elements, B in itertools.product(sizes.elements, sizes.batches):
        dtype, precision = layer.ELEMENTS[elements]
        with layer.products(precision):
            ours = layer.ours(sizes.steps, B, H, dtype, machine.device)
            setup = {"elements": elements, "T": sizes.steps, "B": B, "H": H}
            chosen = {d: _chosen(d, H, B, ours.grad) for d in ("forward", "backward")}
            timed = _lstm_cells(ours, dtype, setup)
            cells += [{**measure(cell, machine, sizes.repeats, sizes.without), "chosen": chosen} for cell in timed]
    return outcome(cells)


def _chosen(direction: str, H: int, B: int, like: Tensor) -> Json:
    """The plan that is taken by default, and what a step of it moves and multiplies (ops.cost)."""
    plan = plan_of(direction, H, B, like)
    step = plans.step_cost(plan, direction, H, B, like.dtype.itemsize, launch.device_of(like))
    return {**plan._asdict(), "step": step._asdict()}


def _lstm_cells(ours: layer.Layer, dtype: torch.dtype, setup: Json) -> Iterator[Cell]:
    exact = functools.cache(lambda: layer.reference(ours, torch.float64))
    same = functools.cache(lambda: layer.reference(ours, dtype))
    theirs = layer.of_torch(ours)
    for work, method in (("lstm forward", "forward"), ("lstm forward + backward", "both")):
        run = getattr(ours, method)
        runs = {plan: layer.planned(run, plan) for plan in ("persistent", "stepwise")}
        runs["nn.LSTM"] = getattr(theirs, method)
        yield Cell(work, None, setup, "ms", list(_contenders(runs, same, exact)))


def mdn_nll(machine: Machine, sizes: Sizes) -> Json:
    """The loss and its gradient, at every batch."""
    cells = []
    for elements, B in itertools.product(sizes.elements, sizes.batches):
        dtype, precision = layer.ELEMENTS[elements]
        if precision == "tf32":
            continue  # the loss has no products
        setup = {"elements": elements, "T": sizes.steps, "B": B, "M": loss_work.M}
        cells.append(measure(_loss_cell(machine, sizes, dtype, B, setup), machine, sizes.repeats, sizes.without))
    return outcome(cells)


def _loss_cell(machine: Machine, sizes: Sizes, dtype: torch.dtype, B: int, setup: Json) -> Cell:
    raw, target = (value.to(machine.device) for value in loss_work.arguments(sizes.steps, B))
    raw = raw.to(dtype)

    def run(loss: Loss, dtype: torch.dtype = dtype) -> Outputs:
        leaf = raw.detach().to(dtype).requires_grad_()
        value = loss(leaf, target.to(torch.promote_types(dtype, torch.float32)))
        return {"loss": value.detach(), "raw": torch.autograd.grad(value, leaf)[0]}

    def reference(dtype: torch.dtype) -> Outputs:
        with ops.backend("reference"):
            return run(loss_work.our_mean(loss_work.M), dtype)

    runs = {}
    for name, make in loss_work.TORCH.items():
        loss = make(loss_work.M)
        runs[name] = functools.partial(run, loss if name == "ours" else in_float32(loss))
    same, exact = (functools.cache(functools.partial(reference, d)) for d in (dtype, torch.float64))
    return Cell("mdn_nll forward + backward", None, setup, "ms", list(_contenders(runs, same, exact)))


def in_float32(loss: Loss) -> Loss:
    """A peer's loss as it is used: of the raw output in float32."""
    return lambda raw, target: loss(raw.float(), target)


def _contenders(
    runs: dict[str, Callable[[], Outputs]], same: Callable[[], Outputs], exact: Callable[[], Outputs]
) -> Iterator[Contender]:
    for name, run in runs.items():
        prepared = Prepared(run, functools.partial(deviation, run, same, exact))
        role = "ours" if name in ("persistent", "stepwise", "ours") else "peer"
        yield Contender(name, role, functools.partial(_same, prepared), math.inf, warm_up=WARM_UP)


def _same(prepared: Prepared) -> Prepared:
    return prepared


def deviation(run: Callable[[], Outputs], same: Callable[[], Outputs], exact: Callable[[], Outputs]) -> float:
    """The largest relative deviation from the float64 reference.

    Raises:
        Wrong: more than tests/accuracy.py allows, with the reference in the same dtype as its measure.
    """
    got = run()
    try:
        for name, value in got.items():
            assert_accurate(name, value, same()[name], exact()[name])
    except AssertionError as error:
        raise Wrong(str(error)) from None
    return max(relative(value, exact()[name]) for name, value in got.items())


def measure(cell: Cell, machine: Machine, repeats: int, without: Sequence[str]) -> Json:
    """The cell's results: contenders that are wrong or cannot run give their reasons, the others are timed in turn."""
    load, ready, checked = os.getloadavg(), {}, {}
    for contender in cell.contenders:
        prepared, error, reason = check(contender, without)
        checked[contender.name] = error, reason
        if prepared is not None:
            ready[contender.name] = prepared.run
    times = machine.interleaved(ready, repeats)
    results = []
    for contender in cell.contenders:
        name, scale = contender.name, UNITS[cell.unit] / contender.calls
        memory = machine.peak(ready[name]) if name in ready else None
        results.append(entry(contender, [value * scale for value in times.get(name, [])], memory, *checked[name]))
    return describe(cell, load, results)


def entry(
    contender: Contender, values: list[float], memory: int | None, error: float | None, reason: str | None
) -> Json:
    """One contender's results; `values` in the cell's unit, `memory` in bytes."""
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else [None] * 4
    return {
        "contender": contender.name,
        "role": contender.role,
        "repeats": len(values),
        "values": values,
        "median": statistics.median(values) if values else None,
        "minimum": min(values, default=None),
        "percentile_20": fifths[0],
        "percentile_80": fifths[-1],
        "peak_memory": memory,
        "error": error if error is None or math.isfinite(error) else None,  # JSON knows no infinity
        "reason": reason,
    }


def outcome(cells: Iterable[Json]) -> Json:
    """A part's results; it fails where one of ours is wrong or cannot run, unless its plan or the work does not fit."""
    cells = list(cells)
    failures = [
        f"{title(cell['work'], cell['model'], cell['setup'])}: {result['contender']}: {result['reason']}"
        for cell in cells
        for result in cell["results"]
        if result["role"] == "ours" and result["reason"] and not _unfit(result["reason"])
    ]
    return {"trouble": "; ".join(failures) or None, "cells": cells}


def _unfit(reason: str) -> bool:
    return any(words in reason for words in (NO_FIT, NO_MEMORY))
