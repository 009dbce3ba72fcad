"""Work that is launched again and again: captured once in a CUDA graph, then replayed without Python."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import torch

_running: deque[tuple[torch.cuda.Event, torch.cuda.CUDAGraph]] = deque()  # kept until they have run
_sides: dict[torch.device, torch.cuda.Stream] = {}  # where captures are made, one of each device
_lock = threading.Lock()


def replay(device: torch.device, work: Callable[[], None], times: int, captured: int) -> None:
    """Do `work` on a GPU's current stream at least `times` times, `captured` times in a graph; the host does not wait.

    It launches kernels that are compiled already, allocates nothing, and once too often does nothing.
    """
    if times <= 0:
        return
    captured = min(captured, times)
    with _lock, torch.cuda.device(device):  # a stream that captures must be nobody else's
        while _running and _running[0][0].query():
            _running.popleft()
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        if device not in _sides:
            _sides[device] = torch.cuda.Stream()
        side = _sides[device]
        side.wait_stream(current)
        # what a capture makes for torch's random numbers must be of use outside inference mode too
        with torch.inference_mode(False), torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for _ in range(captured):
                    work()
            finally:
                graph.capture_end()
        current.wait_stream(side)
        for _ in range(-(-times // captured)):
            graph.replay()
        done = torch.cuda.Event()
        done.record(current)
        _running.append((done, graph))
