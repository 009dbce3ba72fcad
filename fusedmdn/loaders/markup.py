"""XML from strangers, as a tree: no other files, no document but of a known kind, never beyond a size.

Entities are what short texts are called (Illustrator names its namespaces so); one that holds another is refused.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..dataset import StrokeFileError
from ..quoting import shown, told

LARGEST = 1 << 26  # bytes of a document; all of KanjiVG in one are half of it
UNZIPPED, TIMES = 1 << 24, 30  # a .gz may always unpack to so many bytes, and beyond that to so many times its size
DEEPEST = 200  # elements in each other
NODES, MOST_NODES = 1 << 17, 1 << 21  # elements and attributes that any file may have, and that none may exceed
BYTES = 2  # between: of a file, for each of them
ENTITIES, ENTITY, REFERENCES = 64, 200, 1 << 14  # their number, the letters of each, and the &s of the document
UNSIGNED = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
NUMBER = re.compile(rf"[-+]?{UNSIGNED}")


class Document(NamedTuple):
    """A file and the root of what it holds."""

    path: Path
    root: Element


def read(path: Path, roots: Collection[str]) -> Document:
    """The document of an .xml file, or of an .xml.gz file, whose root is an element of one of these names.

    Raises:
        StrokeFileError: it is missing, larger than any file of strokes, no XML, or of another kind; or it declares an
            entity that is not a short text.
    """
    try:
        with open(path, "rb") as file:
            data, size = _bytes(path, file)
            return Document(path, _parsed(path, data, size, roots))
    except expat.ExpatError as error:
        raise StrokeFileError(f"{path}: cannot be read as XML: {told(error)}") from error
    except (OSError, EOFError, zlib.error, ValueError, LookupError) as error:  # the last of encodings nobody knows
        if isinstance(error, StrokeFileError):
            raise
        raise StrokeFileError(f"{path}: cannot be read: {told(error)}") from error


def local(tag: str) -> str:
    """An element's name without its prefix."""
    return tag.rpartition(":")[2]


def _bytes(path: Path, file: IO[bytes]) -> tuple[bytes, int]:
    """What is in a file, unpacked, and the file's own size."""
    size = file.seek(0, 2)
    file.seek(0)
    if path.suffix.lower() != ".gz":
        most, data = LARGEST, file.read(min(size, LARGEST + 1))
    else:
        most = min(LARGEST, max(UNZIPPED, TIMES * size))
        with gzip.GzipFile(fileobj=file) as unzipped:
            data = unzipped.read(most + 1)
    if len(data) > most:
        raise StrokeFileError(f"{path}: {size} bytes that hold more than {most} of XML are no strokes")
    return data, size


def _parsed(path: Path, data: bytes, size: int, roots: Collection[str]) -> Element:
    builder, depth, nodes, entities = TreeBuilder(), 0, 0, 0
    most = min(max(NODES, size // BYTES), MOST_NODES)
    parser = expat.ParserCreate()

    def first(tag: str, attributes: dict[str, str]) -> None:
        if local(tag) not in roots:
            raise StrokeFileError(f"{path}: found <{shown(tag)[1:-1]}>, expected <{'>, <'.join(roots)}>")
        parser.StartElementHandler = start
        start(tag, attributes)

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, nodes
        depth, nodes = depth + 1, nodes + 1 + len(attributes)
        if depth > DEEPEST:
            raise StrokeFileError(f"{path}: elements are nested more than {DEEPEST} times")
        if nodes > most:
            raise StrokeFileError(f"{path}: {size} bytes of more than {most} elements and attributes are no strokes")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def entity(name: str, of_dtd: bool, value: str | None, *_: object) -> None:
        nonlocal entities
        entities += 1
        short = not of_dtd and value is not None and len(value) <= ENTITY and not set("&%<") & set(value)
        if not short or entities > ENTITIES or data.count(b"&") > REFERENCES:
            raise StrokeFileError(f"{path}: declares the entity {shown(name)}, which is not one of a few short texts")

    parser.specified_attributes = True  # what a DTD adds to every element is not strokes, and may be large
    parser.buffer_text = True
    parser.StartElementHandler = first
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = entity
    parser.Parse(data, True)
    return builder.close()
