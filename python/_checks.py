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


def packed_steps(lengths: Tensor | None, rows: int) -> tuple[Tensor, int]:
    """Lengths as int64, and T, of (rows, ·) packed as in a PackedSequence: step by step, longest sequence first.

    Raises ValueError unless the lengths are sorted and add up to the rows.
    """
    if lengths is None:
        raise ValueError(f"lengths: {rows} packed rows need the lengths of their sequences, got None")
    lengths = check_lengths(lengths, rows, len(lengths))
    assert lengths is not None
    if int(lengths.sum()) != rows or bool((lengths[1:] > lengths[:-1]).any()):
        raise ValueError(f"lengths: expected {rows} packed rows, longest sequence first, got {lengths.tolist()}")
    return lengths, int(lengths[0]) if len(lengths) else 0
