"""What strokes go through before a network sees them: fewer points, evenly spaced points, random variants.

All of it leaves labels, pen strokes and their end points as they are, and is in raw units. What is random takes a numpy
Generator; `Batches` does the same with its own random stream, its linear maps in the network's units.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .dataset import StrokeSet
from .strokes import FloatArray, Strokes

S = TypeVar("S", Strokes, StrokeSet)
PIECE = 2000  # segments that are simplified at once: GEOS may recur for every one, and takes the square of them in time
MOST_POINTS = 1 << 24  # resampling makes no more of them, or of ten times what there was
STRETCH = np.array([[1, 0], [0, 1]], np.float32)  # what `linear_map` makes random: the scales of x and y;
SLANT = np.array([[0, 0], [1, 0]], np.float32)  # how much of y goes into x;
DISTORTION = np.array([[1, 0.6], [0.6, 1]], np.float32)  # both at once, and x into y


def prepare(data: StrokeSet, epsilon: float | None = None, step: float | None = None) -> StrokeSet:
    """A set as it is trained on and evaluated: simplified, resampled or, with None for both, as it is.

    Raises ValueError and ModuleNotFoundError, as `simplify` and `resample`; ValueError if both are given.
    """
    check_preparation(epsilon, step)
    if epsilon is not None:
        return simplify(data, epsilon)
    return data if step is None else resample(data, step)


def check_preparation(epsilon: float | None = None, step: float | None = None) -> None:
    """Raise ValueError for a value out of range, or two at once."""
    if epsilon is not None and step is not None:
        raise ValueError(f"simplify {epsilon} and resample {step} cannot both be given")
    if epsilon is not None and not 0 <= epsilon < math.inf:
        raise ValueError(f"simplify must be >= 0 and finite, got {epsilon}")
    if step is not None and not 0 < step < math.inf:
        raise ValueError(f"resample must be > 0 and finite, got {step}")


def shapely() -> ModuleType:
    """Shapely, imported when something is simplified."""
    try:
        import shapely
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("simplifying strokes needs Shapely: pip install 'fusedmdn[strokes]'") from error
    return shapely


def simplify(strokes: S, epsilon: float) -> S:
    """Fewer points: each pen stroke by Ramer, Douglas and Peucker's algorithm, as sketch-rnn's data (2 in 256 x 256).

    The points that stay are some of those that were, the first and last of every pen stroke among them; the others lie
    within `epsilon` of the line that is left. 0 takes out what lies on a straight line. Of a pen stroke of more than
    2,000 segments, every 2,000th point stays as well.

    Args:
        strokes: a sequence or a set.
        epsilon: the tolerance, in raw units.

    Raises:
        ValueError: the tolerance is negative or not finite.
        ModuleNotFoundError: there is no Shapely.
    """
    check_preparation(epsilon, None)
    geos, data = shapely(), _set_of(strokes)
    firsts, lasts = _lines(data)
    kept = np.zeros(len(data.points), bool)
    kept[firsts] = kept[lasts] = True
    lines = zip(firsts.tolist(), lasts.tolist(), strict=True)
    pieces = [(k, min(k + PIECE, last)) for first, last in lines for k in range(first, last, PIECE)]
    if pieces:
        places = np.concatenate([np.arange(a, b + 1) for a, b in pieces])
        line = np.repeat(np.arange(len(pieces)), [b - a + 1 for a, b in pieces])
        # z takes no part in distances: it carries a point's place through
        whole = geos.linestrings(np.column_stack([_positions(data)[places], places]), indices=line)
        left = geos.get_coordinates(geos.simplify(whole, epsilon, preserve_topology=False), include_z=True)
        kept[left[:, 2].astype(np.int64)] = True
    counts = np.concatenate([[0], np.cumsum(kept)])
    points = np.column_stack([merged(data.points[:, :2], kept), data.points[kept, 2]])
    return _as_given(replace(data, points=points, offsets=counts[data.offsets]), strokes)


def resample(strokes: S, step: float) -> S:
    """Points evenly spaced along every pen stroke: the first and last stay, and those between are set anew.

    Args:
        strokes: a sequence or a set; a set's quantum becomes 0, since the points lie on no grid any more.
        step: the distance along the line, in raw units; as much less as makes it go in a whole number of times.

    Raises:
        ValueError: the distance is not above 0 and finite, or would make too many points.
    """
    check_preparation(None, step)
    data = _set_of(strokes)
    positions, (firsts, lasts) = _positions(data), _lines(data)
    along = np.zeros(len(positions))
    along[1:] = np.hypot(*np.diff(positions, axis=0).T)
    along[firsts] = 0
    most = max(MOST_POINTS, 10 * len(positions))
    with np.errstate(over="ignore"):
        if not along.sum() / step + len(firsts) <= most:
            raise ValueError(f"resample {step}: would make more than {most:,} points of {len(positions):,}")
    lines, counts = [], np.zeros(len(positions), np.int64)
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        line, length = positions[first : last + 1], np.cumsum(along[first : last + 1])
        even = np.linspace(0, length[-1], math.ceil(length[-1] / step) + 1)
        lines.append(np.column_stack([np.interp(even, length, line[:, axis]) for axis in (0, 1)]))
        lines[-1][-1] = line[-1]
        counts[last] = len(even)
    ends = np.concatenate([[0], np.cumsum(counts)])
    points = np.zeros((ends[-1], 3), np.float32)
    points[ends[lasts + 1] - 1, 2] = data.points[lasts, 2]
    offsets = ends[data.offsets]
    if lines:
        placed = np.concatenate(lines)
        points[:, :2] = np.diff(placed, axis=0, prepend=np.zeros((1, 2)))
        starts = offsets[:-1][np.diff(offsets) > 0]
        points[starts, :2] = placed[starts]
    return _as_given(replace(data, points=points, offsets=offsets, quantum=0.0), strokes)


def stretch(strokes: Strokes, deviation: float, random: np.random.Generator) -> Strokes:
    """x and y each times a random factor, uniform about 1 with this standard deviation.

    Raises:
        ValueError: the deviation is negative or not finite.
    """
    return _mapped(strokes, deviation, STRETCH, random)


def slant(strokes: Strokes, deviation: float, random: np.random.Generator) -> Strokes:
    """x moved by y times a random slope, uniform about 0 with this standard deviation.

    Raises:
        ValueError: the deviation is negative or not finite.
    """
    return _mapped(strokes, deviation, SLANT, random)


def drop(strokes: Strokes, probability: float, random: np.random.Generator) -> Strokes:
    """Without some points, chosen at random as sketch-rnn does; the points after them stay where they are.

    Args:
        strokes: a sequence.
        probability: of each point that `droppable` names.
        random: one number is drawn for every point.

    Raises:
        ValueError: the probability is not in [0, 1].
    """
    check_probability("drop", probability)
    kept = ~(droppable(strokes.points[:, 2]) & (random.random(len(strokes)) < probability))
    return Strokes(np.column_stack([merged(strokes.points[:, :2], kept), strokes.points[kept, 2]]), strokes.label)


def check_probability(name: str, value: float) -> None:
    """Raise ValueError for what is none."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def droppable(eos: NDArray[Any]) -> NDArray[np.bool_]:
    """(n) which points sketch-rnn may drop: all but the first two and the last two of every pen stroke."""
    last = eos == 1
    last[-1:] = True
    first = np.roll(last, 1)
    stays = first | last
    stays[1:] |= first[:-1]
    stays[:-1] |= last[1:]
    return ~stays


def merged(offsets: FloatArray, kept: NDArray[np.bool_]) -> FloatArray:
    """(n, 2) offsets -> those of the points that are kept, to each added what was dropped since the one before it.

    The last point of every sequence must be kept.
    """
    ends = np.flatnonzero(kept)
    if len(ends) == len(offsets):
        return offsets
    starts = np.concatenate([[0], ends[:-1] + 1])
    with np.errstate(over="ignore"):  # what is not finite is refused where strokes are made of it
        return np.add.reduceat(offsets, starts, axis=0, dtype=np.float64).astype(np.float32)


def linear_map(deviation: float, entries: FloatArray, noise: NDArray[Any]) -> FloatArray:
    """(2, 2) by which rows (dx, dy) are multiplied: the identity and, of this standard deviation, random entries.

    Args:
        deviation: of an entry that is 1 in `entries`.
        entries: (2, 2) the entries' shares of it.
        noise: (2, 2) uniform in ±1/2.
    """
    return np.eye(2, dtype=np.float32) + np.float32(deviation * 12**0.5) * entries * noise.astype(np.float32)


def _mapped(strokes: Strokes, deviation: float, entries: FloatArray, random: np.random.Generator) -> Strokes:
    if not 0 <= deviation < math.inf:
        raise ValueError(f"the standard deviation must be >= 0 and finite, got {deviation}")
    points = strokes.points.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        points[:, :2] @= linear_map(deviation, entries, random.random((2, 2)) - 0.5)
    return Strokes(points, strokes.label)


def _set_of(strokes: Strokes | StrokeSet) -> StrokeSet:
    return StrokeSet.of([strokes]) if isinstance(strokes, Strokes) else strokes


def _as_given(data: StrokeSet, like: S) -> S:
    return data[0] if isinstance(like, Strokes) else data  # type: ignore[return-value]


def _lines(data: StrokeSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of the first and the last point of every pen stroke."""
    last = data.points[:, 2] == 1
    last[data.offsets[1:][data.lengths > 0] - 1] = True
    lasts = np.flatnonzero(last)
    firsts = np.roll(lasts + 1, 1)
    firsts[:1] = 0
    return firsts, lasts


def _positions(data: StrokeSet) -> NDArray[np.float64]:
    """(N, 2) absolute points, summed within each sequence."""
    parts = np.split(data.points[:, :2], data.offsets[1:-1])
    return np.concatenate([np.zeros((0, 2)), *(np.cumsum(part, axis=0, dtype=np.float64) for part in parts)])
