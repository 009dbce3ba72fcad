"""Plans that `fusedmdn tune` measured on a device, kept on disk between processes.

A JSON file for each device's name and Triton's version in $FUSEDMDN_CACHE, else in fusedmdn of $XDG_CACHE_HOME or
~/.cache. A file that cannot be read is named in one warning, and the static choice holds.
"""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from .plans import Tuned

KINDS = {"direction": str, "H": int, "precision": str, "B": int, "plan": str, "rows": int, "units": int}
KNOWN = {
    "direction": ("forward", "backward"),
    "precision": ("bfloat16", "float16", "tf32", "tf32x3"),
    "plan": ("persistent", "stepwise"),
}


class PlansError(ValueError):
    """A file of measured plans that cannot be used; the message names it."""


def folder() -> Path:
    """Where the files lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FUSEDMDN_CACHE") or Path(base) / "fusedmdn")


def path_of(device_name: str) -> Path:
    """The file of a device."""
    import triton

    return folder() / f"plans-{re.sub('[^A-Za-z0-9]+', '-', device_name)}-triton-{triton.__version__}.json"


@functools.cache
def load(device: torch.device) -> Tuned:
    """What was measured on a CUDA device; empty if nothing was, and on any other device."""
    if device.type != "cuda":
        return {}
    return read(path_of(torch.cuda.get_device_name(device)))


def read(path: Path) -> Tuned:
    """The measured plans of a file; empty if there is none, or, with a warning, if it cannot be read."""
    try:
        table: dict[tuple[str, int, str], dict[int, tuple[str, int, int]]] = {}
        for e in entries(path)["plans"]:
            key = e["direction"], e["H"], e["precision"]
            table.setdefault(key, {})[e["B"]] = e["plan"], e["rows"], e["units"]
        return table
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{error}; it is not used", stacklevel=2)
        return {}


def entries(path: Path) -> dict[str, Any]:
    """The object in a file of measured plans, its "plans" a list of what KINDS and KNOWN say.

    Raises:
        PlansError: it is damaged, or no such file.
        OSError: it is not there, or cannot be read.
    """
    data = path.read_bytes()
    try:
        document = json.loads(data.decode())
        wrong = [e for e in document["plans"] if not _is_entry(e)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlansError(f"{path} is damaged (not what `fusedmdn tune` writes: {error!r})") from error
    if wrong or not isinstance(document["plans"], list):
        raise PlansError(f"{path} is damaged (not every plan in it is one)")
    return document


def _is_entry(e: Any) -> bool:
    return (
        isinstance(e, dict)
        and all(type(e.get(field)) is kind for field, kind in KINDS.items())
        and all(e[field] in known for field, known in KNOWN.items())
        and min(e["H"], e["B"]) >= 1
    )
