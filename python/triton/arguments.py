"""What every operator on the Triton kernels does with its arguments before a launch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import plans
from .._backend import DTYPES
from ..checks import check_clip, expect_shape
from ..launch import Options

INDEPENDENT = Options(warps=4)  # programs that wait for no other
ALIGNED = 16  # bytes
COUNTER = 32  # int32 elements from one barrier's counter to the next: a cache line each


def cooperative(ahead: int) -> Options:
    """Of programs that wait for each other, with so many chunks on their way (kernels/triton/product.py).

    All registers where loads lie in them by the dozen; elsewhere the compiler's own choice is the better one.
    """
    return Options(plans.WARPS, cooperative=True, registers=255 if ahead == plans.ALL else None)


def given(name: str, tensor: Tensor, like: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    """The tensor, contiguous, aligned and in this dtype; raises ValueError for another device or shape.

    A slice that begins anywhere is copied: kernels are compiled for addresses that are multiples of 16.
    """
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, got {tuple(tensor.shape)} on {tensor.device}")
    expect_shape(name, tensor, *shape)
    tensor = tensor.detach().to(dtype).contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNED else tensor


def aligned(out: Tensor) -> Tensor:
    """What a kernel may write into: `out`, or memory of the same shape where it begins at no multiple of 16."""
    return torch.empty_like(out) if out.data_ptr() % ALIGNED else out


def same_dtype(name: str, tensor: Tensor, like: Tensor, *shape: int) -> Tensor:
    """As `given`, in like's dtype, which it must have already; raises ValueError for another."""
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name}: expected {like.dtype}, got {tensor.dtype}")
    return given(name, tensor, like, like.dtype, *shape)


def rows_of(name: str, tensor: Tensor, like: Tensor, *shape: int) -> Tensor:
    """As `given` in like's dtype, but only its last dimension need be contiguous."""
    if tensor.dtype == like.dtype and tensor.device == like.device and tensor.stride(-1) == 1:
        expect_shape(name, tensor, *shape)
        return tensor.detach()
    return given(name, tensor, like, like.dtype, *shape)


def kernel_dtype(name: str, tensor: Tensor) -> None:
    """Raise ValueError for a dtype that the kernels do not take."""
    if tensor.dtype not in DTYPES["triton"]:
        raise ValueError(
            f"{name}: the Triton kernels take float32, bfloat16 and float16, "
            f"got {tuple(tensor.shape)} of {tensor.dtype}"
        )


def lengths_of(lengths: Tensor | None, like: Tensor, B: int) -> Tensor | None:
    """The lengths (B) as int64, or None."""
    return None if lengths is None else given("lengths", lengths, like, torch.int64, B)


def bound_of(clip: float | None) -> float:
    """The bound of clipping, infinite without; raises ValueError unless it is positive."""
    check_clip(clip)
    return math.inf if clip is None else clip


def tf32_allowed() -> bool:
    """Whether torch's setting allows TF32 in float32 matrix products."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
