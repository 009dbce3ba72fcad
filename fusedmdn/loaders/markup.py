"""XML from strangers, as a tree: no entities, no other files, no document but of a known kind, never beyond a size."""

from __future__ import annotations

import gzip
import reprlib
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..dataset import StrokeFileError

LARGEST = 1 << 26  # bytes of a document; all of KanjiVG in one are half of it
UNZIPPED, TIMES = 1 << 24, 30  # a .gz may always unpack to so many bytes, and beyond that to so many times its size
DEEPEST = 200  # elements in each other
SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 80, 80


class Document(NamedTuple):
    """A file and the root of what it holds."""

    path: Path
    root: Element


def read(path: Path, roots: Collection[str]) -> Document:
    """The document of an .xml file, or of an .xml.gz file, whose root is an element of one of these names.

    Raises:
        StrokeFileError: it is missing, larger than any file of strokes, no XML, or of another kind; or it declares an
            entity.
    """
    try:
        with open(path, "rb") as file:
            return Document(path, _parsed(path, _bytes(path, file), roots))
    except expat.ExpatError as error:
        raise StrokeFileError(f"{path}: cannot be read as XML: {error}") from error
    except (OSError, EOFError, zlib.error, ValueError, LookupError) as error:  # the last of encodings nobody knows
        if isinstance(error, StrokeFileError):
            raise
        raise StrokeFileError(f"{path}: cannot be read: {error}") from error


def local(tag: str) -> str:
    """An element's name without its prefix."""
    return tag.rpartition(":")[2]


def shown(found: object) -> str:
    """As errors show what they found: not all of a long text, nor of what is nested."""
    return SHORT.repr(found)


def _bytes(path: Path, file: IO[bytes]) -> bytes:
    size = file.seek(0, 2)
    file.seek(0)
    if path.suffix != ".gz":
        most, data = LARGEST, file.read(LARGEST + 1)
    else:
        most = min(LARGEST, max(UNZIPPED, TIMES * size))
        with gzip.GzipFile(fileobj=file) as unzipped:
            data = unzipped.read(most + 1)
    if len(data) > most:
        raise StrokeFileError(f"{path}: {size} bytes that hold more than {most} of XML are no strokes")
    return data


def _parsed(path: Path, data: bytes, roots: Collection[str]) -> Element:
    builder, depth = TreeBuilder(), 0
    parser = expat.ParserCreate()

    def first(tag: str, attributes: dict[str, str]) -> None:
        if local(tag) not in roots:
            raise StrokeFileError(f"{path}: found <{shown(tag)[1:-1]}>, expected <{'>, <'.join(roots)}>")
        parser.StartElementHandler = start
        start(tag, attributes)

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise StrokeFileError(f"{path}: elements are nested more than {DEEPEST} times")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def entity(name: str, *_: object) -> None:
        raise StrokeFileError(f"{path}: declares the entity {shown(name)}; strokes need none")

    parser.specified_attributes = True  # what a DTD adds to every element is not strokes, and may be large
    parser.buffer_text = True
    parser.StartElementHandler = first
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = entity
    parser.Parse(data, True)
    return builder.close()
