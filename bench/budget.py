"""How long a run may take: shared out to its parts and cells, what one leaves over going to the next."""

from __future__ import annotations

import math
import time
from typing import NamedTuple


class Budget(NamedTuple):
    """Of one cell.

    Attributes:
        least: repetitions that are done at any rate, once a contender is timed.
        most: repetitions that are enough.
        share: when this cell should end (time.monotonic); it may take longer for the least repetitions.
        end: when the part must end.
        why: what is said of a contender or a cell for which there was no time.
    """

    least: int
    most: int
    share: float = math.inf
    end: float = math.inf
    minutes: float | None = None

    @property
    def why(self) -> str:
        """What is said of that for which there was no time."""
        return f"the {self.minutes:g} minutes were over"

    @property
    def why_short(self) -> str:
        """The run, as the reason that a slow contender was left out."""
        return f"a run of {self.minutes:g} minutes"

    def over(self) -> bool:
        """Whether the part's time is over."""
        return time.monotonic() >= self.end

    def left(self) -> float:
        """Seconds that the part still has."""
        return self.end - time.monotonic()


def share(seconds: float, parts: int, overrun: float = 1.5) -> float:
    """Seconds for the next of so many parts that are left: more than an even share, as some will need less."""
    return seconds if parts <= 1 else min(seconds, overrun * seconds / parts)
