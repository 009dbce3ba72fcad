"""A cell: contenders that do the same work. Each is built and checked, then all that passed are timed together."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from fusedmdn.ops.forced import PlanError

from . import precision
from .budget import Budget
from .machine import Machine
from .timing import Series, Timed, interleaved, quartered

Json = dict[str, Any]
Say = Callable[[str], None]
Told = TypeVar("Told")
Key = tuple[str, str]  # a contender's name and dtype

APART = "optimiser"  # the phase that is timed and shown, but not compared
SECONDS = {"us/step": 1e6, "ms": 1e3}  # how many of the unit are a second


class Cannot(Exception):
    """A contender cannot do a cell; the message is the reason that is shown."""


EXCUSED = (Cannot, ImportError, PlanError, MemoryError, torch.OutOfMemoryError)  # not for being at fault


class Prepared(NamedTuple):
    """A contender that has been built.

    phases: do the work once, in this order, each timed apart. error: the largest deviation of its numbers from the
    float64 reference's, found before anything is timed. clear: drops what a run has left behind, as gradients are.
    """

    phases: Mapping[str, Callable[[], object]]
    error: Callable[[], float]
    clear: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Contender:
    """One way to do a cell's work.

    Attributes:
        name: as the tables name it, the same in every dtype.
        dtype: of `precision.DTYPES`.
        role: "ours"; "variant", ours with a plan forced; "peer"; or "stand-in", a peer that does less than is asked.
        prepare: builds it; raises `Cannot`, or what the library raises, where it cannot run.
        tolerance: of its error; above it, it is wrong and not timed.
        calls: units of work (steps, calls) that the phases do.
        warm_up: runs before the timing.
        plan: what it was planned to do, if it tells.
        allocates: its memory comes from the machine's allocator while it runs, so that its peak can be told.
    """

    name: str
    dtype: str
    role: str
    prepare: Callable[[], Prepared]
    tolerance: float
    calls: int = 1
    warm_up: int = 1
    plan: Callable[[], Json] | None = None
    allocates: bool = True

    @property
    def key(self) -> Key:
        """What tells it from the others of its cell."""
        return self.name, self.dtype


@dataclass(frozen=True)
class Cell:
    """What is compared: a work on a model in one setup, in `unit`, by these contenders; floors in seconds, by dtype."""

    work: str
    model: str | None
    setup: Json
    unit: str
    contenders: Sequence[Contender]
    floors: Mapping[str, Json]


class Outcome(NamedTuple):
    """Of a contender's check: what is timed, or why nothing is.

    error: its own; failed: whether it is at fault; seconds: of a run.
    """

    prepared: Prepared | None
    error: float | None = None
    reason: str | None = None
    failed: bool = False
    seconds: float = 0.0


def title(work: str, model: str | None, setup: Json) -> str:
    """A cell in words; within its work where that is empty."""
    named = [f"model {model}"] if model else []
    return ", ".join([*([work] if work else []), *named, *(f"{key} {value}" for key, value in setup.items())])


def measure(
    cell: Cell, machine: Machine, budget: Budget, without: Sequence[str] = (), say: Say = lambda _: None
) -> Json:
    """The cell's results as JSON holds them; one that is missing, wrong or too slow gives its reason instead."""
    load, start = os.getloadavg(), time.monotonic()
    outcomes = {}
    for contender in sorted(cell.contenders, key=lambda contender: contender.role != "ours"):
        say(f"{contender.name} {contender.dtype}: check")
        outcomes[contender.key] = check(contender, machine, budget, without)
    outcomes = affordable(cell.contenders, outcomes, budget)
    budget = budget.from_now()
    ready = {
        key: Timed(outcome.prepared.phases, functools.partial(precision.products, key[1]))
        for key, outcome in outcomes.items()
        if outcome.prepared is not None
    }
    times, broken = interleaved(ready, machine, budget, lambda key, line: say(f"{' '.join(key)}: {line}"))
    results = []
    for contender in cell.contenders:
        key, outcome = contender.key, outcomes[contender.key]
        if key in broken:
            outcome = blame(broken[key], outcome.error, "broke off: ")
        peak = None
        if outcome.prepared is not None:
            say(f"{contender.name} {contender.dtype}: peak memory")
            peak = told(lambda c=contender, p=outcome.prepared: peak_memory(machine, c, p))
        results.append(result(contender, cell.unit, times.get(key, {}), peak, outcome))
    machine.release()
    scale = SECONDS[cell.unit]
    floors = {dtype: {**floor, "time": floor["time"] * scale} for dtype, floor in cell.floors.items()}
    return {
        "work": cell.work,
        "model": cell.model,
        "setup": cell.setup,
        "unit": cell.unit,
        "load_before": list(load),
        "seconds": time.monotonic() - start,
        "floors": floors,
        "results": results,
    }


def check(contender: Contender, machine: Machine, budget: Budget, without: Sequence[str]) -> Outcome:
    """The contender built, checked and warm."""
    for word in without:
        if word.lower() in f"{contender.name} {contender.dtype}".lower():
            return Outcome(None, reason=f"left out (--without {word})")
    if budget.over():
        return Outcome(None, reason=budget.why)
    if contender.role != "ours" and budget.late():
        return Outcome(None, reason=budget.why_late)
    prepared = None
    try:
        with precision.products(contender.dtype):
            prepared = contender.prepare()
            error = prepared.error()
            if not error <= contender.tolerance:
                shown = error if math.isfinite(error) else None  # JSON has no NaN
                wrong = f"wrong: error {error:.2g} where {contender.tolerance:.2g} is allowed"
                return Outcome(None, shown, wrong, failed=True)
            seconds = 0.0
            for _ in range(contender.warm_up):
                start = time.monotonic()
                machine.time(prepared.phases)
                seconds = time.monotonic() - start
    except Exception as trouble:  # whatever a peer raises is its reason; the others go on
        outcome = blame(trouble)
        del trouble, prepared  # and the memory that they hold
        machine.release()
        return outcome
    return Outcome(prepared, error, seconds=seconds)


def blame(trouble: Exception, error: float | None = None, when: str = "") -> Outcome:
    """What an exception means for a contender: a line that says why it has no figures."""
    line = (str(trouble).strip() or "no message").splitlines()[0]
    if isinstance(trouble, ImportError):
        line = f"not installed: {line}"
    elif not isinstance(trouble, Cannot):
        line = f"{type(trouble).__name__}: {line}"
    return Outcome(None, error, when + line, failed=not isinstance(trouble, EXCUSED))


def affordable(contenders: Sequence[Contender], outcomes: dict[Key, Outcome], budget: Budget) -> dict[Key, Outcome]:
    """The same, but the slowest peers left out until the least repetitions take no more than they may."""
    outcomes, allowance = dict(outcomes), budget.allowance()
    peers = [c.key for c in contenders if c.role != "ours" and outcomes[c.key].prepared is not None]
    for key in sorted(peers, key=lambda key: -outcomes[key].seconds):
        if budget.over():
            outcomes[key] = outcomes[key]._replace(prepared=None, reason=budget.why)
            continue
        if sum(outcome.seconds for outcome in outcomes.values()) * budget.least <= allowance:
            break
        outcome = outcomes[key]
        reason = f"{budget.why_slow}: one run takes {outcome.seconds:.1f} s"
        outcomes[key] = Outcome(None, outcome.error, reason)
    return outcomes


def told(ask: Callable[[], Told]) -> Told | None:
    """What is asked for beside the times; None where that fails, which is no reason to lose them."""
    try:
        return ask()
    except Exception:
        return None


def peak_memory(machine: Machine, contender: Contender, prepared: Prepared) -> int | None:
    """Bytes that the phases but the optimiser's take at most."""

    def run() -> None:
        for name, phase in prepared.phases.items():
            if name != APART:
                phase()

    if not contender.allocates:
        return None
    with precision.products(contender.dtype):
        return machine.peak(run, prepared.clear)


def plan_of(contender: Contender) -> Json | None:
    """What it was planned to do, in its precision."""
    with precision.products(contender.dtype):
        return contender.plan() if contender.plan else None


def result(contender: Contender, unit: str, times: Mapping[str, Series], peak: int | None, outcome: Outcome) -> Json:
    """One contender's entry; every time in `unit`."""
    scale = SECONDS[unit] / contender.calls
    phases = {name: [seconds * scale for seconds in series.wall] for name, series in times.items()}
    counted = [name for name in phases if name != APART]
    values = [sum(each) for each in zip(*(phases[name] for name in counted), strict=True)]
    cpu = [scale * sum(each) for each in zip(*(times[name].cpu for name in counted), strict=True)]
    return {
        "contender": contender.name,
        "dtype": contender.dtype,
        "role": contender.role,
        "repeats": len(values),
        "values": values,
        **quartered(values),
        "minimum": min(values, default=None),
        "phases": {name: {"values": series, **quartered(series)} for name, series in phases.items()},
        "cpu": cpu,
        "cpu_minimum": min(cpu, default=None),
        "peak_memory": peak,
        "error": outcome.error,
        "tolerance": contender.tolerance,
        "reason": outcome.reason,
        "failed": outcome.failed,
        "plan": told(lambda: plan_of(contender)) if outcome.prepared is not None else None,
    }
