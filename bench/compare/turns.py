"""The measurement: base and head do a case in turn, one while the other waits, each first in every other repetition.

A case that comes out slower or faster is prepared and measured once more, and the second time counts: with dozens of
cases, chance alone would make one of them stand out every few runs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .colleague import Cannot, Died, Ready
from .verdict import FASTER, SLOWER, Ratio, deviation, paired_ratio, verdict

LEAST = 0.02  # seconds of a repetition: short cases are called so often
PAUSE = 0.02  # seconds: threads of the one before stop spinning
SIDES = ("base", "head")


class Side(Protocol):
    """A revision's worker: see `colleague.Worker`."""

    def prepare(self, case: str) -> Ready:
        """Build, check and run a case."""

    def time(self, calls: int) -> float:
        """Seconds of so many calls."""


@dataclass
class Compared:
    """A case's outcome: seconds a call of every repetition by side, or reasons by side why there are none."""

    case: str
    times: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    deviation: float | None = None
    values_differ: bool = False
    measured: int = 1  # how often; the last time counts

    @property
    def ratio(self) -> Ratio | None:
        """Head over base; None where nothing was timed."""
        return None if self.reasons else paired_ratio(self.times["base"], self.times["head"])

    def verdict(self, above: float) -> str | None:
        """In a word; None where nothing was timed."""
        return None if self.ratio is None else verdict(self.ratio, above)


def compare(
    start: Mapping[str, Callable[[], contextlib.AbstractContextManager[Side]]],
    tolerances: Mapping[str, float],
    repeats: int,
    above: float,
    *,
    pause: float = PAUSE,
    tick: Callable[[str], None] = lambda case: None,
) -> Generator[Compared, None, None]:
    """Compare the cases named in `tolerances`; `tick` is called after every repetition.

    `start` gives each side's worker. One that dies over a case is that case's reason; both begin anew with the next.

    Raises:
        Died: a worker did not start.
    """
    left = list(tolerances.items())
    while left:
        with contextlib.ExitStack() as stack:
            workers = {side: stack.enter_context(start[side]()) for side in SIDES}
            alive = True
            while left and alive:
                case, tolerance = left.pop(0)
                measured = functools.partial(_one, workers, case, tolerance, repeats, pause, tick)
                outcome, alive = measured()
                if outcome.verdict(above) in (SLOWER, FASTER):
                    outcome, alive = measured()
                    outcome.measured = 2
                yield outcome


def _one(
    workers: Mapping[str, Side], case: str, tolerance: float, repeats: int, pause: float, tick: Callable[[str], None]
) -> tuple[Compared, bool]:
    """A case's outcome, and whether both workers have survived it."""
    outcome = Compared(case)
    side = SIDES[0]
    try:
        ready = {}
        for side in SIDES:
            try:
                ready[side] = workers[side].prepare(case)
            except Cannot as reason:
                outcome.reasons[side] = str(reason)
        if outcome.reasons:
            return outcome, True
        outcome.deviation = deviation(ready["base"].values, ready["head"].values)
        outcome.values_differ = outcome.deviation > tolerance
        calls = max(1, math.ceil(LEAST / max(min(r.seconds for r in ready.values()), 1e-9)))
        outcome.times = {side: [] for side in SIDES}
        for side in turns(repeats):
            time.sleep(pause)
            outcome.times[side].append(workers[side].time(calls) / calls)
            tick(case)
    except (Cannot, Died) as reason:
        outcome.reasons[side] = str(reason)
        return outcome, isinstance(reason, Cannot)
    return outcome, True


def turns(repeats: int) -> Iterable[str]:
    """Who is next: base, head, head, base, base, head, ..."""
    for repetition in range(repeats):
        yield from SIDES if repetition % 2 == 0 else reversed(SIDES)
