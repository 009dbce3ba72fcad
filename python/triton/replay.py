"""Work that is launched again and again: captured once in a CUDA graph, then replayed without Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

_running: deque[tuple[torch.cuda.Event, torch.cuda.CUDAGraph]] = deque()  # kept until they have run


def replay(work: Callable[[], None], times: int, captured: int) -> None:
    """Do `work` on the current stream at least `times` times, `captured` times in a graph; the host does not wait.

    It launches kernels that are compiled already, allocates nothing, and once too often does nothing.
    """
    while _running and _running[0][0].query():
        _running.popleft()
    if times <= 0:
        return
    captured = min(captured, times)
    graph, current, side = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(captured):
                work()
        finally:
            graph.capture_end()
    for _ in range(-(-times // captured)):
        graph.replay()
    done = torch.cuda.Event()
    done.record(current)
    _running.append((done, graph))
