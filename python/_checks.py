"""Checks of arguments that more than one layer needs; an error names the argument, what it is and should be."""

import torch
from torch import Tensor


def expect_shape(name: str, tensor: Tensor, *shape: int) -> None:
    """Raise ValueError unless the tensor has this shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def check_lengths(lengths: Tensor | None, T: int, B: int, name: str = "lengths") -> Tensor | None:
    """Lengths as int64, or None; raises ValueError for a wrong shape or dtype or, on the CPU, a value out of [0, T]."""
    if lengths is None:
        return None
    expect_shape(name, lengths, B)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers, got {lengths.dtype}")
    # A look at the values would stop a graph's capture, and make a GPU wait.
    if B and lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > T:
            raise ValueError(f"{name}: expected values in [0, {T}], got {low} to {high}")
    return lengths.to(torch.int64)
