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

import torch

from .plans import Tuned


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
    if not path.exists():
        return {}
    try:
        table: dict[tuple[str, int, str], dict[int, tuple[str, int, int]]] = {}
        for e in json.loads(path.read_text())["plans"]:
            key = e["direction"], e["H"], e["precision"]
            table.setdefault(key, {})[e["B"]] = e["plan"], e["rows"], e["units"]
        return table
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is not what `fusedmdn tune` writes ({error!r}); it is not used", stacklevel=2)
        return {}
