"""Batch 1 against the machine: every step reads all weights, so reading them once is the least that it can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..cell import Cell, Contender, Prepared
from ..models import build, weight_bytes
from ..settings import Settings
from . import sampling

MODEL = "B"


def cells(settings: Settings) -> Iterator[Cell]:
    """One cell for each dtype of the weights: our sampler, and the readers of a buffer of the weights' size."""
    model = build(MODEL, settings.sizes.hidden)
    steps = settings.sizes.steps[1]
    for label, dtype in sampling.OURS.items():
        size = weight_bytes(model, dtype or torch.float32)
        contenders = [sampling.ours(model, label, 1, steps, settings)]
        contenders += [_reader(name, read, steps) for name, read in readers(size).items()]
        yield Cell("limit", MODEL, {"weights": label.split()[-1], "bytes": size}, "us", contenders)


def readers(size: int) -> dict[str, Callable[[], object]]:
    """Ways to read a buffer of `size` bytes once; the fastest of them tells the machine's bandwidth."""
    buffer = torch.randn(size // 4, generator=torch.Generator().manual_seed(0))
    array = buffer.numpy()
    return {
        "torch.sum": lambda: torch.sum(buffer),
        "torch.dot": lambda: torch.dot(buffer, buffer),
        "numpy.dot": lambda: np.dot(array, array),
    }


def _reader(name: str, read: Callable[[], object], reads: int) -> Contender:
    def run() -> None:
        for _ in range(reads):
            read()

    return Contender(name, "limit", lambda: Prepared(run), calls=reads)
