"""Every fault that a cooperative kernel can have is found, and correct kernels pass in every order."""

import gc

import greenlet
import pytest
import torch
import triton
import triton.language as tl

from . import Deadlock, OutOfBounds, ProgramError, Race, SimulationError, Simulator, run

POLICIES = ["random", "priority", "serial"]


@triton.jit
def arrive(counter):
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def recurrence(
    inputs,  # [T, B, 4H]
    weight,  # [H, 4H]
    h,  # [2, B, H], zero: step t reads slot t % 2 and writes the other
    outputs,  # [T, B, H]
    counter,
    T,
    H: tl.constexpr,
    B: tl.constexpr,
    UNITS: tl.constexpr,  # per program
    FAULT: tl.constexpr = "",
):
    programs = tl.num_programs(0)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    row = tl.arange(0, B)
    k = tl.arange(0, H)
    w = weight + k[:, None] * (4 * H) + unit[None, :]
    wi, wf, wg, wo = tl.load(w), tl.load(w + H), tl.load(w + 2 * H), tl.load(w + 3 * H)
    c = tl.zeros((B, UNITS), tl.float32)
    for t in range(T):
        before = tl.load(h + (t % 2) * B * H + row[:, None] * H + k[None, :])
        x = inputs + (t * B + row[:, None]) * (4 * H) + unit[None, :]
        i = tl.sigmoid(tl.dot(before, wi, tl.load(x), input_precision="ieee"))
        f = tl.sigmoid(tl.dot(before, wf, tl.load(x + H), input_precision="ieee"))
        g = 2 * tl.sigmoid(2 * tl.dot(before, wg, tl.load(x + 2 * H), input_precision="ieee")) - 1
        o = tl.sigmoid(tl.dot(before, wo, tl.load(x + 3 * H), input_precision="ieee"))
        c = f * c + i * g
        after = o * (2 * tl.sigmoid(2 * c) - 1)
        slot = t % 2 if FAULT == "slot" else (t + 1) % 2
        tl.store(h + slot * B * H + row[:, None] * H + unit[None, :], after)
        target = (t + 1) * programs
        if FAULT == "" or FAULT == "slot":
            arrive(counter)
            tl.store(outputs + (t * B + row[:, None]) * H + unit[None, :], after)  # work between the two halves
            wait(counter, target)
        elif FAULT == "every other step":
            if t % 2 == 0:
                arrive(counter)
                wait(counter, (t // 2 + 1) * programs)
        elif FAULT == "one short":
            arrive(counter)
            wait(counter, target - 1)
        elif FAULT == "one too many":
            arrive(counter)
            wait(counter, target + 1)
        elif FAULT == "no arrive":
            wait(counter, target)
        elif FAULT == "relaxed arrive":
            tl.atomic_add(counter, 1, sem="relaxed", scope="gpu")
            wait(counter, target)
        elif FAULT == "relaxed poll":
            arrive(counter)
            while tl.atomic_add(counter, 0, sem="relaxed", scope="gpu") < target:
                pass
        elif FAULT == "volatile poll":
            arrive(counter)
            while tl.load(counter, volatile=True) < target:
                pass
        elif FAULT == "plain poll":
            arrive(counter)
            while tl.load(counter) < target:
                pass
        elif FAULT == "block scope":
            tl.atomic_add(counter, 1, sem="release", scope="cta")
            while tl.atomic_add(counter, 0, sem="acquire", scope="cta") < target:
                pass
        elif FAULT == "arrive before the store":
            arrive(counter)
            tl.store(h + slot * B * H + row[:, None] * H + unit[None, :], after)
            wait(counter, target)
        else:
            tl.static_assert(FAULT == "no barrier", "unknown fault")


def reference(inputs, weight):
    _, B, width = inputs.shape
    h = c = torch.zeros(B, width // 4, dtype=torch.float64)
    outputs = []
    for x in inputs.double():
        i, f, g, o = (x + h @ weight.double()).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def simulate(fault="", programs=4, T=5, B=4, H=32, **options):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(T, B, 4 * H, generator=generator)
    weight = torch.randn(H, 4 * H, generator=generator) / 5
    h = torch.full((2, B, H), float("nan"))
    h[0] = 0
    outputs = torch.full((T, B, H), float("nan"))
    counter = torch.zeros(1, dtype=torch.int32)
    arguments = {
        "inputs": inputs,
        "weight": weight,
        "h": h,
        "outputs": outputs,
        "counter": counter,
        "T": T,
        "H": H,
        "B": B,
    }
    statistics = run(recurrence, (programs,), dict(arguments, UNITS=H // programs, FAULT=fault), **options)
    return outputs, reference(inputs, weight), statistics


@pytest.mark.parametrize("race", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_correct_recurrence_passes(policy, race):
    for seed in range(4):
        outputs, expected, statistics = simulate(policy=policy, seed=seed, race=race)
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6, check_dtype=False)
        assert statistics["switches"] >= 4 * 5 - 1
        assert statistics["atomics"] >= 4 * 5 * 2
        assert statistics["stores"] == 4 * 5 * 2


@pytest.mark.parametrize("programs", [1, 2, 8, 16])
def test_any_number_of_programs(programs):
    outputs, expected, _ = simulate(programs=programs, T=3)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "fault",
    [
        "no barrier",
        "every other step",
        "one short",
        "relaxed arrive",
        "relaxed poll",
        "volatile poll",
        "plain poll",
        "block scope",
        "slot",
        "arrive before the store",
    ],
)
def test_a_race_is_found_in_every_order(fault, policy):
    for seed in range(2):
        with pytest.raises(
            Race, match=r"^recurrence, program \d: .* program \d .*(h|counter)\[\d+\]\n.*test_faults.py:"
        ):
            simulate(fault, policy=policy, seed=seed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("race", [True, False])
@pytest.mark.parametrize("fault", ["one too many", "no arrive"])
def test_a_deadlock_is_found(fault, race, policy):
    with pytest.raises(Deadlock, match="recurrence, program .*poll"):
        simulate(fault, policy=policy, race=race)


@pytest.mark.parametrize("fault", ["relaxed arrive", "volatile poll", "block scope"])
def test_the_detector_sees_what_the_values_do_not_show(fault):
    """Otherwise these tests would pass with a detector that compares results."""
    for seed in range(2):
        with pytest.raises(AssertionError, match="nan"):  # only `outputs` is not written by the faulty ones
            outputs, _, _ = simulate(fault, race=False, seed=seed)
            assert not outputs.isnan().any(), "nan"


def test_the_same_seed_gives_the_same_order():
    counts = [simulate(seed=seed)[2] for seed in (1, 1, 2)]
    assert counts[0] == counts[1] != counts[2]


# Memory


@triton.jit
def copy(source, target, n, shift, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + index, tl.load(source + index + shift, mask=index < n, other=-1.0), mask=index < n)


@pytest.mark.parametrize("race", [True, False])
@pytest.mark.parametrize(
    ("sizes", "n", "shift", "message"),
    [
        ((100, 100), 101, 0, r"copy, program 3: load at source\[100\], whose storage has 100 elements of 4 bytes"),
        ((101, 100), 101, 0, r"copy, program 3: store at target\[100\]"),
        ((100, 100), 100, -1, r"copy, program 0: load at source\[-1\]"),
        ((100, 100), 100, 1 << 26, r"load at source\[67108864\]"),
        ((100, 100), 100, -(1 << 26), r"load at source\[-67108864\]"),
    ],
)
def test_an_access_out_of_bounds_is_found(sizes, n, shift, message, race):
    source, target = (torch.zeros(size) for size in sizes)
    with pytest.raises(OutOfBounds, match=message):
        run(
            copy,
            (4,),
            {"source": source, "target": target, "n": n, "shift": shift, "BLOCK": 32},
            race=race,
            policy="serial",
        )


@triton.jit
def backwards(source, target, first):
    lane = tl.arange(0, 8)
    tl.store(target + lane, tl.load(source + first - lane))


def test_a_block_that_only_ends_out_of_bounds_is_found():
    source, target = torch.arange(16.0), torch.zeros(8)
    run(backwards, (1,), {"source": source, "target": target, "first": 7})
    assert target.tolist() == list(range(7, -1, -1))
    with pytest.raises(OutOfBounds, match=r"source\[-1\].* \(1 of 8 lanes\)"):
        run(backwards, (1,), {"source": source, "target": target, "first": 6})


def test_lanes_that_are_masked_off_may_point_anywhere():
    source, target = torch.randn(100), torch.zeros(100)
    run(copy, (4,), {"source": source, "target": target, "n": 100, "shift": 0, "BLOCK": 32})
    assert torch.equal(source, target)


def test_a_tensor_of_no_elements_can_be_passed():
    run(copy, (1,), {"source": torch.zeros(0), "target": torch.zeros(0), "n": 0, "shift": 0, "BLOCK": 32})


@triton.jit
def masked_without_other(source, target):
    lane = tl.arange(0, 8)
    tl.store(target + lane, tl.load(source + lane, mask=lane < 4))


def test_what_is_masked_off_without_other_is_garbage():
    target = torch.zeros(8)
    run(masked_without_other, (1,), {"source": torch.ones(4), "target": target})
    assert target[:4].eq(1).all()
    assert target[4:].isnan().all()


@triton.jit
def bump(counters, lane_stride, BLOCK: tl.constexpr):
    tl.atomic_add(counters + tl.arange(0, BLOCK) * lane_stride, 1)


def test_an_atomic_out_of_bounds_is_found():
    with pytest.raises(OutOfBounds, match=r"bump, program 0: atomic at counters\[4\]"):
        run(bump, (1,), {"counters": torch.zeros(4, dtype=torch.int32), "lane_stride": 1, "BLOCK": 8})


def test_lanes_of_an_atomic_that_share_an_element_take_turns():
    counters = torch.zeros(1, dtype=torch.int32)
    run(bump, (5,), {"counters": counters, "lane_stride": 0, "BLOCK": 8})
    assert counters.item() == 40


@triton.jit
def write_slice(target, width, stride, BLOCK: tl.constexpr):
    index = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    tl.store(target + index, index.to(target.dtype.element_ty), mask=tl.arange(0, BLOCK) < width)


@pytest.mark.parametrize("policy", POLICIES)
def test_two_programs_that_write_one_element_are_found(policy):
    target = torch.zeros(64)
    run(write_slice, (4,), {"target": target, "width": 8, "stride": 8, "BLOCK": 8}, policy=policy)
    with pytest.raises(Race, match=r"write_slice, program \d: writes an element that program \d .*target\[(7|14|21)\]"):
        run(write_slice, (4,), {"target": target, "width": 8, "stride": 7, "BLOCK": 8}, policy=policy)


@triton.jit
def write_twice(target, distance):
    tl.store(target + tl.arange(0, 8) * distance, 1.0)


def test_two_lanes_that_write_one_element_are_found():
    run(write_twice, (1,), {"target": torch.zeros(16), "distance": 2})
    with pytest.raises(Race, match=r"program 0: two lanes of one store write target\[0\]"):
        run(write_twice, (1,), {"target": torch.zeros(16), "distance": 0})


@triton.jit
def write_both(wide, narrow):
    """Program 0 writes float32 elements 0 and 1, program 1 int16 elements from `narrow` on."""
    lane = tl.arange(0, 2)
    if tl.program_id(0) == 0:
        tl.store(wide + lane, 1.0)
    else:
        tl.store(narrow + lane, 7)


@pytest.mark.parametrize("policy", POLICIES)
def test_views_of_one_storage_are_one_memory(policy):
    storage = torch.zeros(8)
    halves = storage.view(torch.int16)
    run(write_both, (2,), {"wide": storage, "narrow": halves[4:]}, policy=policy)
    assert halves[:6].tolist() == [0, 0x3F80, 0, 0x3F80, 7, 7]
    for start in (2, 3):  # inside element 1, and across its end
        for seed in range(4):  # either program first
            with pytest.raises(Race, match=r"wide/narrow\["):
                run(write_both, (2,), {"wide": storage, "narrow": halves[start:]}, policy=policy, seed=seed)


@triton.jit
def transpose(source, target, N: tl.constexpr, row, column):
    lane = tl.arange(0, N)
    values = tl.load(source + lane[:, None] * row + lane[None, :] * column)
    tl.store(target + lane[:, None] * N + lane[None, :], values)


def test_strided_and_offset_views_start_where_they_should():
    source, target = torch.randn(10, 8), torch.zeros(8, 8)
    view = source[2:].T
    run(transpose, (1,), {"source": view, "target": target, "N": 8, "row": view.stride(0), "column": view.stride(1)})
    assert torch.equal(target, view)


@triton.jit
def accumulate_then_read(total, seen, counter, ORDERED: tl.constexpr):
    tl.atomic_add(total, 1.0, sem="relaxed")
    if ORDERED:
        arrive(counter)
        wait(counter, tl.num_programs(0))
    tl.store(seen + tl.program_id(0), tl.load(total))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_plain_load_must_be_ordered_after_the_atomics(policy):
    arguments = {"total": torch.zeros(1), "seen": torch.zeros(4), "counter": torch.zeros(1, dtype=torch.int32)}
    run(accumulate_then_read, (4,), dict(arguments, ORDERED=True), policy=policy)
    assert arguments["seen"].tolist() == [4] * 4
    with pytest.raises(Race, match=r"atomically.*(a value that program \d may still read|)at total\[0\]"):
        run(accumulate_then_read, (4,), dict(arguments, ORDERED=False), policy=policy)


@triton.jit
def update_and_read(total, amount, FIRST: tl.constexpr):
    """One program updates atomically, the other loads; nothing orders them."""
    if (tl.program_id(0) == 0) == FIRST:
        tl.atomic_add(total, amount, sem="relaxed")
    else:
        tl.load(total)


def test_an_atomic_update_and_a_plain_load_race_whichever_comes_first():
    given = {"total": torch.zeros(1), "amount": 1.0}
    with pytest.raises(Race, match=r"program 1: reads a value that program 0 may still be updating .*total\[0\]"):
        run(update_and_read, (2,), {**given, "FIRST": True}, policy="serial")
    with pytest.raises(Race, match=r"program 1: updates atomically a value that program 0 may still read .*total\[0\]"):
        run(update_and_read, (2,), {**given, "FIRST": False}, policy="serial")
    for first in (True, False):  # an atomic that changes nothing only reads
        run(update_and_read, (2,), {**given, "amount": 0.0, "FIRST": first}, policy="serial")


@triton.jit
def reset_counter(counter):
    arrive(counter)
    wait(counter, tl.num_programs(0))
    if tl.program_id(0) == 0:
        tl.store(counter, 0)


def test_a_counter_reset_while_others_may_poll_is_found():
    with pytest.raises(Race, match=r"counter\[0\]"):
        run(reset_counter, (4,), {"counter": torch.zeros(1, dtype=torch.int32)})


# Scheduling


@triton.jit
def critical_section(lock, total, RELEASE: tl.constexpr):
    while tl.atomic_cas(lock, 0, 1, sem="acquire") != 0:
        pass
    tl.store(total, tl.load(total) + 1)
    if RELEASE:
        tl.atomic_xchg(lock, 0, sem="release")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lock_excludes(policy):
    arguments = {"lock": torch.zeros(1, dtype=torch.int32), "total": torch.zeros(1)}
    run(critical_section, (6,), dict(arguments, RELEASE=True), policy=policy)
    assert arguments["total"].item() == 6
    with pytest.raises(Deadlock, match="critical_section"):
        run(critical_section, (6,), dict(arguments, RELEASE=False), policy=policy)


@triton.jit
def many_waits(counter, data):
    """Waits that are satisfied at once, with nothing but loads between them, are not a deadlock."""
    arrive(counter)
    for _ in range(20):
        wait(counter, tl.num_programs(0))
        tl.load(data)


@pytest.mark.parametrize("policy", POLICIES)
def test_satisfied_waits_are_no_deadlock(policy):
    for seed in range(5):
        counter = torch.zeros(1, dtype=torch.int32)
        run(many_waits, (3,), {"counter": counter, "data": torch.zeros(1)}, policy=policy, seed=seed)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_grid_may_be_large(policy):
    """Programs that one after another pass the turn on are no deeper in Python's recursion than the first."""
    run(many_waits, (256,), {"counter": torch.zeros(1, dtype=torch.int32), "data": torch.zeros(1)}, policy=policy)


@triton.jit
def endless(flag, other):
    while tl.load(flag) == 0:
        tl.store(other, 1.0)


def test_a_loop_without_end_is_stopped():
    with pytest.raises(Deadlock, match="no end after 500 memory accesses"):
        run(endless, (2,), {"flag": torch.zeros(1), "other": torch.zeros(1)}, race=False, limit=500)


@triton.jit
def failing(counter, data):
    if tl.program_id(0) == 1:
        tl.load(data) + tl.arange(0, 3)  # not a power of two
    arrive(counter)
    wait(counter, 99)


def live_greenlets():
    gc.collect()
    return sum(type(thing) is greenlet.greenlet and bool(thing) for thing in gc.get_objects())


@pytest.mark.parametrize("grid", [(3,), (1, 3), (1, 1, 3)])
def test_an_exception_names_the_program_and_leaves_no_greenlets(grid):
    alive = live_greenlets()
    arguments = {"counter": torch.zeros(1, dtype=torch.int32), "data": torch.zeros(1)}
    if grid == (3,):
        with pytest.raises(
            ProgramError, match=r"failing, program 1: ValueError: (.|\n)*test_faults.py:\d+: tl.load"
        ) as caught:
            run(failing, grid, arguments)
        assert isinstance(caught.value.__cause__, ValueError)
    else:
        with pytest.raises(Deadlock, match=r"failing, program \(0, [012], [012]\)"):
            run(failing, grid, arguments)
    assert live_greenlets() == alive


def test_the_hook_ignores_launch_options_and_keeps_statistics():
    hook = Simulator(seed=3, policy="priority", race=False)
    target = torch.zeros(32)
    arguments = {"target": target, "width": 8, "stride": 8, "BLOCK": 8}
    hook(write_slice, (4,), arguments, {"num_warps": 8, "launch_cooperative_grid": True})
    assert target.tolist() == list(range(32))
    hook(write_slice, lambda given: (given["width"] // 2,), arguments, {})
    assert [name for name, _ in hook.statistics] == ["write_slice"] * 2
    assert [counts["stores"] for _, counts in hook.statistics] == [4, 4]
    hook.race = True
    with pytest.raises(Race):
        hook(write_slice, (4,), dict(arguments, stride=7), {})
    assert issubclass(Race, SimulationError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": torch.zeros(8), "width": 8, "stride": 8}, "needs an argument for BLOCK"),
        ({"target": torch.zeros(8), "width": 8, "stride": 8, "BLOCK": 8, "num_warps": 4}, "no parameter num_warps"),
        ({"target": [1], "width": 8, "stride": 8, "BLOCK": 8}, "'target'"),
        ({"target": torch.zeros(8, device="meta"), "width": 8, "stride": 8, "BLOCK": 8}, "'target' is on meta"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        run(write_slice, (1,), arguments)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="policy"):
        run(write_slice, (1,), {"target": torch.zeros(8), "width": 8, "stride": 8, "BLOCK": 8}, policy="pct")
