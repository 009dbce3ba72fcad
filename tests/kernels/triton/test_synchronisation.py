"""The recurrence's barriers: right under every schedule, and every mutant of them caught by race detector or lint.

A mutant is a copy of kernels/triton with one line of the synchronisation changed. The detector runs it once; what it
cannot see, disorder between the threads of one program, the PTX lint of the compiled mutant must find.
"""

import importlib
import math
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import launch, plans, reference, triton

from ...compile_gate.shipped import Recorder
from ...compile_gate.workers import compile_all
from ...conftest import ROOT, launching, simulated
from ...simulator import Deadlock, Race

KERNELS = ROOT / "kernels" / "triton"
T, B, H = 4, 37, 40  # three tiles of 16 sequences, three programs of 16 units, two groups on a GPU of 8


def arguments(ragged=True, dtype=torch.float32):
    torch.manual_seed(0)
    lengths = torch.randint(0, T + 1, (B,)) if ragged else None
    if ragged:
        lengths[:16].clamp_(max=T - 1)  # the tiles differ in their longest sequence, and one of them is empty
        lengths[20], lengths[32:] = T, 0
    weight = (torch.randn(4 * H, H) / math.sqrt(H)).to(dtype)
    xw, state = torch.randn(T, B, 4 * H).to(dtype), torch.randn(B, H)
    forward = xw, weight, state.to(dtype), state, torch.randn(3, H), lengths, None, True
    h, _, _, gates, cells = reference.lstm(*forward)
    grads = torch.randn(h.shape).to(dtype), torch.randn(B, H), torch.randn(B, H)
    return forward, (*grads, weight, state, forward[4], lengths, gates, cells, 0.5)


def run(ragged=True):
    """Both directions of the persistent plan."""
    forward, backward = arguments(ragged)
    with ops.plan("persistent"):
        return *triton.lstm(*forward), *triton.lstm_backward(*backward)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("policy", ["random", "priority", "serial"])
def test_any_schedule_gives_the_same_bits(policy, ragged):
    """No race, no deadlock, and nothing that depends on who was first."""
    with simulated(race=False, policy="serial"):
        expected = run(ragged)
    for seed in range(3):
        with simulated(seed=seed, policy=policy):
            for got, want in zip(run(ragged), expected, strict=True):
                assert torch.equal(got, want)


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    nth: int = 0  # of the places where `old` stands
    by_lint: bool = False


PERSISTENT, BARRIER = "lstm_persistent.py", "barrier.py"
COUNTER = "counters + tile * 32"
FORWARD_WAIT, BACKWARD_WAIT = f"wait({COUNTER}, t * NP)", f"wait({COUNTER}, (longest - 1 - t) * NP)"
FORWARD_CELL, BACKWARD_CELL = "                c = tl.load(c_T", "                dc_t = tl.load(dc"  # after the wait
ARRIVE = f"                arrive({COUNTER})\n"
ADD = 'tl.atomic_add(counter, 1, sem="release", scope="gpu")'
POLL = 'tl.atomic_add(counter, 0, sem="acquire", scope="gpu")'
MUTANTS = [
    Mutant("forward never waits", PERSISTENT, FORWARD_WAIT, "pass"),
    Mutant("forward waits for one too few", PERSISTENT, FORWARD_WAIT, f"wait({COUNTER}, t * NP - 1)"),
    Mutant("forward waits for the step before", PERSISTENT, FORWARD_WAIT, f"wait({COUNTER}, (t - 1) * NP)"),
    Mutant("forward waits for one too many", PERSISTENT, FORWARD_WAIT, f"wait({COUNTER}, t * NP + 1)"),
    Mutant("forward waits every other step", PERSISTENT, "if t > 0:", "if t % 2 == 1:"),
    Mutant("forward's tiles share a counter", PERSISTENT, FORWARD_WAIT, "wait(counters, t * NP)"),
    Mutant("forward waits on another tile", PERSISTENT, FORWARD_WAIT, "wait(counters + (tile ^ 1) * 32, t * NP)"),
    Mutant("forward arrives before it has written", PERSISTENT, FORWARD_CELL, ARRIVE + FORWARD_CELL),
    Mutant("forward never arrives", PERSISTENT, ARRIVE, ""),
    Mutant("forward reads the step that is written", PERSISTENT, "h + (step - B) * H", "h + step * H"),
    Mutant("backward never waits", PERSISTENT, BACKWARD_WAIT, "pass"),
    Mutant("backward waits for one too few", PERSISTENT, BACKWARD_WAIT, BACKWARD_WAIT[:-1] + " - 1)"),
    Mutant("backward waits for one too many", PERSISTENT, BACKWARD_WAIT, BACKWARD_WAIT[:-1] + " + 1)"),
    Mutant("backward counts masked steps", PERSISTENT, "(longest - 1 - t) * NP", "(T - 1 - t) * NP"),
    Mutant("backward's tiles share a counter", PERSISTENT, BACKWARD_WAIT, BACKWARD_WAIT.replace(COUNTER, "counters")),
    Mutant("backward never arrives", PERSISTENT, ARRIVE, "", nth=1),
    Mutant("backward arrives before it has written", PERSISTENT, BACKWARD_CELL, ARRIVE + BACKWARD_CELL),
    Mutant("backward reads the step that is written", PERSISTENT, "(step + B + b) * (4 * H)", "(step + b) * (4 * H)"),
    Mutant("the arrival is relaxed", BARRIER, ADD, ADD.replace("release", "relaxed")),
    Mutant("the arrival is of block scope", BARRIER, ADD, ADD.replace("gpu", "cta")),
    Mutant("the poll is relaxed", BARRIER, POLL, POLL.replace("acquire", "relaxed")),
    Mutant("the poll is of block scope", BARRIER, POLL, POLL.replace("gpu", "cta")),
    Mutant("the poll is a plain load", BARRIER, POLL, "tl.load(counter, volatile=True)"),
    Mutant(
        "threads are not gathered before they arrive",
        BARRIER,
        f"    tl.debug_barrier()\n    {ADD}",
        f"    {ADD}",
        by_lint=True,
    ),
]


@pytest.fixture
def mutated(request, tmp_path, monkeypatch):
    """The package of a mutant's kernels."""
    mutant: Mutant = request.param
    package = f"mutant_{abs(hash(mutant))}"
    shutil.copytree(KERNELS, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path: Path = tmp_path / package / mutant.file
    pieces = path.read_text().split(mutant.old)
    assert len(pieces) > mutant.nth + 1, f"{mutant.old!r} does not stand in {mutant.file}"
    cut = mutant.nth + 1
    path.write_text(mutant.old.join(pieces[:cut]) + mutant.new + mutant.old.join(pieces[cut:]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    yield mutant, package
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def kernels_of(package):
    def kernel(name):
        module, function = name.split(".")
        return getattr(importlib.import_module(f"{package}.{module}"), function)

    return mock.patch.object(launch, "kernel", kernel)


def names(mutants):
    return pytest.mark.parametrize("mutated", mutants, indirect=True, ids=[m.name.replace(" ", "-") for m in mutants])


@names([Mutant("none", BARRIER, "pass", "pass")])
def test_the_copy_without_a_change_passes(mutated):
    _, package = mutated
    with kernels_of(package), simulated():
        run()


@names([m for m in MUTANTS if not m.by_lint])
def test_the_detector_catches(mutated):
    """In one of a few schedules: where programs happen to run in step, an early poll still finds what it should."""
    _, package = mutated
    with kernels_of(package), pytest.raises((Race, Deadlock)):
        for seed, policy in enumerate(("random", "priority", "serial") * 2):
            with simulated(seed=seed, policy=policy, limit=20_000):
                run()


@names([m for m in MUTANTS if m.by_lint])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_lint_catches(mutated, target):
    _, package = mutated
    assert findings(package, target)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_lint_has_nothing_to_say_of_the_kernels(target):
    assert not findings("fusedmdn.kernels", target)


def findings(package, target):
    recorder = Recorder(plans.Device(target, 8, plans.SHARED[target] * 1024))
    forward, backward = arguments(dtype=torch.bfloat16)
    with kernels_of(package), launching(recorder), ops.plan("persistent"):
        recorder.name = "mutant"
        triton.lstm(*forward)
        triton.lstm_backward(*backward)
    figures = compile_all([(variant, target) for variant in recorder.variants.values()])
    assert all("lint" in row for row in figures.values()), figures
    return [finding for row in figures.values() for finding in row["lint"]]


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 12
