"""The bridge to the C++ extension: finds it, loads it once, checks pointers' owners before every call.

`library()` gives None where the extension cannot be loaded; `problem()` then says why.
"""

import ctypes
import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    spec = importlib.util.find_spec("fusedmdn._cpu")
    if spec is None or spec.origin is None:
        return None, "the extension fusedmdn._cpu was not built (no C++17 compiler when the package was installed?)"
    pointer, i64, u64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
    try:
        lib = ctypes.CDLL(spec.origin)
        lib.fusedmdn_philox_fill.argtypes = [u64, u64, i64, pointer, i64, ctypes.c_int, pointer]
        lib.fusedmdn_philox_fill.restype = ctypes.c_int
        lib.fusedmdn_philox_block.argtypes = [pointer, pointer, pointer]
        lib.fusedmdn_philox_block.restype = None
    except (OSError, AttributeError) as error:
        return None, f"{spec.origin} cannot be used: {error}"
    return lib, None


def library() -> ctypes.CDLL | None:
    """The loaded extension, or None."""
    return _load()[0]


def problem() -> str | None:
    """Why there is no extension, or None where there is one."""
    return _load()[1]


def philox_fill(
    seed: int, first_index: int, count: int, first_step: Tensor | None, steps: int, normals: bool
) -> Tensor:
    """kernels/cpu/philox.cpp; arguments as `stream.uniforms`, already checked there."""
    out = torch.empty(count, steps, 2 if normals else 4, dtype=torch.float32, device="cpu")
    lib = library()
    assert lib is not None
    start = None if first_step is None else first_step.data_ptr()
    mask = (1 << 64) - 1
    code = lib.fusedmdn_philox_fill(seed & mask, first_index & mask, count, start, steps, int(normals), out.data_ptr())
    if code:
        raise ValueError(f"philox_fill refused {count=}, {steps=}, {first_step=}")
    return out
