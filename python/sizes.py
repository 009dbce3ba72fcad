"""Sampling that does not fit says which number to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 1 << 31  # sequences and rows: the GPU kernels count in 32 bits
ALLOCATORS = "DefaultCPUAllocator", "not enough memory", "out of memory"  # in the text of a RuntimeError


def check(name: str, value: Any, least: int = 0) -> None:
    """Raise TypeError unless it is an integer, ValueError unless it lies in [least, 2^31)."""
    if not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
    if value >= MOST:
        raise ValueError(f"{name} must be < 2^31, got {value}; lower it: a job can be cut anywhere")


@contextlib.contextmanager
def saying_what_to_lower(
    n: int, max_steps: int, chunk: int | None, weights: Sequence[Tensor], layers: int
) -> Iterator[None]:
    """Out of memory inside becomes torch.OutOfMemoryError with the sizes and what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(text in str(error) for text in ALLOCATORS):
            raise
        (_, I), (_, H), size = weights[0].shape, weights[1].shape, weights[0].element_size()
        points = n * min(chunk or max_steps, max_steps) * I * 4
        states = n * (layers * H * (3 * size + 20) + len(weights[-1]) * 4)  # h thrice, c, and sums for the next step
        rows = "chunk" if chunk else "max_steps"
        if weights[0].is_cuda and not chunk:
            rows += ", or give to='cpu', by which points are copied away"
        raise torch.OutOfMemoryError(
            f"generate: n={n} sequences of max_steps={max_steps} rows do not fit into memory: points take "
            f"{points / 2**30:.2f} GiB{' a chunk' if chunk else ''}, states {states / 2**30:.2f} GiB; "
            f"lower {rows if points > states else 'n'}: a job can be cut anywhere"
        ) from error
