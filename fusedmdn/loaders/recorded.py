"""What a device recorded: the whole page is its place, so a sequence begins at (0, 0); its grid is the quantum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dataset import StrokeSet
from ..strokes import Strokes


def from_origin(lines: Sequence[NDArray[np.float64]], label: str = "") -> Strokes:
    """A sequence of polylines whose first point is (0, 0)."""
    strokes = Strokes.from_polylines(lines, label)
    strokes.points[:1, :2] = 0
    return strokes


def stroke_set(sequences: Sequence[Strokes]) -> StrokeSet:
    """Of quantum 1 where all numbers are whole."""
    return StrokeSet.of(sequences, 1.0 if all((s.points % 1 == 0).all() for s in sequences) else 0.0)
