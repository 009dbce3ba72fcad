"""Copies of kernels/triton with one line of the synchronisation changed, run or compiled in the kernels' place.

The fixture `mutated` makes them.
"""

import importlib
from typing import NamedTuple
from unittest import mock

import fusedmdn.ops as ops
import pytest
from fusedmdn.ops import launch, plans

from ...compile_gate.shipped import Recorder
from ...compile_gate.workers import compile_all
from ...conftest import launching, simulated
from ...simulator import Deadlock, OutOfBounds, Race

BARRIER = "barrier.py"
ADD = 'tl.atomic_add(counter, 1, sem="release", scope="gpu")'
POLL = 'tl.atomic_add(counter, 0, sem="acquire", scope="gpu")'


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    nth: int | None = 0  # of the places where `old` stands; None: all of them


NONE = Mutant("none", BARRIER, "pass", "pass")
OF_THE_BARRIER = [
    Mutant("the arrival is relaxed", BARRIER, ADD, ADD.replace("release", "relaxed")),
    Mutant("the arrival is of block scope", BARRIER, ADD, ADD.replace("gpu", "cta")),
    Mutant("the poll is relaxed", BARRIER, POLL, POLL.replace("acquire", "relaxed")),
    Mutant("the poll is of block scope", BARRIER, POLL, POLL.replace("gpu", "cta")),
    Mutant("the poll is a plain load", BARRIER, POLL, "tl.load(counter, volatile=True)"),
]
UNGATHERED = Mutant(  # only the lint sees it
    "threads are not gathered before they arrive", BARRIER, f"    tl.debug_barrier()\n    {ADD}", f"    {ADD}"
)


def kernels_of(package):
    def kernel(name):
        module, function = name.split(".")
        return getattr(importlib.import_module(f"{package}.{module}"), function)

    return mock.patch.object(launch, "kernel", kernel)


def names(mutants):
    return pytest.mark.parametrize("mutated", mutants, indirect=True, ids=[m.name.replace(" ", "-") for m in mutants])


def catch(package, run):
    """Fails unless the detector finds a fault in what the mutant runs.

    In one of a few schedules: where programs happen to run in step, an early poll still finds what it should.
    """
    with kernels_of(package), pytest.raises((Race, Deadlock, OutOfBounds)):
        for seed, policy in enumerate(("random", "priority", "serial") * 2):
            with simulated(seed=seed, policy=policy, limit=20_000):
                run()


def findings(package, target, run):
    """Of the PTX lint, in all kernels that `run` launches."""
    recorder = Recorder(plans.Device(target, 8, plans.SHARED[target] * 1024))
    recorder.name = "mutant"
    with kernels_of(package), ops.backend("triton"), launching(recorder):
        run()
    figures = compile_all([(variant, target) for variant in recorder.variants.values()])
    assert all("lint" in row for row in figures.values()), figures
    return [finding for row in figures.values() for finding in row["lint"]]
