"""A page: where every point of every sequence lies on it, in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..strokes import Strokes

CELL = 120  # pixels of a cell's side
MARGIN = 0.12  # of the cell, on every side
PEN = 0.028  # pen's width, of the cell
FINEST = 0.2  # of that, for long lines of small writing
WIDE, WIDEST = 2.0, 10.0  # cells of a grid grow wider with the lines in them, between these proportions
DASH = 1.5  # what is wide, and no longer than so many times its width, is no line of writing

# Pixels of a side and of a page that a file may have. A .png: what Pillow opens again; a .gif: 16 bits a side, and
# Pillow keeps all of its frames.
LARGEST = {".png": (2**31 - 1, 2**27), ".gif": (2**16 - 1, 2**25)}

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One sequence on the page: point x of its raw units lies at x * unit + origin.

    Attributes:
        points: (N, 2), all of its points.
        ends: after how many points each pen stroke ends.
        unit: pixels of one raw unit.
        origin: (2).
        cell: left, top, width and height of the part of the page that is its own.
    """

    points: Points
    ends: list[int]
    unit: float
    origin: Points
    cell: tuple[int, int, int, int]

    def lines(self, upto: int | None = None) -> list[tuple[int, Points]]:
        """The pen strokes of the first `upto` points, and the number of points before each."""
        n = len(self.points) if upto is None else min(upto, len(self.points))
        cuts = [0, *(end for end in self.ends if end < n), n]
        return [(a, self.points[a:b]) for a, b in pairwise(cuts) if b > a]


@dataclass(frozen=True)
class Page:
    """Figures laid out on `width` x `height` pixels, and the pen's width."""

    figures: list[Figure]
    width: int
    height: int
    pen: float

    @property
    def polylines(self) -> list[Points]:
        """All pen strokes, (n, 2) each."""
        return [line for figure in self.figures for _, line in figure.lines()]


def lay_out(sequences: Sequence[Strokes], columns: int | None = None, cell: int = CELL) -> Page:
    """Centre every sequence in a cell of a grid, all at one scale; a sequence that would not fit is made to."""
    if not sequences:
        raise ValueError("nothing to draw: no sequences were given")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be >= 1, got {columns}")
    placed = [np.cumsum(s.points[:, :2], axis=0, dtype=np.float64) for s in sequences]
    ends = [(np.flatnonzero(s.points[:, 2] == 1) + 1).tolist() for s in sequences]
    boxes = [_box(points) for points in placed]
    shapes = [_shape(points, high - low) for points, (low, high) in zip(placed, boxes, strict=True)]
    if len(placed) == 1:  # a single drawing keeps its proportions: its longer side sets the size
        low, high = boxes[0]
        width, height = high - low
        inner = 3 * cell * (1 - 2 * MARGIN)
        unit = float(inner / max(height, width / 3, 1e-9))
        margin = 3 * cell * MARGIN
        page = max(width * unit, inner / 3) + 2 * margin, max(height * unit, inner / 3) + 2 * margin
        centre = np.array(page) / 2 - (low + high) / 2 * unit
        across, down = math.ceil(page[0]), math.ceil(page[1])
        pen = PEN * 2 * cell * max(FINEST, min(1, 3 / shapes[0]))
        return Page([Figure(placed[0] * unit + centre, ends[0], unit, centre, (0, 0, across, down))], across, down, pen)
    shape = min(max(1.0, float(np.median(shapes))), WIDEST)
    across, down = (cell, cell) if shape < WIDE else (2 * round(cell * shape**p / 2) for p in (0.75, -0.25))
    columns = min(columns or math.ceil(math.sqrt(len(placed) * down / across)), len(placed))
    extents = np.array([max(*((high - low) * [down / across, 1]), 1e-9) for low, high in boxes])
    common = np.quantile(extents, 0.9)
    figures = []
    for k, (points, (low, high), extent) in enumerate(zip(placed, boxes, extents, strict=True)):
        unit = float(down * (1 - 2 * MARGIN) / max(common, extent))
        left, top = k % columns * across, k // columns * down
        centre = np.array([left + across / 2, top + down / 2]) - (low + high) / 2 * unit
        figures.append(Figure(points * unit + centre, ends[k], unit, centre, (left, top, across, down)))
    pen = PEN * down * max(FINEST, min(1, across / down / np.median(shapes)))
    return Page(figures, columns * across, math.ceil(len(placed) / columns) * down, float(pen))


def check_size(page: Page, ending: str) -> None:
    """Refuse a page that is too large for a file of that ending; an SVG has no limit."""
    side, area = LARGEST.get(ending, (math.inf, math.inf))
    if max(page.width, page.height) > side or page.width * page.height > area:
        raise ValueError(
            f"the page has {page.width:,} x {page.height:,} pixels, a {ending} at most {side:,} a side and {area:,} in "
            "all: draw fewer sequences, in fewer columns, or write a .svg"
        )


def _shape(points: Points, size: Points) -> float:
    """Width over height of a line of writing; 1 for what is no wider than high, or little more than a dash."""
    width, height = size
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    return float(width / max(height, 1e-9)) if width > height and length > DASH * width else 1.0


def _box(points: Points) -> tuple[Points, Points]:
    return (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.zeros(2))
