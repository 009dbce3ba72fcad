"""What the parts need of a GPU: CUDA graphs, and Triton's compilations; the tests have their own."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Outputs = dict[str, Tensor]


class Machine(NamedTuple):
    """Where the parts run.

    device: of all tensors. capture: from a function, one that replays it, and the outputs that a replay overwrites.
    compilations: counts, while entered, the variants of every kernel that are compiled.
    """

    device: torch.device
    capture: Callable[[Callable[[], Outputs]], tuple[Callable[[], object], Outputs]]
    compilations: Callable[[], AbstractContextManager[Mapping[str, int]]]


def cuda() -> Machine:
    """The current CUDA device."""
    return Machine(torch.device("cuda", torch.cuda.current_device()), capture, compilations)


def capture(run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
    """A CUDA graph of `run`, captured after it has run on a side stream, as torch asks."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


@contextlib.contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Counts by Triton's own hook, which is called for every variant that this process does not have yet."""
    from triton import knobs

    counts: Counter[str] = Counter()

    def count(*, fn: Any, **_: Any) -> None:
        counts[f"{fn.module.rpartition('.')[2]}.{fn.name}"] += 1

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, count
    try:
        yield counts
    finally:
        knobs.runtime.jit_cache_hook = before
