"""The one place where Triton kernels are launched: on CUDA tensors by Triton, on CPU tensors by the tests' simulator.

Nothing here waits for the device or allocates, so that a launch can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import plans

OLDEST = (3, 6)  # of Triton


class Options(NamedTuple):
    """Of a launch: warps of a program, whether all programs of the grid must run at once, registers of a thread.

    Without a number of registers the compiler weighs them against how many programs share a multiprocessor, and spills
    a few to have one more.
    """

    warps: int
    cooperative: bool = False
    registers: int | None = None


class Simulator(Protocol):
    """What runs kernels on CPU tensors, as if on `device`."""

    device: plans.Device

    def __call__(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: Options) -> object:
        """Run all programs of the grid."""


simulator: Simulator | None = None


class LaunchRefusedError(RuntimeError):
    """The device cannot run a grid of this size at once, or lacks the shared memory for a program."""


@functools.cache
def problem() -> str | None:
    """Why Triton kernels cannot be compiled here, or None."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed: pip install 'fusedmdn[gpu]'"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return f"Triton {triton.__version__} is too old: {'.'.join(map(str, OLDEST))} or newer is needed"
    return None


@functools.cache
def kernel(name: str) -> Any:
    """The kernel "module.function" of fusedmdn.kernels, imported when it is first asked for."""
    module, function = name.split(".")
    return getattr(import_module(f"..kernels.{module}", __package__), function)


def device_of(tensor: Tensor) -> plans.Device:
    """What the kernels of this tensor run on.

    Raises RuntimeError for a CPU tensor where no simulator is set.
    """
    if tensor.device.type == "cuda":
        return plans.device_of(tensor.device)
    if tensor.device.type == "cpu" and simulator is not None:
        return simulator.device
    raise RuntimeError(f"Triton kernels run on CUDA tensors, got {tuple(tensor.shape)} on {tensor.device}")


def capturing(device: torch.device) -> bool:
    """Whether what is launched on this device now goes into a CUDA graph."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def compiler_options(options: Options) -> dict[str, Any]:
    """What Triton is told."""
    given: dict[str, Any] = {"num_warps": options.warps, "num_stages": 1, "enable_fp_fusion": True}
    if options.cooperative:
        given["launch_cooperative_grid"] = True
    if options.registers:
        given["maxnreg"] = options.registers
    return given


def launch(name: str, grid: tuple[int, ...], arguments: dict[str, Any], options: Options) -> None:
    """Run a kernel; `arguments` are all its parameters by name, an array of its own device among them.

    Raises:
        LaunchRefusedError: the grid cannot be resident at once, or a program does not fit; nothing has run.
    """
    first = next(v for v in arguments.values() if isinstance(v, Tensor))
    if first.device.type == "cpu" and simulator is not None:
        simulator(kernel(name), grid, arguments, options)
        return
    try:
        with torch.cuda.device(first.device):
            kernel(name)[grid](**arguments, **compiler_options(options))
    except Exception as error:
        if "cooperative launch" in str(error) or type(error).__name__ == "OutOfResources":
            raise LaunchRefusedError(f"{name}: {error}") from error
        raise
