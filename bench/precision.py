"""The precisions that are measured, and how PyTorch is told of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

DTYPES = ("float32", "tf32", "bf16", "fp16")
TORCH = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # elements

MATMUL: Any = torch.backends.cuda.matmul


def elements(dtype: str) -> torch.dtype:
    """What a precision's numbers are held in.

    Raises:
        ValueError: there is no such precision.
    """
    if dtype not in TORCH:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return TORCH[dtype]


@contextlib.contextmanager
def products(dtype: str) -> Iterator[None]:
    """How a GPU multiplies float32 matrices inside, by cuBLAS, cuDNN and our kernels: exactly but for "tf32"."""
    elements(dtype)
    rnn: Any = torch.backends.cudnn.rnn
    before = MATMUL.fp32_precision, rnn.fp32_precision
    inside = "tf32" if dtype == "tf32" else "ieee"
    try:
        _multiply(inside)
        rnn.fp32_precision = inside
        yield
    finally:
        _multiply(before[0])
        rnn.fp32_precision = before[1]


def _multiply(precision: str) -> None:
    """Set cuBLAS's precision, the older flag with it: where the two differ, whoever reads that one gets an error."""
    MATMUL.allow_tf32 = precision == "tf32"
    MATMUL.fp32_precision = precision


def autocast(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """torch.autocast of what is computed inside; nothing for float32 and tf32."""
    if elements(dtype) == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, elements(dtype))
