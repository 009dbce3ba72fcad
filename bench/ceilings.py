"""The machine's own rates, measured in the same run as what is held against them. No clock is touched.

Every rate is the best of several short windows, and of several ways to get at it: it is to give floors. What other work
takes from this process meanwhile does not count where that can be told (`peak.best_rate`).
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fusedmdn.ops import peak

from fusedmdn import ops

from .precision import TORCH, products

WINDOWS = 6  # of a reader or a copy
TOGETHER = 4  # runs on a GPU between two events, so that gaps between launches do not count
SMALL, LARGE = 256, 2048  # rows and columns of matrices on the CPU: from, to
LONG = 0.03  # seconds of a product, from which on eight times as long would be too long
GPU_MATRIX = 8192
BUFFER, LEAST_BUFFER = 1 << 28, 1 << 24  # bytes; and no smaller than OVER caches
OVER = 4
SHARE = 4  # of the free memory, a buffer has one part in so many

Say = Callable[[str], None]
Found = dict[str, float]  # rates by what measured them, in words


def measure(
    device: torch.device, threads: int, read_sizes: Iterable[int], say: Say = lambda line: None
) -> dict[str, Any]:
    """The "ceilings" of a run, as its JSON holds them.

    multiply_adds: a second, by dtype (two operations each). bandwidth: bytes a second through the memory. cache: bytes
    of the last cache, None where the system does not tell. reads: bytes a second of reading so many bytes again and
    again, by size; CPU only. by: what measured each, in words.

    Args:
        device: CPU or CUDA.
        threads: that the CPU's work may use.
        read_sizes: bytes; what fits a cache is to come from there.
        say: told what is measured next.

    Raises:
        ValueError: another device, fewer than one thread, a size of less than 4 bytes.
        MemoryError: not even the smallest buffers can be had.
    """
    sizes = sorted(set(read_sizes))
    if threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")
    if sizes and sizes[0] < 4:
        raise ValueError(f"read_sizes must be >= 4 bytes, got {sizes[0]}")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device}")
    if device.type == "cuda":
        return _of_gpu(device, say)
    with _torch_threads(threads):
        return _of_cpu(threads, sizes, say)


def fastest(found: Found) -> tuple[float, str]:
    """The best rate and what measured it."""
    by = max(found, key=found.__getitem__)
    return found[by], by


def widened(found: dict[str, Found]) -> dict[str, Found]:
    """What each dtype can do at the least: products of the narrower are exact in the wider, so need not be slower.

    And three products in TF32 make one in float32, as our kernels do it.
    """
    out = {dtype: dict(rates) for dtype, rates in found.items()}
    if "tf32" in out:
        rate, by = fastest(found["tf32"])
        out["float32"][f"three products for one, {by}"] = rate / 3
    for narrow in ("tf32", "bf16", "fp16"):
        for wide in ("tf32", "float32"):
            if narrow in out and wide in found and narrow != wide:
                rate, by = fastest(found[wide])
                out[narrow][f"in {wide}, {by}"] = rate
    return out


def _ceilings(products: dict[str, Found], bandwidth: tuple[float, str], cache: int | None) -> dict[str, Any]:
    rates = {dtype: fastest(found) for dtype, found in widened(products).items()}
    by = {dtype: words for dtype, (_, words) in rates.items()}
    by |= {"bandwidth": bandwidth[1], "cache": "the system's figure" if cache else "not known"}
    return {
        "multiply_adds": {dtype: rate for dtype, (rate, _) in rates.items()},
        "bandwidth": bandwidth[0],
        "cache": cache,
        "reads": {},
        "by": by,
    }


def _of_cpu(threads: int, sizes: list[int], say: Say) -> dict[str, Any]:
    rates: dict[str, Found] = {}
    for name in ("float32", "bf16"):
        say(f"ceilings, products in {name}")
        rates[name] = _cpu_products(name, threads)
    cache = last_cache()
    say("ceilings, memory")
    ceilings = _ceilings(rates, _cpu_bandwidth(threads, cache or 0), cache)
    for size in sizes:
        say(f"ceilings, reading {size} bytes")
        rate, by = _reading(size, threads)
        ceilings["reads"][str(size)] = rate
        ceilings["by"][f"reads {size}"] = by
    return ceilings


def _cpu_products(name: str, threads: int) -> Found:
    """torch.mm, of matrices as large as time allows; and the kernels' own instructions."""
    dtype, found = TORCH[name], {}
    n = SMALL
    while True:
        rate = _mm_rate(n, dtype, threads)
        found[f"torch.mm of {n}x{n} matrices"] = rate
        if n >= LARGE or n**3 / rate > LONG:
            break
        n *= 2
    own = ops.cpu_peak(dtype, threads) if ops.cpu_isa() else None
    if own is not None:
        found[f"multiply-adds in registers, {ops.cpu_isa()}"] = own
    return found


def _mm_rate(n: int, dtype: torch.dtype, threads: int) -> float:
    a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    return _again(lambda: torch.mm(a, b, out=out), n**3, threads, 2)


def _cpu_bandwidth(threads: int, cache: int) -> tuple[float, str]:
    """The fastest of reading, copying and filling more than the caches hold."""
    size, note = max(BUFFER, OVER * cache), ""
    free = free_memory()
    while True:
        if free is None or size <= free // SHARE or size <= LEAST_BUFFER:
            try:
                found = {**readers(size, threads), **_writers(size, threads)}
                break
            except MemoryError:
                if size <= LEAST_BUFFER:
                    raise
        size, note = size // 2, ", a smaller one than meant: not enough memory"
    rate, by = fastest(found)
    return rate, f"{by} of {size} bytes{note}"


def _reading(size: int, threads: int) -> tuple[float, str]:
    """A buffer of that size; where memory does not suffice, half of it, which cannot be read more slowly."""
    read = size
    while True:
        try:
            rate, by = fastest(readers(read, threads))
            break
        except MemoryError:
            if read <= LEAST_BUFFER:
                raise
            read //= 2
    return rate, by if read == size else f"{by} of {read} bytes only: not enough memory"


def readers(size: int, threads: int) -> Found:
    """Bytes a second of reading one buffer of `size` bytes again and again, by what reads it."""
    array = np.full(size // 4, 0.01, np.float32)
    buffer = torch.from_numpy(array)
    runs: dict[str, Callable[[], object]] = {
        "torch.sum": lambda: torch.sum(buffer),
        "numpy.dot": lambda: np.dot(array, array),
    }
    found = {name: _again(run, array.nbytes, threads) for name, run in runs.items()}
    if ops.cpu_isa():
        found[f"sums of vectors, {ops.cpu_isa()}"] = ops.cpu_reading(size, threads, WINDOWS)
    return found


def _writers(size: int, threads: int) -> Found:
    array = np.full(size // 4, 0.01, np.float32)
    half, other = torch.from_numpy(array).chunk(2)
    return {
        "copying the half": _again(lambda: half.copy_(other), array.nbytes, threads),
        "filling": _again(lambda: half.fill_(0.02), half.nbytes, threads),
    }


def _again(run: Callable[[], object], each: int, threads: int, windows: int | None = None) -> float:
    """What runs do in a second, if one does `each`."""

    def rounds(count: int) -> float:
        for _ in range(count):
            run()
        return float(count * each)

    return peak.best_rate(rounds, threads, windows or WINDOWS)


def free_memory() -> int | None:
    """Bytes that can be had without swapping, where Linux tells."""
    path = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found[1]) * 1024 if found else None


def last_cache(cpus: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Bytes of all last-level data caches together, where Linux tells."""
    caches: dict[tuple[int, str], int] = {}
    for path in cpus.glob("cpu[0-9]*/cache/index*/size"):
        index = path.parent
        kind, level, size, shared = (
            (index / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            caches[int(level), shared] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in caches), default=None)
    return sum(size for (level, _), size in caches.items() if level == last) if last else None


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _of_gpu(device: torch.device, say: Say) -> dict[str, Any]:
    rates: dict[str, Found] = {}
    with torch.cuda.device(device):
        for name in TORCH:
            say(f"ceilings, products in {name}")
            rates[name] = _smaller(GPU_MATRIX, SMALL, functools.partial(_gpu_products, device, name))
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        say("ceilings, memory")
        free, _ = torch.cuda.mem_get_info(device)
        size = min(max(4 * BUFFER, 2 * OVER * cache), max(free // SHARE, LEAST_BUFFER))
        bandwidth = fastest(_smaller(size, LEAST_BUFFER, functools.partial(_gpu_bandwidth, device)))
    return _ceilings(rates, bandwidth, cache)


def _smaller(size: int, least: int, found: Callable[[int], Found]) -> Found:
    """found(size), or of half as much, until the memory suffices."""
    while True:
        try:
            return found(size)
        except torch.OutOfMemoryError:
            if size // 2 < least:
                raise
        size //= 2


def _gpu_products(device: torch.device, name: str, n: int) -> Found:
    """Ones: of all operands these cost the chip the least power, which is what limits its clock."""
    a, b = (torch.ones(n, n, dtype=TORCH[name], device=device) for _ in range(2))
    out = torch.empty_like(a)
    with products(name):
        seconds = _shortest(lambda: torch.mm(a, b, out=out))
    return {f"torch.mm of {n}x{n} matrices": n**3 / seconds}


def _gpu_bandwidth(device: torch.device, size: int) -> Found:
    """Copying, reading and filling more than the L2 holds."""
    half, other = torch.ones(size // 4, device=device).chunk(2)
    runs = {
        f"copying half of {size} bytes": (lambda: half.copy_(other), 2 * half.nbytes),
        f"torch.sum of {half.nbytes} bytes": (lambda: torch.sum(half), half.nbytes),
        f"filling {half.nbytes} bytes": (lambda: half.fill_(2.0), half.nbytes),
    }
    return {by: moved / _shortest(run) for by, (run, moved) in runs.items()}


def _shortest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, a few of them at a time between two events."""
    run()
    times = []
    for _ in range(2 * WINDOWS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(TOGETHER):
            run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / TOGETHER)
    return min(times)
