"""What is installed, and on what machine: findings of `fusedmdn doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import FusedLSTMMDN, __version__
from ..ops import _cpu, launch

OLDEST_TORCH = (2, 11)
EXTENSION_ON = ("Linux", "Darwin")  # platforms that the extension is built for
SETTINGS = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "TRITON_CACHE_DIR")
EXTRAS = {
    "PIL": ("Pillow", "render", "PNG and GIF"),
    "tensorboard": ("tensorboard", "train", "curves of a training run"),
    "pyarrow": ("pyarrow", "jobs", "Parquet files"),
    "ray": ("ray", "jobs", "sampling on many machines"),
}
NVIDIA = Path("/dev/nvidia0")
REINSTALL = "install fusedmdn again, from where it came: pip install --force-reinstall --no-deps ..."
C_COMPILER = "a C compiler (gcc or clang)"
OTHER_DEVICE = "`nvidia-smi` says whether the driver works and who holds the memory; --device names another"
NEWER_TORCH = "pip install --upgrade 'torch>=" + ".".join(map(str, OLDEST_TORCH)) + "'"


class Problem(NamedTuple):
    """What is wrong, and what to do about it: a line each."""

    wrong: str
    remedy: str


class Finding(NamedTuple):
    """A line of the report."""

    part: str
    name: str
    value: str
    problems: tuple[Problem, ...] = ()


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding for a file."""
    return finding._asdict() | {"problems": [problem._asdict() for problem in finding.problems]}


def versions() -> Iterator[Finding]:
    """fusedmdn, what it runs on, and what its environment sets."""
    finding = partial(Finding, "versions")
    yield finding("fusedmdn", f"{__version__}, in {Path(__file__).parent.parent}")
    too_old = tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH
    problems = (Problem(f"torch {torch.__version__} is too old", NEWER_TORCH),) if too_old else ()
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for ROCm" if torch.version.hip else "for CPUs"
    yield finding("torch", f"{torch.__version__}, built {built}", problems)
    yield finding("Triton", _triton_version())
    yield finding("Python", f"{platform.python_version()}, {platform.platform()}")
    named = sorted(name for name in os.environ if name.startswith("FUSEDMDN_") or name in SETTINGS)
    yield finding("settings", ", ".join(f"{name}={os.environ[name]}" for name in named) or "none in the environment")


def _triton_version() -> str:
    if find_spec("triton") is None:
        return "none; only a GPU needs it"
    import triton

    return str(triton.__version__)


def usable(name: str) -> tuple[torch.device, tuple[Problem, ...]]:
    """The device of this name, "auto" for a GPU where there is one; the CPU and why, if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device, ()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        return torch.device("cpu"), (Problem(f"device {name!r} cannot be used: {reason}", OTHER_DEVICE),)


def checked(name: str) -> Iterator[Finding]:
    """Where operators are compared."""
    device, problems = usable(name)
    devices = "cpu" if device.type == "cpu" else f"cpu and {device}"
    yield Finding("devices", "checked", devices, problems)


def cpu_and_extension() -> Iterator[Finding]:
    """The processor and the C++ kernels."""
    finding = partial(Finding, "devices")
    yield finding("CPU", f"{platform.machine()}, {os.cpu_count()} cores, PyTorch's threads {torch.get_num_threads()}")
    trouble = _cpu.problem()
    if trouble is None:
        yield finding("C++ kernels", f"{_cpu.isa()}, of {', '.join(_cpu.isas())}")
        found = find_spec("fusedmdn._cpu")
        yield finding("C++ library", str(found and found.origin))
    elif platform.system() not in EXTENSION_ON:
        yield finding("C++ kernels", f"none on {platform.system()}: PyTorch runs instead")
    else:
        remedy = f"install a C++17 compiler (g++ or clang++), then {REINSTALL}"
        if trouble.startswith("FUSEDMDN_CPU_ISA="):
            remedy = "unset FUSEDMDN_CPU_ISA, or set it to one of these"
        yield finding("C++ kernels", "none: PyTorch runs instead", (Problem(f"no C++ kernels: {trouble}", remedy),))


def gpus(device: torch.device) -> Iterator[Finding]:
    """Every CUDA device; of `device`, its free memory and whether Triton is there."""
    finding = partial(Finding, "devices")
    if not torch.cuda.is_available():
        reason = "none"
        if torch.version.cuda:
            reason = "none that this torch, which is built for CUDA, can use; `nvidia-smi` says whether the driver can"
        elif NVIDIA.exists():
            reason = f"{NVIDIA} is there, but this torch is built without CUDA: see pytorch.org for one that is"
        yield finding("GPU", reason)
        return
    for k in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(k)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        capability = f"{properties.major}.{properties.minor}"
        about = f"capability {capability}, {properties.multi_processor_count} multiprocessors, {memory}"
        yield finding(f"cuda:{k}", f"{properties.name}, {about}")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield finding("free memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB on {device}")
        yield _triton_kernels()


def _triton_kernels() -> Finding:
    trouble = launch.problem()
    if trouble is None:
        return Finding("devices", "Triton kernels", "can be compiled")
    reason, _, _ = trouble.partition(": pip")
    problem = Problem(f"no GPU kernels: {reason}", "pip install --upgrade 'fusedmdn[gpu]'")
    return Finding("devices", "Triton kernels", "none: PyTorch runs instead", (problem,))


def weights() -> Iterator[Finding]:
    """That the shipped network loads; raises CheckpointError if a file is damaged."""
    model = FusedLSTMMDN.from_pretrained("kanji")
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Finding("weights", "kanji", f"{count:,} weights, and the SHA-256 they should have")


def extras() -> Iterator[Finding]:
    """Optional packages; one that is missing is no fault."""
    for module, (name, extra, purpose) in EXTRAS.items():
        missing = f"not there: pip install 'fusedmdn[{extra}]' for {purpose}"
        yield Finding("extras", name, missing if find_spec(module) is None else f"there, for {purpose}")
