"""Where a run was made: machine, GPU, versions, revision."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fusedmdn import __version__, ops

ROOT = Path(__file__).parent.parent


PACKAGES = ("torch", "triton", "jax", "onnxruntime", "torchrl", "flashrnn", "haste_pytorch")
CPU = torch.device("cpu")


def describe(threads: int, device: torch.device = CPU) -> dict[str, Any]:
    """The environment of this process, and of a run on a device, as JSON holds it."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device.type,
        "gpu": None if properties is None else gpu(properties),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "isa": instruction_set(),
        "backends": {choice.operator: choice.backend for choice in ops.report() if choice.device == device.type},
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "revision": revision(),
        "threads": threads,
        "pinned_to": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_before": list(os.getloadavg()),
    }


def versions() -> dict[str, str | None]:
    """Of the package, what it stands on, and the peers."""
    of_cuda = {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())} if torch.version.cuda else {}
    return {"fusedmdn": __version__, **{name: version(name) for name in PACKAGES}, **of_cuda}


def file_of(where: dict[str, Any], grid: str, partial: bool = False) -> str:
    """The name of a run's file: by device, threads and grid, so that none takes another's place."""
    kind = "quick" if grid == "quick" else "partial" if partial else "gpu" if where["gpu"] else "cpu"
    words = [kind, slug(where["gpu"]["name"] if where["gpu"] else where["cpu"])]
    words += [] if where["gpu"] else [f"{where['threads']}t"]
    return "-".join([*words, *(["full"] if grid == "full" else [])]) + ".json"


def gpu(properties: Any) -> dict[str, Any]:
    """What a plan and a time depend on."""
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "shared_memory_of_a_block": getattr(properties, "shared_memory_per_block_optin", None),
        "l2": getattr(properties, "L2_cache_size", None),
        "memory": properties.total_memory,
        "driver, power limit, highest clock": smi(),
    }


def smi() -> str | None:
    """What nvidia-smi tells and torch does not, of every GPU; None where there is none."""
    fields = "name,driver_version,power.limit,clocks.max.sm"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            check=True, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """The processor's name, with family and model numbers where Linux gives them."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def slug(cpu: str) -> str:
    """The processor's name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")


def caches() -> dict[str, str]:
    """Size of every cache of the first core, by level and kind, and the cores that share it."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size, shared = (
            (index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
        )
        found[f"L{level} {kind.lower()}"] = f"{size}, cores {shared}"
    return found


def instruction_set() -> str | None:
    """What the CPU kernels were chosen for, if they tell."""
    tell = getattr(ops, "cpu_isa", None)
    return str(tell() if callable(tell) else tell) if tell is not None else None


def version(name: str) -> str | None:
    """An installed package's version."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def revision() -> str | None:
    """The checkout's commit, with a plus where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
