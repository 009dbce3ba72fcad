"""KanjiVG: its drawings of one character each (kanji/06728.svg), and all of them in one document (kanjivg-*.xml)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ..dataset import StrokeFileError, StrokeSet
from ..quoting import told
from ..strokes import Strokes
from . import svg
from .markup import Document, local

ROOT = "kanjivg"
STEP, QUANTUM = 8.0, 0.25  # of the embedded characters, in the 109 x 109 units of the box
FINE = 16  # chords of a curve, likewise
POINTS, STROKES, MOST = 1000, 200, 3_000_000  # of a pen stroke, of a character, of a document
NAMED = re.compile(r"kvg:(?:kanji_|StrokePaths_)?([0-9a-f]{4,6})(-\w+)?$")
ELEMENT = "kvg:element"


def is_kanjivg(document: Document) -> bool:
    """Whether an SVG document is one of KanjiVG's."""
    return any(e.get("id", "").startswith("kvg:") for e in document.root)


def is_variant(path: Path) -> bool:
    """Whether a file is a second drawing of a character, such as 06728-Kaisho.svg."""
    match = NAMED.match(f"kvg:{path.stem}")
    return bool(match and match[2])


def from_documents(documents: Iterable[Document], step: float = STEP, quantum: float = QUANTUM) -> StrokeSet:
    """A sequence a character, labelled with it, where it is in the 109 x 109 box, y downward; no variants of a set.

    Args:
        documents: drawings of one character each, or of all.
        step: between points along a pen stroke, about.
        quantum: positions are rounded to its multiples. With these defaults, what KanjiVG 20260714 holds becomes the
            embedded set, bit for bit.

    Raises:
        StrokeFileError: a path that is none, or no strokes.
        ModuleNotFoundError: svg.path is missing (the extra [strokes] brings it).
        ValueError: step or quantum is not positive.
    """
    if not (step > 0 and quantum > 0):
        raise ValueError(f"step and quantum must be positive, got {step} and {quantum}")
    characters = [found for document in documents for found in _characters(document, step, quantum)]
    return StrokeSet.of(characters, quantum)


def _characters(document: Document, step: float, quantum: float) -> Iterator[Strokes]:
    if local(document.root.tag) != ROOT:
        yield _character(document, document.root, step, quantum)
        return
    points = 0
    for element in document.root:
        match = NAMED.match(element.get("id", ""))
        if local(element.tag) == "kanji" and not (match and match[2]):
            character = _character(document, element, step, quantum)
            points += len(character)
            if points > MOST:
                raise StrokeFileError(f"{document.path}: more than {MOST} points at a step of {step:g}")
            yield character


def _character(document: Document, element: Element, step: float, quantum: float) -> Strokes:
    lines = []
    for path in element.iter():
        if local(path.tag) == "path":
            try:
                strokes = svg.path_strokes(path.get("d", ""), FINE)
                if len(strokes) != 1:
                    raise ValueError(f"found {len(strokes)} pen strokes, expected one")
                line = svg.evenly(svg.joined(strokes[0]), step, most=POINTS)
            except ValueError as error:
                raise StrokeFileError(f"{document.path}: {told(path.get('id', '<path>'))}: {told(error)}") from error
            lines.append(np.rint(line / quantum) * quantum)
            if len(lines) > STROKES:
                raise StrokeFileError(f"{document.path}: a character of more than {STROKES} pen strokes")
    if not lines:
        name = told(element.get("id", "a character"))
        raise StrokeFileError(f"{document.path}: found no <path> of {name}, expected some")
    try:
        return Strokes.from_polylines(lines, _label(document, element))
    except ValueError as error:
        raise StrokeFileError(f"{document.path}: {error}") from error


def _label(document: Document, element: Element) -> str:
    """The character whose code point is in an id; else its kvg:element; else that of the file's name."""
    groups = [group for group in element.iter() if local(group.tag) in ("kanji", "g")]
    names = [match[1] for group in groups if (match := NAMED.match(group.get("id", "")))]
    elements = [text for group in groups if (text := group.get(ELEMENT))]
    match = NAMED.match(f"kvg:{document.path.stem}")
    for label in (*map(_character_of, names[:1]), *elements[:1], _character_of(match[1]) if match else ""):
        if label:
            return label
    return ""


def _character_of(code: str) -> str:
    point = int(code, 16)
    return "" if point > 0x10FFFF or 0xD800 <= point < 0xE000 else chr(point)
