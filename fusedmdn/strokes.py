"""`Strokes`: one pen sequence in raw units, and the ways in and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]


class Scale(NamedTuple):
    """What turns raw offsets into a model's units: (raw - shift) / std, per axis."""

    shift: tuple[float, float] = (0.0, 0.0)
    std: tuple[float, float] = (1.0, 1.0)

    def arrays(self) -> tuple[FloatArray, FloatArray]:
        """Shift and std, (2) float32 each."""
        return np.array(self.shift, np.float32), np.array(self.std, np.float32)


@dataclass(frozen=True, eq=False)
class Strokes:
    """A sequence of pen points as stroke-3 rows (dx, dy, eos), y downward, in raw units.

    eos = 1 on the last point of a pen stroke: the move to the next point is made with the pen lifted. The first row's
    offset is the first point's position.

    Args:
        points: (N, 3) numbers.
        label: what is written, if known.

    Raises:
        ValueError: no numbers, another shape, a value that is not finite, or an eos that is neither 0 nor 1.
    """

    points: FloatArray
    label: str = field(default="")

    def __post_init__(self) -> None:
        points = np.ascontiguousarray(_numbers("strokes", self.points))
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"strokes: expected shape (N, 3), rows (dx, dy, eos), got {points.shape}")
        if not np.isfinite(points).all():
            row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
            raise ValueError(f"strokes: row {row} is not finite: {points[row].tolist()}")
        wrong = np.flatnonzero((points[:, 2] != 0) & (points[:, 2] != 1))
        if wrong.size:
            raise ValueError(f"strokes: eos must be 0 or 1, got {points[wrong[0], 2]} in row {wrong[0]}")
        object.__setattr__(self, "points", points)

    def __len__(self) -> int:
        """Number of points."""
        return len(self.points)

    def __repr__(self) -> str:
        """Short form, with label, points and pen strokes."""
        label = f"{self.label!r}, " if self.label else ""
        return f"Strokes({label}{len(self)} points, {len(self.polylines())} strokes)"

    @classmethod
    def from_polylines(cls, polylines: Sequence[ArrayLike], label: str = "") -> Strokes:
        """From pen strokes as absolute points, (n, 2) each; empty ones are left out."""
        lines = [_numbers("polylines", line, np.float64).reshape(-1, 2) for line in polylines]
        lines = [line for line in lines if len(line)]
        if not lines:
            return cls(np.zeros((0, 3), np.float32), label)
        eos = np.concatenate([np.arange(len(line)) == len(line) - 1 for line in lines])
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            offsets = np.diff(np.concatenate(lines), axis=0, prepend=np.zeros((1, 2)))
        return cls(np.column_stack([offsets, eos]), label)

    def polylines(self) -> list[NDArray[np.float64]]:
        """Pen strokes as absolute points, (n, 2) float64 each."""
        position = np.cumsum(self.points[:, :2], axis=0, dtype=np.float64)
        ends = np.flatnonzero(self.points[:, 2] == 1) + 1
        return [line for line in np.split(position, ends) if len(line)]

    @classmethod
    def from_stroke5(cls, rows: ArrayLike, label: str = "") -> Strokes:
        """From sketch-rnn's (dx, dy, draw, lift, end) rows, up to the first end row.

        Raises:
            ValueError: no numbers, another shape, or a row whose last three values are not one-hot.
        """
        rows = _numbers("stroke-5", rows)
        if rows.ndim != 2 or rows.shape[1] != 5:
            raise ValueError(f"stroke-5: expected shape (N, 5), rows (dx, dy, draw, lift, end), got {rows.shape}")
        pen = rows[:, 2:]
        wrong = np.flatnonzero(((pen == 1).sum(1) != 1) | ((pen != 0) & (pen != 1)).any(1))
        if wrong.size:
            raise ValueError(f"stroke-5: row {wrong[0]} is not one-hot: {pen[wrong[0]].tolist()}")
        ends = np.flatnonzero(rows[:, 4] == 1)
        rows = rows[: ends[0]] if ends.size else rows
        return cls(rows[:, [0, 1, 3]], label)

    def stroke5(self) -> FloatArray:
        """(N + 1, 5) rows (dx, dy, draw, lift, end), the last one the end row (0, 0, 0, 0, 1)."""
        rows = np.zeros((len(self) + 1, 5), np.float32)
        rows[:-1, :2] = self.points[:, :2]
        rows[:-1, 2] = 1 - self.points[:, 2]
        rows[:-1, 3] = self.points[:, 2]
        rows[-1, 4] = 1
        return rows

    def rows(self, pen: str, scale: Scale = Scale()) -> FloatArray:  # noqa: B008 (immutable)
        """A model's rows in its units: stroke-3 for pen="bernoulli", stroke-5 with an end row for "categorical"."""
        rows = self.points.copy() if pen == "bernoulli" else self.stroke5()
        shift, std = scale.arrays()
        rows[: len(self), :2] = (rows[: len(self), :2] - shift) / std
        return rows

    @classmethod
    def from_rows(cls, rows: ArrayLike, scale: Scale = Scale(), label: str = "") -> Strokes:  # noqa: B008
        """The inverse of `rows`: (N, 3) or (N, 5) rows in a model's units.

        Raises:
            ValueError: no rows of strokes, or not finite in raw units.
        """
        rows = _numbers("rows", rows)
        strokes = cls(rows, label) if rows.ndim == 2 and rows.shape[1] == 3 else cls.from_stroke5(rows, label)
        points = strokes.points.copy()
        shift, std = scale.arrays()
        with np.errstate(over="ignore", invalid="ignore"):
            points[:, :2] = points[:, :2] * std + shift
        return cls(points, label)

    def _repr_svg_(self) -> str:
        from .render import svg

        return svg([self])

    def save(self, path: str | Path) -> None:
        """Draw into a .svg, .png or .gif file."""
        from .render import draw

        draw([self], path)


def _numbers(what: str, values: ArrayLike, dtype: type = np.float32) -> NDArray[Any]:
    """Real numbers as an array of floats; those that do not fit are infinite."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # of what is no array, numpy and torch raise each of these
        raise ValueError(f"{what}: expected numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{what}: expected numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)
