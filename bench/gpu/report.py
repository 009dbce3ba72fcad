"""The environment of a run, and its one file."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from .. import environment

Json = dict[str, Any]


def describe(properties: Any) -> Json:
    """`environment.describe`, and the GPU by torch's properties of it."""
    where = environment.describe(torch.get_num_threads())
    versions = {
        "triton": environment.version("triton"),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
    }
    return {**where, "versions": where["versions"] | versions, "gpu": gpu(properties)}


def gpu(properties: Any) -> Json:
    """What a plan and a time depend on."""
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "shared_memory_of_a_block": getattr(properties, "shared_memory_per_block_optin", None),
        "memory": properties.total_memory,
        "driver, power limit, highest clock": smi(),
    }


def smi() -> str | None:
    """What nvidia-smi tells and torch does not, of every GPU; None where there is none."""
    fields = "name,driver_version,power.limit,clocks.max.sm"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def path_of(where: Json, folder: Path) -> Path:
    """The file of a GPU's results."""
    return folder / f"gpu-{environment.slug(where['gpu']['name'])}.json"


def write(path: Path, where: Json, parts: dict[str, Json]) -> None:
    """The whole file, in one moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    text = json.dumps({"environment": where, "parts": parts}, indent=1, allow_nan=False)
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
