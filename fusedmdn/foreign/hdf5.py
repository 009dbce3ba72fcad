"""What Keras has put into an HDF5 file: groups, their attributes, and plain arrays.

Read by h5py in a process of its own, with bounds on its time and memory: on a damaged file, HDF5's library may loop for
ever or crash. Run as a program, this file is that process: HDF5 on its input, a line of JSON and raw numbers on its
output. So it imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import re
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PROGRAM = [sys.executable, __file__]
SECONDS = 60
MEMORY = 2 << 30  # bytes, and eight times the file
LIMIT, DEEPEST = 1 << 16, 16  # things in a file, and how deep they may lie in groups
ATTRIBUTES = re.compile(r"model_config|keras_version|(layer|weight)_names\d*")


class Held(NamedTuple):
    """Groups by their full names, with their attributes (text, or lists of it); arrays, or why they are not read."""

    groups: dict[str, dict[str, Any]]
    arrays: dict[str, NDArray[np.float64] | str]


def read(data: bytes) -> Held:
    """What is in a file's bytes.

    Raises:
        ValueError: it is damaged, or took too long or too much memory.
        ModuleNotFoundError: h5py is missing (the extra [convert] brings it).
    """
    if importlib.util.find_spec("h5py") is None:
        raise ModuleNotFoundError("Keras files need h5py: pip install 'fusedmdn[convert]'")
    line, _, numbers = isolated(data).partition(b"\n")
    told = json.loads(line)
    if "error" in told:
        raise ValueError(told["error"])
    arrays: dict[str, NDArray[np.float64] | str] = dict(told["refused"])
    for name, shape, start in told["arrays"]:
        arrays[name] = np.frombuffer(numbers, "<f8", math.prod(shape), start).reshape(shape)
    return Held(told["groups"], arrays)


def isolated(data: bytes) -> bytes:
    """What `dump` gives, of another process."""
    try:
        done = subprocess.run(PROGRAM, input=data, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"HDF5's library did not come to an end in {SECONDS} s") from None
    if done.returncode or b"\n" not in done.stdout:
        raise ValueError(f"HDF5's library failed (exit code {done.returncode})")
    return done.stdout


def dump(data: bytes) -> bytes:
    """A line of JSON that says what is in a file, and its arrays' numbers as float64."""
    import h5py

    groups: dict[str, Any] = {}
    arrays: list[Any] = []
    refused: dict[str, str] = {}
    numbers, taken = io.BytesIO(), 0

    def attribute(holder: Any, name: str) -> Any:
        kept = holder.attrs.get_id(name)
        if math.prod(kept.shape) > LIMIT or math.prod(kept.shape) * kept.dtype.itemsize > 1 << 26:
            raise ValueError(f"attribute {name} of {kept.shape} is too large")
        value = holder.attrs[name]
        return [text(v) for v in value] if kept.shape else text(value)

    def look(group: Any, at: str, depth: int) -> None:
        if depth > DEEPEST or len(groups) + len(arrays) + len(refused) + len(group) > LIMIT:
            raise ValueError(f"more than {LIMIT} groups and arrays, or {DEEPEST} groups in each other")
        groups[at] = {name: attribute(group, name) for name in group.attrs if ATTRIBUTES.fullmatch(name)}
        for name in group:
            below = f"{at}/{name}".lstrip("/")
            if not at and name.startswith("optimizer"):
                continue
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                refused[below] = "is a link"
            elif isinstance(group[name], h5py.Group):
                look(group[name], below, depth + 1)
            else:
                take(group[name], below)

    def take(found: Any, name: str) -> None:
        """Floating point numbers that lie in the file as they are; no bytes of it twice."""
        nonlocal taken
        if not isinstance(found, h5py.Dataset) or found.dtype.kind != "f" or found.dtype.itemsize > 8:
            refused[name] = "is no array of numbers"
        elif found.external or found.is_virtual or found.chunks is not None:
            refused[name] = "is compressed, or lies elsewhere; Keras writes plain arrays"
        else:
            stored = min(found.id.get_storage_size(), len(data) - taken)
            if stored != found.nbytes:
                refused[name] = f"has {found.nbytes} bytes by its shape {found.shape}, and {stored} are there"
                return
            taken += found.nbytes
            arrays.append((name, found.shape, numbers.tell()))
            numbers.write(found[()].astype("<f8").tobytes())

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            look(file, "", 0)
        told: dict[str, Any] = {"groups": groups, "arrays": arrays, "refused": refused}
    except Exception as error:  # of what is damaged, h5py raises nearly everything
        told = {"error": " ".join(str(error).split())[:120] or type(error).__name__}
    return json.dumps(told).encode() + b"\n" + numbers.getvalue()


def text(value: Any) -> str:
    """An attribute's text, bytes or not."""
    return value.decode() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    given = sys.stdin.buffer.read()
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none; a lower limit may hold already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY + 8 * len(given), resource.RLIM_INFINITY))
    sys.stdout.buffer.write(dump(given))
