"""The most that the C++ kernels can multiply and read on this machine, measured: what their times are held against."""

import ctypes
import os
import time
from collections.abc import Callable

import torch

from . import _cpu

WINDOW = 0.01  # seconds that one measurement takes at the least
WINDOWS = 20  # measurements, of which the best counts: other work only ever takes away
PATTERN = 0x3C  # of every byte that is read: as a float 0.0115, no zero page and no denormal


def cpu_peak(dtype: torch.dtype, threads: int = 1, windows: int = WINDOWS) -> float | None:
    """Multiply-adds a second in registers, of the instruction set in use on so many threads (kernels/cpu/peak.h).

    A matrix product of the kernels cannot be faster; two operations are one multiply-add. The best of `windows`
    measurements of 10 to 20 ms each.

    Args:
        dtype: torch.float32, or torch.bfloat16 for products in bfloat16 whose sums are float32.
        threads: all of them at work; more than the process has cores gain nothing.
        windows: how often it is measured.

    Returns:
        The rate of all threads together; None where the instruction set has no multiply-adds of that dtype.

    Raises:
        ValueError: another dtype, or fewer than one thread or window.
        RuntimeError: the extension is not there.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    _at_least_one(threads=threads, windows=windows)
    lib, sums = _library(), (ctypes.c_float * threads)()
    bf16 = dtype == torch.bfloat16
    return best_rate(lambda rounds: lib.fusedmdn_peak(bf16, threads, rounds, sums), threads, windows, True) or None


def cpu_reading(size: int, threads: int = 1, windows: int = WINDOWS) -> float:
    """Bytes a second at which so many threads read one buffer of `size` bytes again and again.

    Each thread reads its own part, in order, on huge pages where the system has them. What fits a cache comes from
    there: it is the rate at which a step can read weights of that size. The best of `windows` measurements. Threads
    that have to take turns on busy cores, and so find the memory free, have too high a rate rather than too low a one.

    Raises:
        ValueError: less than one float (4 bytes; what is beyond whole ones is left out), thread or window.
        MemoryError: no such buffer can be had.
        RuntimeError: the extension is not there.
    """
    if size < 4:
        raise ValueError(f"size must be >= 4 bytes, got {size}")
    _at_least_one(threads=threads, windows=windows)
    lib, sums, count = _library(), (ctypes.c_float * threads)(), size // 4
    buffer = lib.fusedmdn_allocate(4 * count)
    if buffer is None:
        raise MemoryError(f"not enough memory for a buffer of {size} bytes")

    def read(rounds: int) -> int:
        lib.fusedmdn_read(buffer, count, threads, rounds, sums)
        return rounds * 4 * count

    try:
        ctypes.memset(buffer, PATTERN, 4 * count)
        return best_rate(read, threads, windows, True)
    finally:
        lib.fusedmdn_free(buffer)


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")


def _library() -> ctypes.CDLL:
    lib = _cpu.library()
    if lib is None:
        raise RuntimeError(str(_cpu.problem()))
    return lib


def best_rate(run: Callable[[int], float], threads: int, windows: int = WINDOWS, alike: bool = False) -> float:
    """The most that run(rounds) does in a second by what it returns, of windows long enough; 0 where it does nothing.

    Time that other work takes from this process does not count where one thread works, or `alike` all threads do, the
    same all the time: a window's seconds are its processor time over the threads that can run at once, or its wall
    time where that is less. Otherwise they are its wall time.
    """
    at_once = min(threads, _cores())
    rounds, rates = 1, [0.0]
    while len(rates) <= windows:
        wall, busy = time.perf_counter(), time.process_time()
        done = run(rounds)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        if not done:
            break
        seconds = min(wall, busy / at_once) if alike or threads == 1 else wall
        if seconds < WINDOW:
            rounds *= 2
        else:
            rates.append(done / seconds)
    return max(rates)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
