"""Files that are either whole or not there: temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes `path`'s place when the block ends well, and vanishes when it does not.

    A crash at any point, kill -9 included, leaves the old file or the new one (and perhaps a `.*.tmp` beside it, which
    `sweep` removes). Raises OSError, the old file intact, if the disk is full or the directory is missing.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # pods all have pid 1
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file did not fit
        raise
    sync_directory(path.parent)


def write(path: str | Path, data: bytes | str) -> None:
    """Replace a file's contents, atomically."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def sync_directory(directory: Path) -> None:
    """Make a rename durable; a no-op where directories cannot be opened (Windows)."""
    try:
        handle: Any = os.open(directory, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(directory: Path) -> None:
    """Remove what writers that were killed left behind."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
