"""The fused loss's barriers: right under every schedule, every mutant of them caught, no waiting for what has ended.

As test_synchronisation.py. Two groups of programs: group 0 has two of the three tiles of 16 sequences. The tiles differ
in their longest sequence, and one is empty.
"""

import functools

import pytest
import torch
from fusedmdn.ops import plans, reference, training_plans
from fusedmdn.ops.triton import fused

from ...conftest import simulated
from ...python.test_lstm_mdn_nll import Network
from .mutants import NONE, OF_THE_BARRIER, UNGATHERED, Mutant, catch, findings, kernels_of, names

B, M, UNITS, COLUMNS, GROUPS = 37, 2, 8, 8, 2
SAVED = 3  # outputs after which those follow that are kept for backward


def plan(direction, L, H, D):
    programs = L * -(-H // UNITS) + (-(-D // COLUMNS) + 1 if direction == "forward" else 1)
    return training_plans.Fused(UNITS, COLUMNS, 16, plans.ALL, "ieee", programs, GROUPS)


def lengths_of(*longest):
    """Of the three tiles; each has sequences of all lengths up to its longest."""
    return torch.tensor([b % (longest[b // 16] + 1) for b in range(B)])


@functools.cache
def network(T=4, L=3, H=12, skip=True, pen="categorical", longest=(4, 2, 0), dtype=torch.float32):
    torch.manual_seed(0)
    I, lengths = 5 if pen == "categorical" else 3, None if longest is None else lengths_of(*longest)
    options = {"pen": pen, "skip": skip, "peephole": True, "clip_gates": 0.5}
    return Network(L, dtype, sizes=(T, B, H, M, I), lengths=lengths, **options)


@functools.cache
def saved(**sizes):
    """Gradients of the outputs, and what the reference's forward keeps."""
    given = network(**sizes)
    outputs = reference.lstm_mdn_nll(*given.arguments())
    torch.manual_seed(1)
    return [torch.randn(v.shape) for v in outputs[:SAVED]], outputs[SAVED:]


def forward(save=False, **sizes):
    """Without what is kept for backward, h is a ring, so that all that is read too late or too early shows."""
    given = network(**sizes)
    L, _, H = given.h0.shape
    return fused.forward(plan("forward", L, H, len(given.weights[-1])), *given.arguments(save))


def backward(**sizes):
    given = network(**sizes)
    arguments, (grads, kept), (L, _, H) = given.arguments(), saved(**sizes), given.h0.shape
    its_plan = plan("backward", L, H, len(given.weights[-1]))
    options = *arguments[6:-1], True, True
    dx, dtarget, weights, dh0, dc0 = fused.backward(its_plan, *grads, *arguments[:6], *kept, *options)
    return dx, dtarget, *weights, dh0, dc0


CASES = {
    "three layers": functools.partial(forward, H=20),
    "all is kept": functools.partial(forward, save=True),
    "two layers without skip": functools.partial(forward, L=2, skip=False, T=5, longest=(1, 5, 3)),
    "one layer": functools.partial(forward, L=1, pen="bernoulli", longest=None),
    "three layers backward": functools.partial(backward, H=20),
    "two layers without skip backward": functools.partial(backward, L=2, skip=False, T=5, longest=(1, 5, 3)),
    "one layer backward": functools.partial(backward, L=1, pen="bernoulli", longest=None),
}


@functools.cache
def expected(case):
    with simulated(race=False, policy="serial"):
        return CASES[case]()


@pytest.mark.parametrize(("policy", "seed"), [("random", 0), ("priority", 1), ("serial", 0)])
@pytest.mark.parametrize("case", CASES)
def test_any_schedule_gives_the_same_bits(case, policy, seed):
    """No race, no deadlock, and nothing that depends on who was first."""
    with simulated(seed=seed, policy=policy):
        for got, want in zip(CASES[case](), expected(case), strict=True):
            assert torch.equal(got, want)


def test_the_tiles_end_one_after_the_other():
    """Of the case that the mutants run: group 0 has an empty tile, group 1 ends before it."""
    tiles = [set(tile.tolist()) for tile in network().lengths.split(16)]
    assert tiles == [{0, 1, 2, 3, 4}, {0, 1, 2}, {0}]


def arrivals(simulator):
    """At all counters. The only atomic operations that leave memory as it was are those of programs that wait."""
    (_, counts), *others = simulator.statistics
    assert not others
    return counts["atomics"] - counts["polls"]


@pytest.mark.parametrize("longest", [(0, 0, 0), (4, 4, 4), (0, 4, 2), (4, 0, 1)])
def test_no_tile_waits_for_one_that_has_ended(longest):
    """And each has as many barriers as its longest sequence has steps, one for each layer, one more backward."""
    L, H, sizes = 2, 12, {"L": 2, "longest": longest}
    given = network(**sizes)
    arguments, (grads, kept), D = given.arguments(False), saved(**sizes), len(given.weights[-1])
    outputs = reference.lstm_mdn_nll(*arguments)
    dx, dtarget, weights, dh0, dc0 = reference.lstm_mdn_nll_backward(
        *grads, *arguments[:6], *kept, *arguments[6:-1], True, True
    )
    for run, direction, want in (
        (forward, "forward", outputs),
        (backward, "backward", (dx, dtarget, *weights, dh0, dc0)),
    ):
        with simulated(policy="serial", race=False) as simulator:
            torch.testing.assert_close(run(**sizes), want, rtol=1e-4, atol=1e-4)
        waves = sum(n + L + (direction == "backward") for n in longest)
        assert arrivals(simulator) == waves * plan(direction, L, H, D).programs


def test_nothing_is_done_after_the_last_end():
    """Steps that no sequence has cost a look at the lengths, and zeros where something is kept."""
    work = []
    for T in (2, 12):
        with simulated(policy="serial", race=False) as simulator:
            forward(T=T, L=2, longest=(2, 2, 2))
            forward(T=T, L=2, longest=(2, 2, 2), save=True)
            backward(T=T, L=2, longest=(2, 2, 2))
        work.append([counts for _, counts in simulator.statistics])
    for few, many in zip(*work, strict=True):
        assert few["atomics"] == many["atomics"]
    tiles, layers, others, steps = 3, 2 * 2, 3, 10
    (few, kept, back), (many, many_kept, many_back) = work
    assert many["stores"] == few["stores"]
    assert many["loads"] - few["loads"] == tiles * (layers + others) * steps
    assert many_kept["loads"] - kept["loads"] == tiles * (layers + others) * steps
    assert many_kept["stores"] - kept["stores"] == tiles * layers * steps * 6  # h, cells and four gates
    assert many_back["loads"] - back["loads"] == tiles * (layers + 1) * steps
    assert many_back["stores"] - back["stores"] == tiles * layers * steps * 4  # dz


FUSED = "lstm_mdn_nll.py"
ROLES = ["a layer", "the head", "the likelihood", "a layer backward", "raw's gradient"]  # in their order in the file
FORWARD, BACKWARD, RAW = [0, 1, 2], [3, 4], 4
WAIT, ARRIVE = "wait(counter, s * tl.num_programs(0))", "arrive(counter)"
TILES, COUNTER = "range(tl.program_id(1), tl.cdiv(B, ROWS), tl.num_programs(1))", "counters + tile * 32"
LONGEST, LAST_LAYER = (
    "tl.max(length, 0)",
    "y += product(last, within, layers[S - 1], H, COLUMNS, CHUNKS, AHEAD, PRECISION)",
)
OTHER_TILE = "counters + (tile + 1) % 3 * 32"
OTHER_LENGTHS = "tl.max(length_of(lengths, (tile + 1) % 3 * ROWS + tl.arange(0, ROWS), B, T), 0)"
WAITS, ARRIVES = (f"if {when}:\n{20 * ' '}{what}" for when, what in (("s > 0", WAIT), ("s < longest + L", ARRIVE)))
ARRIVES_BACKWARD = ARRIVES.replace("L", "L + 1")
RAW_ARRIVES = f"if s < longest + L + 1:\n{16 * ' '}{WAITS}\n{16 * ' '}{ARRIVE}"
STORE_H = "tl.store(now + at, tl.where(live, out, 0.0), mask=inside)"
STORE_SUMS = "tl.store(sums + t % 3 * B * D + at, y, mask=mask)"
STORE_DZ = "store_gates(dz + step * 4 * H + at_z, dz_i, dz_f, dz_g, dz_o, live, mask, H)"
GRADIENTS = """if t >= 0:
                n = tl.cast(t, tl.int64) * B + b
                of_nll, row, out = tl.load(grad + n, mask=t < length, other=0.0), raw + n * (P + 6 * M), draw + n * DP
                gradients(of_nll, row, target, n, t < length, b < B, out, dtarget, bound, M, MP, P, SIGMOID)"""


def mutant(name, old, new, nth=0):
    return Mutant(name, FUSED, old, new, nth)


def swapped(name, indent, first, second):
    between = "\n" + indent * " "
    return mutant(name, first + between + second, second + between + first)


def of_each_role(what, old, new, roles):
    return [mutant(f"{ROLES[role]} {what}", old, new, role) for role in roles]


def of_all_roles(roles):
    return [
        *of_each_role("does not wait", WAIT, "pass", roles),
        *of_each_role("waits for one arrival too few", WAIT, WAIT[:-1] + " - 1)", roles),
        *of_each_role("waits for one arrival too many", WAIT, WAIT[:-1] + " + 1)", [r for r in roles if r != RAW]),
        *of_each_role("waits for the wave before", WAIT, WAIT.replace("s *", "(s - 1) *"), roles),
        *of_each_role("waits on another tile", WAIT, WAIT.replace("counter", OTHER_TILE), roles),
        *of_each_role("counts another tile", COUNTER, OTHER_TILE, roles),
        *of_each_role("does not arrive", ARRIVE, "pass", roles),
        *of_each_role("goes on to the last step of all", LONGEST, "T", roles),
        *of_each_role("ends with another tile", LONGEST, OTHER_LENGTHS, roles),
    ]


def of_all_programs(what):
    """All of them agree, and are wrong."""
    return [
        mutant(f"{what}'s tiles share a counter", COUNTER, "counters", nth=None),
        mutant(f"{what}'s groups share a counter", COUNTER, "counters + tile // 2 * 32", nth=None),
        mutant(f"{what} counts the programs of all groups", WAIT, WAIT[:-1] + " * tl.num_programs(1))", nth=None),
        mutant(f"{what} counts groups", WAIT, WAIT.replace("programs(0)", "programs(1)"), nth=None),
        mutant(f"{what}'s groups take each other's tiles", TILES, "range(tl.cdiv(B, ROWS))", nth=None),
    ]


# Left out is what upsets no order: an arrival at the last wave too, since nobody waits for it any more; T, or another
# tile's longest sequence, in place of a tile's own in all programs, since they agree; raw's gradient waiting for one
# arrival too many, since the others get that far without it; `wait` without its debug_barrier, since the
# compiler has one of its own where the other threads get the poll's value. Left out, too, is what neither detector nor
# lint sees: a carried cell state that is loaded before the wait, which orders it with the store of the step before; and
# what is wrong without being early or late, which the values show: zeros over what has been made, or a step skipped.
MUTANTS_FORWARD = [
    *of_all_roles(FORWARD),
    *of_all_programs("forward"),
    swapped("a layer arrives before it has written", 16, STORE_H, ARRIVES),
    swapped("the head arrives before it has written", 16, STORE_SUMS, ARRIVES),
    swapped("the head reads the last layer before it waits", 16, WAITS, LAST_LAYER),
    mutant("h is a ring of L steps", "% steps", "% (steps - 1)", nth=None),
    mutant("a layer reads the step of its own that is written", "(t - 1) % steps", "t % steps"),
    mutant("a layer reads the step below that is written", "steps + t % steps", "steps + (t + 1) % steps"),
    mutant("a layer follows the one below at once", "t = s - n\n", "t = s - n // 2\n"),
    mutant("the head is a step early", "t = s - L\n", "t = s - L + 1\n"),
    mutant("the likelihood is a step early", "t = s - L - 1\n", "t = s - L\n"),
    mutant("the sums have two rows", "t % 3", "t % 2", nth=None),
    mutant("the layers share their cell state", "c_T + n * B * H", "c_T", nth=None),
    mutant("two programs have the same units", "p * UNITS + tl.arange", "p // 2 * UNITS + tl.arange"),
    mutant("two programs have the same outputs", "p * COLUMNS + tl.arange", "p // 2 * COLUMNS + tl.arange"),
    Mutant("the very number of arrivals is waited for", "barrier.py", "< arrivals", "!= arrivals"),
    *OF_THE_BARRIER,
]
MUTANTS_BACKWARD = [
    *of_all_roles(BACKWARD),
    *of_all_programs("backward"),
    swapped("a layer backward arrives before it has written", 16, STORE_DZ, ARRIVES_BACKWARD),
    swapped("raw's gradient arrives before it is written", 12, GRADIENTS, RAW_ARRIVES),
    mutant("a layer backward reads the step of its own that is written", "(step + B) * 4", "step * 4"),
    mutant("a layer backward reads the step above that is written", "T, tl.int64) * B)", "T, tl.int64) * B - B)"),
    mutant(
        "a layer backward follows the one above at once", "longest + L - n - s", "longest + L - (n + 1) // 2 * 2 - s"
    ),
    mutant(
        "a layer backward reads raw's gradient a step early", "draw + tl.cast(t", "draw + tl.cast(tl.maximum(t - 1, 0)"
    ),
    mutant("raw's gradient is a wave late", "t = longest - 1 - s\n", "t = tl.minimum(longest - s, longest - 1)\n"),
    mutant("zeros are written over what others read", "(s >= longest) & (s < T)", "s < T"),
    mutant("the layers share their cell state's gradient", "dc + n * B * H", "dc", nth=None),
    mutant("two programs backward have the same units", "p * UNITS + tl.arange", "p // 2 * UNITS + tl.arange", nth=1),
]


@names([NONE])
def test_the_copy_without_a_change_passes(mutated):
    with kernels_of(mutated), simulated():
        forward()
        backward()


@names(MUTANTS_FORWARD)
def test_the_detector_catches_forward(mutated):
    catch(mutated, forward)


@names(MUTANTS_BACKWARD)
def test_the_detector_catches_backward(mutated):
    catch(mutated, backward)


@names([UNGATHERED])
def test_the_lint_catches(mutated):
    assert findings(mutated, "sm_80", lambda: forward(L=1, dtype=torch.bfloat16))


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_lint_has_nothing_to_say_of_the_kernels(target):
    def both():
        forward(L=2, dtype=torch.bfloat16)
        backward(L=2, dtype=torch.bfloat16)

    assert not findings("fusedmdn.kernels", target, both)


def test_there_are_enough_mutants():
    assert len(MUTANTS_FORWARD + MUTANTS_BACKWARD) >= 30
