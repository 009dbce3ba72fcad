"""Which kernel runs an operator: by device and dtype, unless forced; never a silent fallback.

CUDA tensors run Triton, CPU tensors run C++, all else the reference. float64 runs the reference everywhere, by design:
it is there to check against. `register` fills the table, `kernel` reads it.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from . import _cpu, launch

NATIVE = {"cpu": "cpu", "cuda": "triton"}
BACKENDS = ("reference", "cpu", "triton")
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}

HOST_ONLY = {"philox_fill"}  # fills memory of the host, whatever runs the rest

_table: dict[str, dict[str, Callable[..., Any]]] = {}
_forced: str | None = None  # of the process, not of a thread: autograd runs CUDA backward passes on threads of its own
_warned: set[tuple[str, str, torch.dtype]] = set()


class FallbackWarning(UserWarning):
    """An operator runs on the reference, or by another plan, where better was to be expected."""


class Choice(NamedTuple):
    """What runs an operator on a device, and why."""

    operator: str
    device: str
    backend: str
    reason: str


def register(operator: str, backend: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: this function is `operator` on `backend`."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _table.setdefault(operator, {})[backend] = function
        return function

    return add


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force "reference", "cpu" or "triton" for every operator called inside, in the whole process.

    Raises ValueError for another name; a call of an operator that has no such kernel raises RuntimeError.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def in_use(operator: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs `operator` here and now, forced or chosen."""
    return _forced or choose(operator, device, dtype).backend


def kernel(operator: str, device: str, dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
    """The function that runs `operator` on tensors of a device type and dtype.

    Raises RuntimeError if the forced backend has no such kernel, or if FUSEDMDN_REQUIRE_NATIVE=1 and a kernel that
    exists cannot be loaded. Falling back to the reference warns once for each operator, device and dtype.
    """
    if _forced is not None and (_forced in _table[operator] or operator not in HOST_ONLY):
        function = _table[operator].get(_forced)
        trouble = _trouble(_forced, dtype)
        if function is None or trouble:
            raise RuntimeError(
                f"{operator} cannot run on the forced backend {_forced!r}: {trouble or 'no such kernel'}"
            )
        return function
    chosen = choose(operator, device, dtype)
    native = NATIVE.get(device)
    exists = native in _table[operator] and not _by_design(operator, native)
    expected = dtype != torch.float64 and (exists or device != "cpu")
    if chosen.backend == "reference" and expected and (operator, device, dtype) not in _warned:
        loads = native is not None and _trouble(native) is None
        if exists and not loads and os.environ.get("FUSEDMDN_REQUIRE_NATIVE") == "1":
            raise RuntimeError(f"FUSEDMDN_REQUIRE_NATIVE=1, but {operator} has no native kernel here: {chosen.reason}")
        _warned.add((operator, device, dtype))
        warnings.warn(
            f"{operator} on {device} runs the PyTorch reference: {chosen.reason}", FallbackWarning, stacklevel=4
        )
    return _table[operator][chosen.backend]


def choose(operator: str, device: str, dtype: torch.dtype = torch.float32) -> Choice:
    """What runs `operator` on a device type and dtype when nothing is forced."""
    native = NATIVE.get(device)
    if native is None:
        return Choice(operator, device, "reference", f"there are no kernels for {device} devices")
    if native not in _table[operator]:
        return Choice(operator, device, "reference", f"this version has no {native} kernel")
    if _by_design(operator, native):
        return Choice(operator, device, "reference", "by design: PyTorch's own operations over all time")
    trouble = _trouble(native, dtype)
    if trouble:
        return Choice(operator, device, "reference", trouble)
    return Choice(operator, device, native, "native kernel")


def _by_design(operator: str, backend: str | None) -> bool:
    """Whether the backend has the reference itself for this operator, because there is nothing to gain."""
    functions = _table[operator]
    return backend in functions and functions[backend] is functions["reference"]


def report() -> list[Choice]:
    """Every operator's choice on every device type that has kernels, for `fusedmdn info`."""
    return [choose(op, device) for op in _table for device in NATIVE if device == "cpu" or op not in HOST_ONLY]


def _trouble(name: str, dtype: torch.dtype | None = None) -> str | None:
    """Why a backend cannot run at all, or not in this dtype."""
    problems: dict[str, Callable[[], str | None]] = {"cpu": _cpu.problem, "triton": launch.problem}
    problem = problems[name]() if name in problems else None
    if problem is None and dtype is not None and dtype not in DTYPES.get(name, (dtype,)):
        names = " and ".join(str(d).removeprefix("torch.") for d in DTYPES[name])
        return f"the {name} kernels take {names}, not {str(dtype).removeprefix('torch.')}"
    return problem
