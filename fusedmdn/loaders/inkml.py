"""InkML (W3C, 2011): <trace> elements, a document a sequence, as CROHME and MathWriting bring them.

Read are the X and Y channels of what the pen wrote; brushes, mappings, canvas transforms and views are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ..dataset import StrokeFileError, StrokeSet
from ..quoting import shown, told
from . import recorded
from .markup import UNSIGNED, Document, local

ROOT = "ink"
LABELS = ("label", "truth", "transcription")  # types of the annotation that is one; the first that is there
VALUE = re.compile(rf"""\s*(?:([!'"])\s*)?(?:(?:([-+])\s*)?(?:({UNSIGNED})|\#([0-9A-Fa-f]{{1,16}}))|([*?TF]))\s*""")
LETTERS = 1 << 22  # of a trace
ORDERS = {"!": 0, "'": 1, '"': 2}  # explicit value, first and second difference


def from_documents(documents: Iterable[Document]) -> StrokeSet:
    """A sequence a document, in the file's units, each beginning at (0, 0); y downward, or flipped where it says so.

    Raises:
        StrokeFileError: no traces, channels without X and Y, a trace that does not give them, or goes on from none.
    """
    sequences = []
    for document in documents:
        lines = _traces(document)
        try:
            sequences.append(recorded.from_origin(lines, _label(document)))
        except ValueError as error:
            raise StrokeFileError(f"{document.path}: {told(error)}") from error
    return recorded.stroke_set(sequences)


def _label(document: Document) -> str:
    found = {e.get("type"): (e.text or "").strip() for e in document.root if local(e.tag) == "annotation"}
    return next((found[kind] for kind in LABELS if found.get(kind)), "")


def _traces(document: Document) -> list[NDArray[np.float64]]:
    channels, regular, sign = _channels(document)
    lines: list[list[NDArray[np.float64]]] = []
    line_of: dict[str, list[NDArray[np.float64]]] = {}
    for element in _written(document.root):
        name = element.get("xml:id") or element.get("id")
        try:
            piece = _points("".join(element.itertext()), channels, regular) * sign
            line = _continued(element, lines, line_of)
        except ValueError as error:
            raise StrokeFileError(f"{document.path}: trace {shown(name)}: {told(error)}") from error
        line.append(piece)
        if name:
            line_of[name] = line
    if not lines:
        raise StrokeFileError(f"{document.path}: found no <trace>, expected some")
    return [np.concatenate(line) for line in lines]


def _written(root: Element) -> Iterator[Element]:
    """The traces that the pen wrote; those among the definitions are there to be referred to."""
    waiting = [root]
    while waiting:
        element = waiting.pop()
        if local(element.tag) == "trace" and element.get("type") != "penUp":
            yield element
        elif local(element.tag) != "definitions":
            waiting.extend(reversed(element))


def _continued(
    trace: Element, lines: list[list[NDArray[np.float64]]], line_of: dict[str, list[NDArray[np.float64]]]
) -> list[NDArray[np.float64]]:
    """The pen stroke that a trace is a piece of: that of the trace it names, or of the last one; else a new one."""
    if trace.get("continuation") in ("middle", "end"):
        prior = trace.get("priorRef", "").strip().removeprefix("#")
        if prior and prior not in line_of:
            raise ValueError(f"goes on from {shown(prior)}, which is no trace before it")
        if prior or lines:
            return line_of[prior] if prior else lines[-1]
    lines.append([])
    return lines[-1]


def _channels(document: Document) -> tuple[list[str], int, tuple[float, float]]:
    """Names of the channels, how many of them every point has, and the signs that make x rightward and y downward."""
    formats = [e for e in document.root.iter() if local(e.tag) == "traceFormat"]
    found = []
    for element in formats:
        regular = [e for e in element if local(e.tag) == "channel"]
        rest = [e for part in element if local(part.tag) == "intermittentChannels" for e in part]
        named = {e.get("name", ""): -1.0 if e.get("orientation") == "-ve" else 1.0 for e in chain(regular, rest)}
        names = [e.get("name", "") for e in chain(regular, rest)]
        if not {"X", "Y"} <= set(names[: len(regular)]):
            raise StrokeFileError(f"{document.path}: channels {shown(names)}, expected X and Y among them")
        found.append((names, len(regular), (named["X"], named["Y"])))
    if any(one != found[0] for one in found):
        raise StrokeFileError(f"{document.path}: has {len(found)} traceFormats that differ, expected one")
    return found[0] if found else (["X", "Y"], 2, (1.0, 1.0))


def _points(text: str, channels: list[str], regular: int) -> NDArray[np.float64]:
    """(n, 2) x and y of a trace."""
    columns = channels.index("X"), channels.index("Y")
    order, value, speed = [0] * len(channels), [0.0] * len(channels), [0.0] * len(channels)
    acceleration = [0.0] * len(channels)
    rows: list[tuple[float, float]] = []
    if len(text) > LETTERS:
        raise ValueError(f"{len(text)} letters; expected at most {LETTERS}")
    points = text.split(",")
    if not points[-1].strip():  # the last comma may be one after the last point
        points.pop()
    for number, written in enumerate(points):
        point = written.strip()
        at = channel = 0
        while at < len(point):
            match = VALUE.match(point, at)
            if match is None or channel == len(channels):
                wanted = f"{regular} to {len(channels)}" if regular < len(channels) else str(regular)
                raise ValueError(f"point {number} is {shown(point)}, expected {wanted} values")
            prefix, minus, decimal, hexadecimal, other = match.groups()
            at, i = match.end(), channel
            channel += 1
            if i not in columns:
                continue
            if prefix:
                order[i] = ORDERS[prefix]
            if other and (other != "*" or not rows):
                raise ValueError(f"point {number} is {shown(point)}, expected numbers for X and Y")
            given = float(decimal) if decimal else float(int(hexadecimal, 16)) if hexadecimal else None
            if given is not None and minus == "-":
                given = -given
            if order[i] and not rows:
                raise ValueError(f"point {number} is {shown(point)}, expected a first point that is no difference")
            before = value[i]
            if order[i] == 0:
                value[i] = before if given is None else given
                speed[i], acceleration[i] = value[i] - before if rows else 0.0, 0.0
            elif order[i] == 1:
                speed[i], acceleration[i] = speed[i] if given is None else given, 0.0
                value[i] += speed[i]
            else:
                acceleration[i] = acceleration[i] if given is None else given
                speed[i] += acceleration[i]
                value[i] += speed[i]
        if channel < regular:
            raise ValueError(f"point {number} is {shown(point)}, expected {regular} values")
        rows.append((value[columns[0]], value[columns[1]]))
    return np.array(rows, np.float64).reshape(-1, 2)
