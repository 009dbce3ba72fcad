"""The resident plan's barriers: right under every schedule, every mutant of them caught, no waiting for what has ended.

As test_synchronisation.py. Two groups of three programs, the last of which has fewer units and no outputs of the head;
group 0 has two of the three tiles of 16 sequences.
"""

import functools

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import plans, sampling_plans

from ...conftest import simulated
from ...python.test_generate import start, weights
from .mutants import NONE, OF_THE_BARRIER, UNGATHERED, Mutant, catch, findings, kernels_of, names

B, H, M = 37, 20, 2
PLAN = sampling_plans.Resident(8, columns=8, width=16, ahead=plans.ALL, precision="ieee", programs=3, groups=2)


def run(steps=2, L=3, skip=True, pen="categorical", primed=None, done=range(33, B), end=-0.5, dtype=torch.float32):
    """Without primes, the last tile ends with the first draw of its only sequence, and others when they do."""
    I, P = (5, 3) if pen == "categorical" else (3, 1)
    torch.manual_seed(0)
    w = weights(I, H, P + 6 * M, L, skip, peephole=True, dtype=dtype)
    w[-1][P - 1] = end  # the last logit of the pen
    state = start(B, I, H, L, seed=4, dtype=dtype)
    state = state._replace(h=torch.randn_like(state.h), c=torch.randn_like(state.c), row=torch.randn_like(state.row))
    state.done[[5, *done]] = True
    options = {"num_mixtures": M, "pen": pen, "skip": skip, "peephole": True}
    if primed is not None:
        options |= {"prime": torch.randn(B, max(primed), I), "prime_lengths": torch.tensor(primed)}
    with ops.plan(PLAN if dtype == torch.float32 else "resident"):
        points, lengths, state = ops.generate(w, state, steps, **options)
    return points, lengths, *state


CASES = {
    "three layers": {"steps": 4},
    "ragged primes": {"pen": "bernoulli", "primed": [b % 4 for b in range(B)]},
    "two layers without skip": {"steps": 4, "L": 2, "skip": False},
    "one layer": {"steps": 4, "L": 1},  # only that h has two halves protects it
}


@functools.cache
def expected(case):
    with simulated(race=False, policy="serial"):
        return run(**CASES[case])


@pytest.mark.parametrize(("policy", "seeds"), [("random", 2), ("priority", 2), ("serial", 1)])
@pytest.mark.parametrize("case", CASES)
def test_any_schedule_gives_the_same_bits(case, policy, seeds):
    """No race, no deadlock, and nothing that depends on who was first."""
    for seed in range(seeds):
        with simulated(seed=seed, policy=policy):
            for got, want in zip(run(**CASES[case]), expected(case), strict=True):
                assert torch.equal(got, want)


def test_the_tiles_end_one_after_the_other():
    """Of the case that the mutants run: group 0 goes on when one of its tiles has ended."""
    _, lengths, _, _, _, drawn, *_ = expected("three layers")
    ended = [set(tile.tolist()) for tile in lengths.split(16)]
    assert ended[2] == {0}
    assert drawn[32] == 1  # the end; it was not done before
    assert all({1, 2, 4} <= tile for tile in ended[:2])


@pytest.mark.parametrize(
    ("tiles", "done"), [((0, 5, 2), ()), ((5, 0, 1), ()), ((1, 2, 4), range(16)), ((4, 1, 2), range(16, B))]
)
def test_no_tile_waits_for_one_that_has_ended(tiles, done):
    """Nor for one that is done from the start; a tile of sequences has as many steps as its prime's rows, and one."""
    options = {"steps": 1, "L": 1, "primed": [tiles[b // 16] for b in range(B)], "done": done}
    with ops.backend("reference"):
        want = run(**options)
    for policy in ("random", "priority", "serial"):
        with simulated(policy=policy):
            torch.testing.assert_close(run(**options), want)


def test_nothing_is_done_after_the_last_end():
    """When all sequences end with their first draw, a call for 50 steps does what a call for one does, and no more."""
    work = []
    for steps, end in ((50, 100.0), (1, -100.0), (2, -100.0)):
        with simulated(policy="serial") as simulator:
            run(steps, end=end)
        work.append(simulator.statistics)
    assert work[0] == work[1] != work[2]


RESIDENT = "generate_resident.py"
ARRIVE = "arrive(counter)"
HEAD_ARRIVES = "if n == L:\n" + 32 * " " + ARRIVE
CELL = "cell = finish(sums, {}, c, peephole, n, at, units, live, H, UNITS)"
WAIT, WAIT_FOR_RAW = "wait(counter, (t * (L + 1) + n) * NP)", "wait(counter, (t + 1) * (L + 1) * NP)"
STORE_RAW, CLEAR_RAW = "tl.store(raw + at_raw, sums, mask=live_raw)", "tl.store(raw + b * D, 0.0, going & (p == 0))"
STOP, SEQUENCE = "stop = tl.where(ends, t + 1, stop)", "tl.load(seed + 1) + b"
TILES = "range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1))"
PROGRAMS = "NP = tl.num_programs(0)"


def mutant(name, old, new, nth=0):
    return Mutant(name, RESIDENT, old, new, nth)


def swapped(name, indent, first, second):
    between = "\n" + indent * " "
    return mutant(name, first + between + second, second + between + first)


def waits(what, wait, nth=0):
    """All that can be wrong with one of the waits."""
    return [
        mutant(f"{what} is not waited for", wait, "pass", nth),
        mutant(f"{what} is waited for with one arrival too few", wait, wait.replace("NP", "NP - 1"), nth),
        mutant(f"{what} is waited for with one arrival too many", wait, wait.replace("NP", "NP + 1"), nth),
        mutant(f"{what} is waited for as if a step had L barriers", wait, wait.replace("(L + 1)", "L"), nth),
        mutant(f"{what} is waited for on another tile", wait, wait.replace("er,", "ers + (tile + 1) % 3 * 32,"), nth),
    ]


# Left out is what upsets no order: `else` where a tile that has ended does not arrive, since nobody waits for it any
# more; an end of the loop one step late, or that one tile decides for its group, since all programs of a group agree;
# `wait` without its debug_barrier, since the compiler has one of its own where the other threads get the poll's value.
# Left out, too, is what neither detector nor lint sees: the debug_barrier between a program's own stores of stops and z
# and its loads of them.
MUTANTS = [
    *waits("a layer", WAIT),
    *waits("the last layer", WAIT, nth=1),
    *waits("raw", WAIT_FOR_RAW),
    mutant("a layer does not arrive", ARRIVE, "pass"),
    mutant("the head does not arrive", ARRIVE, "pass", nth=1),
    mutant("the first layer does not arrive", ARRIVE, "pass", nth=2),
    swapped("a layer arrives before it has written", 28, CELL.format("now"), ARRIVE),
    swapped("the first layer arrives before it has written", 24, CELL.format("later"), ARRIVE),
    swapped("the head arrives before it has written", 28, STORE_RAW, HEAD_ARRIVES),
    mutant("the head arrives with every layer", HEAD_ARRIVES, HEAD_ARRIVES.replace("n == L", "n > FIRST")),
    mutant("who has no outputs does not arrive", HEAD_ARRIVES, HEAD_ARRIVES.replace(":", " and p * COLUMNS < D:")),
    mutant("tiles share a counter", "counters + tile * 32", "counters", nth=None),
    mutant("groups share a counter", "counters + tile * 32", "counters + tile // 2 * 32", nth=None),
    mutant("programs of all groups are counted", PROGRAMS, f"{PROGRAMS} * tl.num_programs(1)"),
    mutant("groups are counted", PROGRAMS, PROGRAMS.replace("0", "1")),
    mutant("groups take each other's tiles", TILES, "range(tl.cdiv(B, ROWS))", nth=None),
    mutant("h has one half", ") % 2", ") % 1", nth=None),
    mutant("h is written into the half that is read", "(t + 2) % 2", "(t + 1) % 2"),
    mutant("h is read from the half that is written next", "rows = now", "rows = later"),
    mutant("the layer that is being computed is read", "(n - 1) * B", "n % L * B"),
    mutant("raw is cleared while others may read it", STOP, f"{STOP}; {CLEAR_RAW}"),
    mutant("programs share their stops", "stops += p * B", "pass"),
    mutant("programs draw differently", SEQUENCE, f"{SEQUENCE} + p"),
    mutant("only one program sees an end", STOP, STOP.replace("ends", "ends & (p == 0)")),
    mutant("a tile that has ended goes on", "other=0) > tl.maximum(t, 0)", "other=-1) >= 0"),
    mutant("every program stores the points", "if p == NP - 1:", "if p >= 0:"),
    mutant("every program stores the row", "    store_row(x, row", "store_row(x, row"),
    Mutant("the very number of arrivals is waited for", "barrier.py", "< arrivals", "!= arrivals"),
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
def test_the_lint_catches(mutated):
    assert findings(mutated, "sm_80", lambda: run(L=1, dtype=torch.bfloat16))


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_lint_has_nothing_to_say_of_the_kernel(target):
    assert not findings("fusedmdn.kernels", target, lambda: run(L=2, dtype=torch.bfloat16))


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 14
