"""Sealed JSON: an object that carries its format and the SHA-256 of the rest of itself, so that damage is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import files


class SealError(ValueError):
    """A file that is no sealed JSON of the format expected; the message names it."""


def write(path: str | Path, document: Mapping[str, Any]) -> str:
    """Write an object with its "sha256", atomically; gives that."""
    digest = digest_of(document)
    files.write(path, json.dumps({**document, "sha256": digest}, indent=2) + "\n")
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
    """JSON to the letter: no name twice in an object, and no NaN or infinity.

    Raises:
        ValueError: it is not, or is nested too deep.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None) if len({*names}) < len(names) else None
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON's")

    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything but "sha256"."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
