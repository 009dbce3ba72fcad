"""What a job's bits depend on besides its options: versions, backend, and the instruction set or the GPU."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import __version__, ops
from ..ops import _backend, launch
from ..ops.triton.arguments import tf32_allowed
from .errors import EnvironmentRefused
from .spec import DTYPES


def environment_of(device: torch.device, precision: str, output: str) -> dict[str, Any]:
    """This process's, sampling on `device` and writing `output` files.

    Raises:
        ModuleNotFoundError: Parquet is to be written and pyarrow is missing.
    """
    backend = _backend.in_use("generate", device.type, DTYPES[precision] or torch.float32)
    found: dict[str, Any] = {"fusedmdn": __version__, "torch": torch.__version__, "backend": backend}
    if backend == "cpu":
        found["isa"] = ops.cpu_isa()
    elif backend == "triton":
        import triton

        properties = launch.device_of(torch.empty(0, device=device))
        found["triton"] = triton.__version__
        found["gpu"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        found["multiprocessors"] = properties.processors
        found["tf32"] = tf32_allowed()
    else:
        found["device"], found["threads"] = device.type, torch.get_num_threads()
    if output == "parquet":
        found["pyarrow"] = pyarrow().__version__
    else:
        found["numpy"], found["zlib"] = np.__version__, zlib.ZLIB_RUNTIME_VERSION
    return found


def check_environment(expected: Mapping[str, Any], device: torch.device, precision: str, output: str) -> None:
    """See that this process writes the job's bits.

    Raises:
        EnvironmentRefused: it would not; the message names every difference, and what to do about it.
    """
    found = environment_of(device, precision, output)
    differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if not differing:
        return
    told = "; ".join(f"{name} is {found.get(name)}, the job's is {expected.get(name)}" for name in differing)
    if differing == ["isa"]:
        told += f" (FUSEDMDN_CPU_ISA={expected['isa']} takes that one, where the processor has it)"
    if differing == ["threads"]:
        told += f" (--threads {expected['threads']} takes as many, on Ray --num-cpus)"
    raise EnvironmentRefused(f"this machine would write other bits: {told}")


def pyarrow() -> Any:
    """The module; raises ModuleNotFoundError, naming the extra that brings it."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Parquet needs pyarrow: pip install 'fusedmdn[jobs]', or take --output npz"
        ) from error
    return pyarrow
