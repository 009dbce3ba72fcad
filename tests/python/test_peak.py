"""Multiply-adds in registers, and reading: all of it is done, on every instruction set; rates are of this world."""

import ctypes
import itertools
import os
import time
import types

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import _cpu, peak

LANES = {"avx512bf16": 16, "avx512": 16, "avx2": 8, "baseline": 4}


@pytest.fixture(params=_cpu.isas())
def isa(request):
    with _cpu.forced_isa(request.param):
        yield request.param


def run(bf16, threads, rounds):
    sums = (ctypes.c_float * (threads + 1))(*[-1.0] * (threads + 1))
    return _cpu.library().fusedmdn_peak(bf16, threads, rounds, sums), list(sums)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_every_multiply_add_is_done(isa, threads, rounds):
    """A chain's value after so many rounds is known exactly, and the count follows from the chains."""
    done, sums = run(False, threads, rounds)
    _, start = run(False, threads, 0)
    lanes = LANES[isa]
    chains = next(n for n in range(1, 99) if n * (n - 1) / 2 * lanes == start[0])
    assert done == threads * rounds * chains * lanes
    wanted = lanes * sum(2 + (k - 2) / 2**rounds for k in range(chains))
    assert sums == [wanted] * threads + [-1.0]

    done, sums = run(True, threads, rounds)
    if isa != "avx512bf16":
        assert (done, sums) == (0, [-1.0] * (threads + 1))
        return
    assert done == 2 * threads * rounds * chains * lanes
    assert sums == [lanes * sum(k + 1.5 * rounds for k in range(chains))] * threads + [-1.0]


def test_long_runs_stay_finite(isa):
    """The chains settle; a value that overflowed or became denormal would change the rate."""
    lanes, chains = LANES[isa], 24 if isa.startswith("avx512") else 12
    assert run(False, 1, 100_000)[1][0] == 2.0 * chains * lanes
    assert ops.cpu_peak(torch.float32, windows=1) > 1e9


def test_an_instruction_set_without_bfloat16_has_no_rate_of_it(isa):
    rate = ops.cpu_peak(torch.bfloat16, windows=1)
    assert (rate is None) == (isa != "avx512bf16")
    assert rate is None or rate > 1e9


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 127, 128, 1000])
def test_every_float_is_read_in_every_round(isa, count, threads):
    data = torch.arange(count, dtype=torch.float32)
    sums = (ctypes.c_float * threads)()
    _cpu.library().fusedmdn_read(data.data_ptr(), count, threads, 3, sums)
    assert sum(sums) == 3 * count * (count - 1) / 2
    bounds = [part * count // threads for part in range(threads + 1)]
    assert list(sums) == [3 * data[a:b].sum().item() for a, b in itertools.pairwise(bounds)]


def test_rates():
    """Within what processors of this time can do; vectors in bfloat16 twice those in float32; caches beat memory."""
    rate = ops.cpu_peak(torch.float32, windows=5)
    assert 1e9 < rate < 2e11
    bf16 = ops.cpu_peak(torch.bfloat16, windows=5)
    assert (bf16 is None) == (_cpu.isa() != "avx512bf16")
    if bf16 is not None:
        assert 1.2 < bf16 / rate < 3
    assert 1e9 < ops.cpu_reading(1 << 28, windows=3) < ops.cpu_reading(16_384, windows=3) < 2e12


def test_a_rate_is_what_is_done_in_a_second_of_work():
    """Rounds are doubled until a window is long enough; then the best counts, and time spent asleep does not."""
    ran = []

    def work(rounds):
        ran.append(rounds)
        for _ in range(rounds):
            end = time.process_time() + 0.003
            while time.process_time() < end:
                pass
            time.sleep(0.002)
        return rounds

    rate = peak.best_rate(work, 1, windows=3)
    assert 0.9 / 0.003 < rate <= 1 / 0.003
    assert ran == [1, 2, 4, 4, 4]


def test_the_best_window_counts(monkeypatch):
    """Of processor time over the threads that run at once, or of wall time where that is less, or may only be used."""
    seconds = iter([(0.4, 0.04), (0.04, 0.9), (0.4, 0.06), (0.4, 0.04), (0.3, 0.04)])  # wall, busy
    clock = {"wall": 0.0, "busy": 0.0}

    def work(rounds):
        wall, busy = next(seconds)
        clock["wall"] += wall
        clock["busy"] += busy
        return 6

    fake = types.SimpleNamespace(perf_counter=lambda: clock["wall"], process_time=lambda: clock["busy"])
    monkeypatch.setattr(peak, "time", fake)
    monkeypatch.setattr(peak, "_cores", lambda: 2)
    assert peak.best_rate(work, 8, windows=2, alike=True) == pytest.approx(6 / 0.02)
    assert peak.best_rate(work, 1, windows=1) == pytest.approx(6 / 0.06)
    assert peak.best_rate(work, 8, windows=2) == pytest.approx(6 / 0.3)  # one of the eight may have worked alone
    assert peak.best_rate(lambda rounds: 0, 1) == 0.0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be pinned here")
def test_more_threads_than_cores_gain_nothing():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        one, many = (ops.cpu_peak(torch.float32, threads, windows=5) for threads in (1, 8))
    finally:
        os.sched_setaffinity(0, before)
    assert many < 1.3 * one


def test_bad_input():
    with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.bfloat16, got torch.float16"):
        ops.cpu_peak(torch.float16)
    with pytest.raises(ValueError, match="threads must be >= 1, got 0"):
        ops.cpu_peak(torch.float32, 0)
    with pytest.raises(ValueError, match="windows must be >= 1, got 0"):
        ops.cpu_reading(64, 1, 0)
    with pytest.raises(ValueError, match="size must be >= 4 bytes, got 3"):
        ops.cpu_reading(3)
    with pytest.raises(MemoryError, match=f"not enough memory for a buffer of {1 << 60} bytes"):
        ops.cpu_reading(1 << 60)


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(_cpu, "library", lambda: None)
    monkeypatch.setattr(_cpu, "problem", lambda: "it was taken away")
    for measure in (lambda: ops.cpu_peak(torch.float32), lambda: ops.cpu_reading(64)):
        with pytest.raises(RuntimeError, match="it was taken away"):
            measure()
