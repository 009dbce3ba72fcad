"""The recurrence's barriers: right under every schedule, and every mutant of them caught by race detector or lint.

A mutant is a copy of kernels/triton with one line of the synchronisation changed. The detector runs it once; what it
cannot see, disorder between the threads of one program, the PTX lint of the compiled mutant must find.
"""

import math

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import reference, triton

from ...conftest import simulated
from .mutants import NONE, OF_THE_BARRIER, UNGATHERED, Mutant, catch, findings, kernels_of, names

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


def run(ragged=True, dtype=torch.float32):
    """Both directions of the persistent plan."""
    forward, backward = arguments(ragged, dtype)
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


PERSISTENT = "lstm_persistent.py"
COUNTER = "counters + tile * 32"
FORWARD_WAIT, BACKWARD_WAIT = f"wait({COUNTER}, t * NP)", f"wait({COUNTER}, (longest - 1 - t) * NP)"
FORWARD_CELL, BACKWARD_CELL = "                c = tl.load(c_T", "                dc_t = tl.load(dc"  # after the wait
ARRIVE = f"                arrive({COUNTER})\n"
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
    *OF_THE_BARRIER,
]


@names([NONE])
def test_the_copy_without_a_change_passes(mutated):
    with kernels_of(mutated), simulated():
        run()


@names(MUTANTS)
def test_the_detector_catches(mutated):
    catch(mutated, run)


@names([UNGATHERED])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_lint_catches(mutated, target):
    assert findings(mutated, target, lambda: run(dtype=torch.bfloat16))


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_lint_has_nothing_to_say_of_the_kernels(target):
    assert not findings("fusedmdn.kernels", target, lambda: run(dtype=torch.bfloat16))


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 12
