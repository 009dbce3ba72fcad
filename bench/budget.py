"""How long a run may take: shared out to its cells by their weights, what one leaves over going to the rest."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

ENOUGH = 0.7  # of a share, after which repetitions beyond the least end: other cells take more than theirs
OVERRUN = 2.0  # shares that a cell may take for its checks, and for its least repetitions


class Budget(NamedTuple):
    """Of one cell.

    Attributes:
        least: repetitions that are done at any rate, once a contender is timed.
        most: repetitions that are enough.
        share: seconds that the cell should take.
        end: when the run must end (time.monotonic); nothing new is begun after it.
        start: when the cell began.
        minutes: of the run.
    """

    least: int
    most: int
    share: float = math.inf
    end: float = math.inf
    start: float = 0.0
    minutes: float | None = None

    @property
    def why(self) -> str:
        """What is said of that for which there was no time."""
        return f"the {self.minutes:g} minutes were over"

    @property
    def why_late(self) -> str:
        """The reason that a contender was left out which there was no time to build and check."""
        return f"no time left to prepare it in a run of {self.minutes:g} minutes"

    @property
    def why_slow(self) -> str:
        """The reason that a contender was left out whose least repetitions take too long."""
        return f"too slow for a run of {self.minutes:g} minutes"

    def over(self) -> bool:
        """Whether the run's time is over."""
        return time.monotonic() >= self.end

    def from_now(self) -> Budget:
        """The same for the repetitions: what checks have left of the share, and a quarter of it at the least."""
        now = time.monotonic()
        return self._replace(share=max(self.start + self.share - now, self.share / 4), start=now)

    def late(self) -> bool:
        """Whether so much of the time went into checks that no more should be begun."""
        return time.monotonic() >= self.start + OVERRUN * self.share

    def enough(self) -> bool:
        """Whether there should be no more repetitions than the least."""
        return time.monotonic() >= min(self.start + ENOUGH * self.share, self.end)

    def allowance(self) -> float:
        """Seconds that the least repetitions may take."""
        return min(OVERRUN * self.share, self.end - time.monotonic())


def budget_of(least: int, most: int, minutes: float | None, end: float | None, weight: float, rest: float) -> Budget:
    """Of the next cell, where the cells that are left, it included, weigh `rest`; without a limit if `end` is None."""
    now = time.monotonic()
    if end is None:
        return Budget(least, most, start=now)
    return Budget(least, most, max(0.0, end - now) * weight / rest, end, now, minutes)
