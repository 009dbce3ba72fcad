"""IAM On-Line Handwriting Database: lines of text on a whiteboard, as its lineStrokes XML files and their transcripts.

`lineStrokes/a01/a01-000/a01-000u-02.xml` is the second of the lines that stand after "CSR:" in
`ascii/a01/a01-000/a01-000u.txt`. Readings are repaired as Graves says that he did (2013, section 4: missing readings
filled in by interpolation, steps whose length is above a threshold removed); he gives no numbers, those here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..dataset import StrokeFileError, StrokeSet
from ..quoting import told
from ..strokes import Strokes
from . import recorded
from .markup import Document, local

ROOT = "WhiteboardCaptureSession"
GAP = 2.5  # periods; times are rounded to about one, so of an interval of two nothing need be missing
PAUSE = 20.0  # periods
WITHIN, BETWEEN = 20.0, 200.0  # median steps
LARGEST = 1e9  # a coordinate or a time beyond it is not one
POINTS = 1_000_000  # of a line


def from_documents(
    documents: Iterable[Document],
    gap: float = GAP,
    pause: float = PAUSE,
    within: float = WITHIN,
    between: float = BETWEEN,
) -> StrokeSet:
    """A sequence a document, in the whiteboard's units, each beginning at (0, 0); y downward as it is recorded.

    Args:
        documents: whose roots are ROOT elements.
        gap: two readings of a pen stroke that are more than so many sampling periods apart have lost those between
            them, which are put on the straight line at even times. A line's period is the median interval.
        pause: beyond so many periods nothing was lost: the pen rested.
        within: a step inside a pen stroke that is longer than so many median steps is removed.
        between: a step from one pen stroke to the next that is longer than so many median steps is removed.

    Raises:
        StrokeFileError: a point without numbers x, y and time, no strokes, or times between which too much is lost.
        ValueError: a measure is not positive and finite, or gap above pause.
    """
    for name, value in {"gap": gap, "pause": pause, "within": within, "between": between}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if gap > pause:
        raise ValueError(f"gap must be at most pause, got {gap} and {pause}")
    sequences, lines_of = [], lru_cache(maxsize=1)(_transcripts)  # the lines of a form follow one another
    for document in documents:
        readings = _readings(document)
        lost = _lost(readings, gap, pause)
        if sum(map(len, readings)) + sum(number.sum() for number in lost) > POINTS:
            raise StrokeFileError(f"{document.path}: more than {POINTS} points with those that are filled in")
        strokes = recorded.from_origin([_filled(*both) for both in zip(readings, lost, strict=True)])
        points = _without_outliers(strokes.points, within, between)
        sequences.append(Strokes(points, _transcript(document.path, lines_of)))
    return recorded.stroke_set(sequences)


def _transcript(path: Path, lines_of: Callable[[Path], tuple[str, ...]]) -> str:
    """The text of a line, "" where there is none: no ascii folder beside lineStrokes, no file, no such line."""
    parts = path.absolute().parts
    if "lineStrokes" not in parts:
        return ""
    at = len(parts) - 1 - parts[::-1].index("lineStrokes")
    form, _, number = path.name.partition(".")[0].rpartition("-")
    lines = lines_of(Path(*parts[:at], "ascii", *parts[at + 1 : -1], f"{form}.txt"))
    return lines[int(number) - 1] if number.isascii() and number.isdigit() and 0 < int(number) <= len(lines) else ""


def _transcripts(path: Path) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ()
    _, _, lines = text.partition("CSR:")
    return tuple(line.strip() for line in lines.splitlines() if line.strip())


def _readings(document: Document) -> list[NDArray[np.float64]]:
    """(n, 3) x, y and time of every pen stroke."""
    strokes = []
    for element in document.root.iter():
        if local(element.tag) == "Stroke":
            try:
                rows = [[float(point.attrib[name]) for name in ("x", "y", "time")] for point in element]
            except (KeyError, ValueError) as error:
                raise StrokeFileError(
                    f"{document.path}: expected every point's x, y and time: {told(error)}"
                ) from error
            readings = np.array(rows, np.float64).reshape(-1, 3)
            if not (np.abs(readings) <= LARGEST).all():
                raise StrokeFileError(f"{document.path}: a reading beyond {LARGEST:g}, or not a number")
            strokes.append(readings)
    if not strokes:
        raise StrokeFileError(f"{document.path}: found no <Stroke>, expected those of a line")
    return strokes


def _lost(strokes: list[NDArray[np.float64]], gap: float, pause: float) -> list[NDArray[np.float64]]:
    """How many readings are missing after each of every pen stroke, but after its last."""
    intervals = [np.diff(readings[:, 2]) for readings in strokes]
    recorded = np.concatenate(intervals)
    recorded = recorded[recorded > 0]
    period = float(np.median(recorded)) if len(recorded) else math.inf
    periods = [interval / period for interval in intervals]
    return [np.where((n > gap) & (n <= pause), np.maximum(np.rint(n) - 1, 0), 0) for n in periods]


def _filled(readings: NDArray[np.float64], lost: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) points, those that are missing interpolated on the grid of what is recorded."""
    pieces = lost.astype(np.int64) + 1
    i = np.repeat(np.arange(len(pieces)), pieces)
    share = ((np.arange(len(i)) - (np.cumsum(pieces) - pieces)[i]) * (1 / pieces)[i])[:, None]
    points = readings[i, :2] * (1 - share) + readings[i + 1, :2] * share
    whole = not (readings[:, :2] % 1).any()
    return np.concatenate([np.rint(points) if whole else points, readings[-1:, :2]])


def _without_outliers(points: NDArray[np.float32], within: float, between: float) -> NDArray[np.float32]:
    """Rows whose step is not too long; the end of a pen stroke passes to what is left of it."""
    length = np.hypot(points[:, 0], points[:, 1])
    first = np.concatenate([[1.0], points[:-1, 2]]) == 1 if len(points) else np.zeros(0, bool)
    steps = length[~first & (length > 0)]
    if not steps.size:
        return points
    kept = length <= np.where(first, between, within) * np.median(steps)
    last = np.maximum.accumulate(np.where(kept, np.arange(len(points)), -1))
    points = points.copy()
    ends = last[(points[:, 2] == 1) & ~kept]
    points[ends[ends >= 0], 2] = 1  # of a stroke that is gone altogether it is the end of the one before
    return points[kept]
