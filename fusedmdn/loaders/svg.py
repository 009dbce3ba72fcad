"""SVG drawings: <path>, <polyline>, <polygon> and <line> elements, a document a sequence, pen strokes in their order.

Transforms are applied; the viewBox is not, so units are those the drawing is written in. Other shapes and text are not
pen strokes and are left out, as is what is defined for later use, or not displayed. Paths are parsed by `svg.path`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ..dataset import StrokeFileError, StrokeSet
from ..quoting import shown, told
from ..strokes import Strokes
from .markup import NUMBER, Document, local
from .svg_tree import drawn

ROOT = "svg"
FINE = 64  # chords that a curve's length is measured by
STEPS = 100  # to the longer side of a drawing
POINTS, CURVES, LETTERS = 1_000_000, 30_000, 1 << 20  # of a drawing, of a drawing, of an attribute
COMMAND = re.compile(r"([MmZzLlHhVvCcSsQqTtAa])")
TAKEN = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 1}  # an arc's flags may touch
Lines = list[NDArray[np.float64]]


def from_documents(documents: Iterable[Document], step: float | None = None) -> StrokeSet:
    """A sequence a document, in its units, where it is in the drawing; unlabelled.

    Args:
        documents: whose roots are ROOT elements.
        step: between points along a curve, about: every curve becomes even pieces that end where it does. None: a
            hundredth of the longer side of the drawing. Straight lines keep their ends, and get no points between.

    Raises:
        StrokeFileError: a path, points or a transform that is none; a <use>; no strokes at all.
        ModuleNotFoundError: svg.path is missing (the extra [strokes] brings it).
        ValueError: the step is not positive.
    """
    if step is not None and not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    return StrokeSet.of([Strokes.from_polylines(_strokes(document, step)) for document in documents])


def _strokes(document: Document, step: float | None) -> Lines:
    pieces, lines, curves = [], 0, 0
    for element, matrix in drawn(document):
        for stroke in _of_element(document, element, matrix):
            pieces.append(stroke)
            lines, curves = lines + len(stroke), curves + sum(len(line) > 2 for line in stroke)
            if lines > POINTS or curves > CURVES:
                raise StrokeFileError(f"{document.path}: more than {POINTS} lines, or {CURVES} curves")
    if not pieces:
        raise StrokeFileError(f"{document.path}: found no <path>, <polyline>, <polygon> or <line>, expected some")
    points = np.concatenate([line for stroke in pieces for line in stroke])
    if not (np.abs(points) < 1e30).all():
        raise StrokeFileError(f"{document.path}: holds a point that is beyond 1e30")
    if step is None:
        step = max(float(np.ptp(points, axis=0).max()) / STEPS, 1e-9)
    sampled, total = [], 0
    for stroke in pieces:
        resampled = [line if len(line) <= 2 else evenly(line, step, math.ceil) for line in stroke]
        total += sum(map(len, resampled))
        if total > POINTS:
            raise StrokeFileError(f"{document.path}: more than {POINTS} points at a step of {step:g}")
        sampled.append(joined(resampled))
    return sampled


def evenly(
    line: NDArray[np.float64], step: float, rounded: Callable[[float], int] = round, most: int = POINTS
) -> NDArray[np.float64]:
    """(n, 2) points at even distances along a polyline, about `step` apart, its ends among them; at most `most` + 1."""
    with np.errstate(all="ignore"):
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    pieces = max(1, rounded(min(float(along[-1]) / step, float(most))))
    at = np.linspace(0, along[-1], pieces + 1)
    return np.column_stack([np.interp(at, along, line[:, 0]), np.interp(at, along, line[:, 1])])


def joined(lines: Lines) -> NDArray[np.float64]:
    """One polyline of those that go on from one another; a dot, drawn as a line to itself, is one point."""
    line = np.concatenate([lines[0], *(line[1:] for line in lines[1:])])
    return line[:1] if (line == line[0]).all() else line


def _of_element(document: Document, element: Element, matrix: NDArray[np.float64]) -> Iterator[Lines]:
    """Pen strokes of an element: straight lines of two points, and curves as fine polylines."""
    name = local(element.tag)
    try:
        if name == "path":
            strokes = path_strokes(element.get("d", ""))
        elif name in ("polyline", "polygon"):
            strokes = [_pairs(element.get("points", ""), closed=name == "polygon")]
        elif name == "line":
            ends = [float(element.get(side, 0)) for side in ("x1", "y1", "x2", "y2")]
            strokes = [[np.array(ends).reshape(2, 2)]]
        else:
            return
    except ValueError as error:
        raise StrokeFileError(f"{document.path}: <{name}>: {told(error)}") from error
    with np.errstate(all="ignore"):
        yield from ([line @ matrix[:, :2].T + matrix[:, 2] for line in stroke] for stroke in strokes if stroke)


def _pairs(text: str, closed: bool) -> Lines:
    _check_length(text)
    values = [float(number) for number in NUMBER.findall(text)]
    if NUMBER.sub("", text).strip(" \t\r\n,") or len(values) % 2:
        raise ValueError(f"points are {shown(text)}, expected pairs of numbers")
    points = np.array(values).reshape(-1, 2)
    if closed:
        points = np.concatenate([points, points[:1]])
    return [points[i : i + 2] for i in range(max(len(points) - 1, min(len(points), 1)))]


def path_strokes(text: str, fine: int = FINE) -> list[Lines]:
    """Pen strokes of a path: of every part between moves, lines of two points, and curves of `fine` chords.

    Raises:
        ValueError: it is no path. Where SVG would draw what comes before, nothing is.
    """
    _check_length(text)
    _check_path(text)
    library = svg_path()
    try:
        segments = library.parse_path(text)
    except Exception as error:  # of what is no path, it raises nearly everything
        raise ValueError(f"{shown(text)} is no path: {told(error)}") from error
    strokes: list[Lines] = []
    moved = True
    for segment in segments:
        if isinstance(segment, library.Move):
            moved = True
            continue
        try:
            line = _line(library, segment, fine)
        except (ArithmeticError, ValueError) as error:
            raise ValueError(f"{shown(text)} has a curve without numbers: {told(error)}") from error
        if moved:
            strokes.append([])
        strokes[-1].append(line)
        moved = isinstance(segment, library.Close)  # what goes on after z begins anew
    return strokes


def svg_path() -> Any:
    """The package svg.path; raises ModuleNotFoundError, naming the extra that brings it."""
    try:
        import svg.path
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("SVG and KanjiVG files need svg.path: pip install 'fusedmdn[strokes]'") from error
    return svg.path


def _check_length(text: str) -> None:
    if len(text) > LETTERS:
        raise ValueError(f"{len(text)} letters; expected at most {LETTERS}")


def _check_path(text: str) -> None:
    """The library ends a path silently where it is not understood; that is refused before."""
    pieces = COMMAND.split(text)
    if pieces[0].strip() or (len(pieces) > 1 and pieces[1] not in "Mm"):
        raise ValueError(f"{shown(text)} is no path: it begins with no move")
    for command, given in zip(pieces[1::2], pieces[2::2], strict=True):
        if NUMBER.sub("", given).strip(" \t\r\n,"):
            raise ValueError(f"{shown(given)} after {command}, expected numbers")
        count, taken = len(NUMBER.findall(given)), TAKEN.get(command.upper(), 0)
        if count % taken or not count if taken else count:
            raise ValueError(f"{count} numbers after {command} in {shown(text)}, expected {taken} or a multiple")


def _line(library: Any, segment: Any, fine: int) -> NDArray[np.float64]:
    straight = isinstance(segment, (library.Line, library.Close))
    if straight or (isinstance(segment, library.Arc) and segment.start == segment.end):  # which draws nothing
        z = np.array([segment.start, segment.end])
    elif isinstance(segment, library.Arc):
        z = np.array([segment.point(k / fine) for k in range(fine + 1)])
        z[0], z[-1] = segment.start, segment.end
    else:
        t = np.linspace(0, 1, fine + 1)
        a, d = segment.start, segment.end
        with np.errstate(all="ignore"):
            if isinstance(segment, library.CubicBezier):
                b, c = segment.control1, segment.control2
                z = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
            else:
                z = (1 - t) ** 2 * a + 2 * (1 - t) * t * segment.control + t**2 * d
    return np.column_stack([z.real, z.imag])
