"""Sealed JSON: an object that carries its format and the SHA-256 of the rest of itself, so that damage is found."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import files

DEEPEST = 32
TOO_DEEP = f"nested more than {DEEPEST} times"


class SealError(ValueError):
    """A file that is no sealed JSON of the format expected; the message names it."""


def write(path: str | Path, document: Mapping[str, Any]) -> str:
    """Write an object with its "sha256", atomically; gives that.

    Raises ValueError, nothing being written, for a number that is not finite: `read` would not take it.
    """
    digest = digest_of(document)
    files.write(path, json.dumps({**document, "sha256": digest}, indent=2, allow_nan=False) + "\n")
    return digest


def read(path: str | Path, expected: str) -> dict[str, Any]:
    """The object, its "format" and "sha256" found right.

    Raises:
        FileNotFoundError: it is not there.
        SealError: it cannot be read, is no JSON object, of another format, or not what was sealed.
    """
    try:
        document = parse(Path(path).read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise SealError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("format") != expected:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise SealError(f"{path}: expected format {expected!r}, got {found!r}")
    if document.get("sha256") != digest_of(document):
        raise SealError(f"{path}: its contents do not match its SHA-256; it is damaged or was edited by hand")
    return document


def parse(data: bytes) -> Any:
    """JSON to the letter: no name twice in an object, no number that is not finite, nested DEEPEST times at most.

    Raises:
        ValueError: it is not.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            name = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{name!r} is there twice")
        return found

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"{number} is no finite number")
        return value

    try:
        document = json.loads(data.decode(), object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [document]
    for _ in range(DEEPEST):
        level = [v for value in level if isinstance(value, (dict, list)) for v in _inside(value)]
        if not level:
            return document
    raise ValueError(TOO_DEEP)


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything but "sha256"."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
