"""What paired times say.

A repetition gives one ratio, head over base, of two times taken one right after the other; the machine's slow changes
are in both and cancel. A case is slower if the median of these ratios exceeds a bound, and at least four fifths of
them exceed 1: a median alone would let a few bad moments speak, the share alone any difference, however small. It is
faster if the same holds with base and head exchanged. What is slower or faster must come out twice: see `turns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SLOWER, FASTER, SAME = "slower", "faster", "same"


class Ratio(NamedTuple):
    """Of the paired ratios: median, 20th and 80th percentile."""

    median: float
    low: float
    high: float


def paired_ratio(base: Sequence[float], head: Sequence[float]) -> Ratio:
    """Head over base, repetition by repetition."""
    if len(base) != len(head) or not base:
        raise ValueError(f"expected as many times of the base as of the head, got {len(base)} and {len(head)}")
    return Ratio(*(float(v) for v in np.percentile(np.divide(head, base), (50, 20, 80))))


def verdict(ratio: Ratio, above: float) -> str:
    """SLOWER, FASTER or SAME, by the rule above."""
    if ratio.median > above and ratio.low > 1:
        return SLOWER
    if ratio.median < 1 / above and ratio.high < 1:
        return FASTER
    return SAME


def deviation(base: Sequence[Sequence[float]], head: Sequence[Sequence[float]]) -> float:
    """The largest difference of any tensor's numbers, relative to the base's largest; infinite for other shapes."""
    if [len(v) for v in base] != [len(v) for v in head]:
        return float("inf")
    parts = [_relative(np.array(b), np.array(h)) for b, h in zip(base, head, strict=True)]
    return max(parts, default=0.0)


def _relative(base: np.ndarray, head: np.ndarray) -> float:
    largest, difference = np.abs(base).max(initial=0), np.abs(head - base).max(initial=0)
    if difference == 0:
        return 0.0
    return float(difference / largest) if np.isfinite(difference) and largest else float("inf")
