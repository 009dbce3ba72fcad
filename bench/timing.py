"""Interleaved timing: a repetition runs every contender once, so that all share the machine's good and bad times.

Every other repetition runs them in the opposite order: what one leaves behind does not always meet the same other.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

from .budget import Budget
from .machine import Machine, Phases

K = TypeVar("K", bound=Hashable)


class Series(NamedTuple):
    """Seconds of every repetition: by the machine's timer, and processor time of all threads where it has that."""

    wall: list[float]
    cpu: list[float]


class Timed(NamedTuple):
    """What is timed, and the context that it runs in, which is not."""

    phases: Phases
    context: Callable[[], AbstractContextManager[Any]]


def interleaved(
    runs: Mapping[K, Timed], machine: Machine, budget: Budget, say: Callable[[K, str], None] = lambda key, line: None
) -> tuple[dict[K, dict[str, Series]], dict[K, Exception]]:
    """Times of every phase, over as many repetitions as the budget allows; and why some broke off, which have none."""
    if budget.least < 1:
        raise ValueError(f"repetitions must be >= 1, got {budget.least}")
    times: dict[K, dict[str, Series]] = {
        key: {phase: Series([], []) for phase in run.phases} for key, run in runs.items()
    }
    broken: dict[K, Exception] = {}
    gc.collect()
    gc.disable()  # a collection would fall into some contender's time
    try:
        for repetition in range(budget.most):
            if repetition >= budget.least and budget.enough():
                break
            for key, run in list(runs.items()) if repetition % 2 == 0 else reversed(runs.items()):
                if key in broken:
                    continue
                say(key, f"repetition {repetition + 1}")
                try:
                    with run.context():
                        taken = machine.time(run.phases)
                except Exception as trouble:  # as out of memory: the others go on
                    broken[key] = trouble.with_traceback(None)  # whose frames would keep its memory
                    times.pop(key)
                    machine.release()
                    continue
                for phase, (wall, cpu) in taken.items():
                    times[key][phase].wall.append(wall)
                    if cpu is not None:
                        times[key][phase].cpu.append(cpu)
    finally:
        gc.enable()
    return times, broken


def quartered(values: list[float]) -> dict[str, float | None]:
    """Median, 20th and 80th percentile; None where there are no values."""
    if len(values) < 2:
        return dict.fromkeys(("median", "percentile_20", "percentile_80"), values[0] if values else None)
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "percentile_20": fifths[0], "percentile_80": fifths[-1]}
