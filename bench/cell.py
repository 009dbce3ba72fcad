"""A cell: contenders that do the same work. Each is built and checked, then all that passed are timed together."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .timing import interleaved

SECONDS = {"us/step": 1e6, "us": 1e6, "ms": 1e3}  # how many of the unit are a second


class Prepared(NamedTuple):
    """A contender that has been built.

    run does the work once; error gives the largest deviation of its numbers from the reference's, None where there are
    no numbers to check.
    """

    run: Callable[[], object]
    error: Callable[[], float] | None = None


@dataclass(frozen=True)
class Contender:
    """One way to do a cell's work.

    Attributes:
        name: as the tables name it.
        role: "ours", "peer", or "limit" for what the machine itself can do.
        prepare: builds it; raises where it cannot run.
        tolerance: of its error; above it, it is not timed.
        calls: units of work (steps, calls) that one run does.
        warm_up: runs before the timing; none where the check has done the very same.
    """

    name: str
    role: str
    prepare: Callable[[], Prepared]
    tolerance: float = 0.0
    calls: int = 1
    warm_up: int = 1


@dataclass(frozen=True)
class Cell:
    """What is compared: a work on a model in one setup, in `unit`, by these contenders."""

    work: str
    model: str | None
    setup: dict[str, Any]
    unit: str
    contenders: Sequence[Contender]


def title(work: str, model: str | None, setup: dict[str, Any]) -> str:
    """A cell in words; within its work where that is empty."""
    named = [f"model {model}"] if model else []
    return ", ".join([*([work] if work else []), *named, *(f"{key} {value}" for key, value in setup.items())])


def measure(
    cell: Cell,
    repeats: int,
    without: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The cell's results as JSON will hold them; a contender that is missing or wrong gives its reason instead."""
    load = os.getloadavg()
    ready: dict[str, Prepared] = {}
    checked: dict[str, tuple[float | None, str | None]] = {}
    for contender in cell.contenders:
        say(f"{contender.name}, check")
        prepared, error, reason = check(contender, without)
        checked[contender.name] = error, reason
        if prepared is not None:
            ready[contender.name] = prepared
    times = interleaved({name: prepared.run for name, prepared in ready.items()}, repeats, say=say)
    results = []
    for contender in cell.contenders:
        error, reason = checked[contender.name]
        wall, cpu = times.get(contender.name, ([], []))
        per_unit = SECONDS[cell.unit] / contender.calls
        values, cpu_values = ([seconds * per_unit for seconds in series] for series in (wall, cpu))
        results.append(
            result(contender.name, contender.role, values, cpu_values, cell.unit, error, contender.tolerance, reason)
        )
    return describe(cell, load, results)


def check(contender: Contender, without: Sequence[str]) -> tuple[Prepared | None, float | None, str | None]:
    """The contender built and warm, its error, and why it is not timed; one of the first and the last is None."""
    for word in without:
        if word.lower() in contender.name.lower():
            return None, None, f"left out (--without {word})"
    try:
        prepared = contender.prepare()
        error = None if prepared.error is None else prepared.error()
        if error is not None and not error <= contender.tolerance:
            shown = error if math.isfinite(error) else None  # JSON has no NaN
            return None, shown, f"wrong: error {error:.2g} where {contender.tolerance:.2g} is allowed"
        for _ in range(contender.warm_up):
            prepared.run()
    except ImportError as missing:
        return None, None, f"not installed: {missing}"
    except Exception as trouble:  # whatever a peer raises is its reason; the others go on
        line = (str(trouble).strip() or "no message").splitlines()[0]
        return None, None, f"{type(trouble).__name__}: {line}"
    return prepared, error, None


def result(
    name: str,
    role: str,
    values: list[float],
    cpu: list[float],
    unit: str,
    error: float | None,
    tolerance: float,
    reason: str | None,
) -> dict[str, Any]:
    """One contender's entry; `values` and `cpu` are in `unit`, one for each repetition."""
    return {
        "contender": name,
        "role": role,
        "repeats": len(values),
        "unit": unit,
        "values": values,
        "median": statistics.median(values) if values else None,
        "minimum": min(values, default=None),
        "cpu": cpu,
        "cpu_minimum": min(cpu, default=None),
        "error": error,
        "tolerance": tolerance,
        "reason": reason,
    }


def describe(cell: Cell, load: tuple[float, float, float], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The cell's entry; `load` is the machine's load average before it."""
    return {
        "work": cell.work,
        "model": cell.model,
        "setup": cell.setup,
        "unit": cell.unit,
        "load_before": list(load),
        "results": results,
    }
