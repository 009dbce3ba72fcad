"""What a benchmark needs of a machine: to time phases of work from a cold start, and to find their peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from fusedmdn.ops import recycled

Phases = Mapping[str, Callable[[], object]]

# seconds: how long is looked whether threads still spin, the share of it that is as good as none, and the longest wait
LOOK, IDLE, PATIENCE = 0.005, 0.1, 0.5
SMALL, LARGE = 1 << 16, 1 << 25  # bytes from which glibc asks the system for a block and gives it back when freed
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
TIMES_L2 = 2  # as large as the L2 cache is what is written to empty it


class Machine(Protocol):
    """Where contenders run.

    Attributes:
        device: of all tensors.
        kind: "cpu" or "cuda", by which contenders are chosen.
        threads: of the CPU.
    """

    device: torch.device
    kind: str
    threads: int

    def time(self, phases: Phases) -> dict[str, tuple[float, float | None]]:
        """Run the phases in turn; seconds of each, and processor seconds of all threads where they are known."""

    def peak(self, run: Callable[[], object], clear: Callable[[], object]) -> int | None:
        """Bytes that a run, not the first, takes at most above what is taken after `clear`; None if unknown."""

    def release(self) -> None:
        """Give memory back that nothing uses."""


class Cpu:
    """The CPU, by wall clock and processor time; memory is what is resident, as Linux tells it."""

    def __init__(self, threads: int) -> None:
        self.device, self.kind, self.threads = torch.device("cpu"), "cpu", threads
        torch.set_num_threads(threads)
        self.set_threshold(LARGE)

    def set_threshold(self, size: int) -> bool:
        """Blocks from `size` bytes on go back to the system when freed; says whether the allocator is one that can.

        LARGE is where glibc's own rule arrives in a program that frees large blocks; set for all from the start, no
        contender's time depends on who ran before.
        """
        with contextlib.suppress(AttributeError, OSError):
            mallopt = ctypes.CDLL(None).mallopt
            return bool(mallopt(M_MMAP_THRESHOLD, size) and mallopt(M_TRIM_THRESHOLD, 2 * size))
        return False

    def time(self, phases: Phases) -> dict[str, tuple[float, float | None]]:
        """See `Machine.time`."""
        settle()
        taken: dict[str, tuple[float, float | None]] = {}
        for name, phase in phases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            phase()
            taken[name] = time.perf_counter() - wall, time.process_time() - cpu
        return taken

    def peak(self, run: Callable[[], object], clear: Callable[[], object]) -> int | None:
        """See `Machine.peak`; every block is given back when freed, so that the peak is that of live ones."""
        recycled.clear()
        if not Path("/proc/self/clear_refs").exists() or not self.set_threshold(SMALL):
            return None
        try:
            clear()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
            before = _status("VmRSS")
            run()
            return max(0, _status("VmHWM") - before)
        finally:
            self.set_threshold(LARGE)

    def release(self) -> None:
        """See `Machine.release`."""
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Wait until this process is idle: threads of the contender before spin, those of ONNX Runtime for 0.1 s."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - before < IDLE * LOOK:
            return


class Cuda:
    """A CUDA device, by events; every run starts on an idle device whose L2 cache holds nothing of its inputs.

    The time from Python's first launch to the last kernel's end: launches that the device waits for count.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device, self.kind, self.threads = device, "cuda", threads
        torch.cuda.set_device(device)
        size = TIMES_L2 * torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(size, dtype=torch.uint8, device=device)

    def time(self, phases: Phases) -> dict[str, tuple[float, float | None]]:
        """See `Machine.time`."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(phases) + 1)]
        self.flush.zero_()
        torch.cuda.synchronize()
        events[0].record()
        for phase, event in zip(phases.values(), events[1:], strict=True):
            phase()
            event.record()
        torch.cuda.synchronize()
        pairs = zip(phases, events, events[1:], strict=False)
        return {name: (start.elapsed_time(end) / 1e3, None) for name, start, end in pairs}

    def peak(self, run: Callable[[], object], clear: Callable[[], object]) -> int | None:
        """See `Machine.peak`; by PyTorch's allocator."""
        clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def release(self) -> None:
        """See `Machine.release`; raises what a kernel has done to the device, after which nothing can run there."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def machine_of(device: torch.device, threads: int) -> Machine:
    """The machine of a device."""
    return Cuda(device, threads) if device.type == "cuda" else Cpu(threads)


def _status(field: str) -> int:
    """Bytes that /proc/self/status gives for a field."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
