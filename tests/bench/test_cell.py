"""Cells: timed in turn, right before fast, as long as there is time."""

import dataclasses
import itertools
import math
import threading
import time

import pytest
import torch
from fusedmdn.ops.forced import PlanError

from bench.budget import Budget, budget_of
from bench.cell import Cannot, Cell, Contender, Prepared, affordable, check, measure, title
from bench.machine import Cpu, settle
from bench.timing import Timed, interleaved, quartered


class Ticks:
    """A machine whose phases take 1, 2, 3 seconds and so on, and that knows how often it released memory."""

    device, kind, threads = torch.device("cpu"), "cpu", 1

    def __init__(self):
        self.seconds, self.released = itertools.count(1), 0

    def time(self, phases):
        taken = {}
        for name, phase in phases.items():
            phase()
            taken[name] = (float(next(self.seconds)), 0.5)
        return taken

    def peak(self, run, clear):
        run()
        clear()
        return 7

    def release(self):
        self.released += 1


TWICE = Budget(2, 2)


def contender(name="ours", phases=None, error=lambda: 1e-6, role="ours", **options):
    phases = {"run": lambda: None} if phases is None else phases
    return Contender(name, "float32", role, lambda: Prepared(phases, error), 1e-3, **options)


def cell(*contenders, unit="ms"):
    floors = {"float32": {"time": 0.25, "bound": "products", "multiply_adds": 5, "bytes": 6}}
    return Cell("sampling", "B", {"B": 1}, unit, contenders, floors)


def test_a_repetition_runs_every_contender_in_turn():
    ran = []
    phases = {name: Timed({"run": lambda name=name: ran.append(name)}, torch.no_grad) for name in "abc"}
    times, broken = interleaved(phases, Ticks(), Budget(3, 3))
    assert ran == list("abccbaabc")  # every other time in the opposite order
    assert not broken
    assert times["b"]["run"].wall == [2, 5, 8]
    assert times["b"]["run"].cpu == [0.5] * 3


def test_the_context_is_entered_around_each_run_and_not_timed():
    inside = []
    interleaved({"a": Timed({"run": lambda: inside.append(torch.is_grad_enabled())}, torch.no_grad)}, Ticks(), TWICE)
    assert inside == [False, False]


def test_repetitions_go_on_until_the_share_is_over():
    ran = []
    runs = {"a": Timed({"run": lambda: ran.append(time.sleep(0.02))}, torch.no_grad)}
    interleaved(runs, Ticks(), Budget(2, 1000, 1.0, start=time.monotonic()))
    assert 2 < len(ran) <= 50
    ran.clear()
    interleaved(runs, Ticks(), Budget(3, 1000, end=time.monotonic() - 1))
    assert len(ran) == 3


def test_no_repetitions():
    with pytest.raises(ValueError, match="repetitions must be >= 1, got 0"):
        interleaved({}, Ticks(), Budget(0, 2))


def test_who_breaks_off_is_dropped_and_the_others_go_on():
    runs = itertools.count()

    def breaks():
        if next(runs) == 2:
            raise torch.OutOfMemoryError("out of memory\nand more")

    machine = Ticks()
    found = measure(cell(contender(), contender("peer", {"run": breaks}, role="peer")), machine, Budget(4, 4))
    ours, peer = found["results"]
    assert (peer["reason"], peer["values"], peer["phases"]) == ("broke off: OutOfMemoryError: out of memory", [], {})
    assert (peer["median"], peer["peak_memory"], peer["failed"]) == (None, None, False)
    assert ours["repeats"] == 4
    assert machine.released >= 2


def test_the_optimiser_is_timed_and_not_compared():
    ran = []
    phases = {name: lambda name=name: ran.append(name) for name in ("forward", "backward", "optimiser")}
    (result,) = measure(cell(contender(phases=phases)), Ticks(), TWICE)["results"]
    assert result["phases"]["forward"]["values"] == [4e3, 7e3]  # a warm-up took 1, 2 and 3
    assert result["phases"]["optimiser"]["values"] == [6e3, 9e3]
    assert result["values"] == [9e3, 15e3]
    assert (result["median"], result["minimum"], result["percentile_80"]) == (12e3, 9e3, pytest.approx(13.8e3))
    assert result["cpu"] == [1e3, 1e3]
    assert ran[-2:] == ["forward", "backward"]  # of peak memory
    assert result["peak_memory"] == 7


def test_values_are_per_call_and_in_the_unit():
    (result,) = measure(cell(contender(calls=4), unit="us/step"), Ticks(), TWICE)["results"]
    assert result["values"] == [2e6 / 4, 3e6 / 4]


def test_floors_are_in_the_unit():
    assert measure(cell(contender()), Ticks(), TWICE)["floors"]["float32"]["time"] == 250


def must_not_run():
    raise AssertionError("timed")


def wrong(error):
    return lambda: Prepared({"run": must_not_run}, lambda: error)


def missing():
    raise ModuleNotFoundError("No module named 'peer'")


def broken():
    raise RuntimeError("no such kernel\nand a long trace")


def unfit():
    raise PlanError("the fused plan does not fit")


def unable():
    raise Cannot("it has no LSTM")


@pytest.mark.parametrize(
    ("prepare", "reason", "error", "failed"),
    [
        (wrong(0.5), "wrong: error 0.5 where 0.001 is allowed", 0.5, True),
        (wrong(math.nan), "wrong: error nan where 0.001 is allowed", None, True),
        (missing, "not installed: No module named 'peer'", None, False),
        (broken, "RuntimeError: no such kernel", None, True),
        (unable, "it has no LSTM", None, False),
        (unfit, "PlanError: the fused plan does not fit", None, False),
        (lambda: Prepared({"run": broken}, lambda: 0.0), "RuntimeError: no such kernel", None, True),
        (lambda: Prepared({"run": must_not_run}, missing), "not installed: No module named 'peer'", None, False),
    ],
)
def test_a_contender_that_is_wrong_or_missing_is_not_timed(prepare, reason, error, failed):
    ran = []
    ours = contender(phases={"run": lambda: ran.append(1)})
    result = measure(cell(ours, Contender("peer", "float32", "peer", prepare, 1e-3)), Ticks(), TWICE)
    ours, peer = result["results"]
    assert (peer["reason"], peer["error"], peer["failed"], peer["values"]) == (reason, error, failed, [])
    assert (ours["reason"], ours["repeats"], ours["error"]) == (None, 2, 1e-6)
    assert len(ran) == 1 + 2 + 1  # warm-up, repetitions, peak memory


def test_left_out():
    contenders = contender(), Contender("A Peer", "bf16", "peer", must_not_run, 1e-3)
    for word in ("peer", "BF16"):
        results = measure(cell(*contenders), Ticks(), TWICE, [word])["results"]
        assert [entry["reason"] for entry in results] == [None, f"left out (--without {word})"]


def test_nothing_is_begun_when_the_time_is_over():
    budget = Budget(2, 2, end=time.monotonic() - 1, minutes=10)
    outcome = check(Contender("peer", "float32", "peer", must_not_run, 1e-3), Ticks(), budget, ())
    assert outcome.reason == "the 10 minutes were over"


def test_the_slowest_peers_make_room_and_ours_never():
    contenders = [contender(), *(contender(f"peer {n}", role="peer") for n in range(3))]
    outcomes = {c.key: check(c, Ticks(), TWICE, ()) for c in contenders}
    seconds = dict(zip(outcomes, (50.0, 20.0, 1.0, 30.0), strict=True))
    outcomes = {key: outcome._replace(seconds=seconds[key]) for key, outcome in outcomes.items()}

    def reasons(left):
        found = affordable(contenders, outcomes, Budget(2, 2, left / 2, minutes=5))
        return [outcome.reason for outcome in found.values()]

    assert reasons(203) == [None] * 4
    slow = "too slow for a run of 5 minutes: one run takes {} s".format
    assert reasons(150) == [None, None, None, slow("30.0")]
    assert reasons(1) == [None, slow("20.0"), slow("1.0"), slow("30.0")]
    over = affordable(contenders, outcomes, Budget(2, 2, 1.0, end=time.monotonic() - 1, minutes=5))
    assert [outcome.reason for outcome in over.values()] == [None] + ["the 5 minutes were over"] * 3


def test_checks_end_with_the_share_and_ours_are_the_first():
    checked = []

    def slow(name, role):
        def prepare():
            checked.append(name)
            time.sleep(0.05)
            return Prepared({"run": lambda: None}, lambda: 0.0)

        return Contender(name, "float32", role, prepare, 1e-3)

    budget = Budget(1, 1, 0.05, time.monotonic() + 60, time.monotonic(), 7)
    contenders = [slow("a", "peer"), slow("b", "peer"), slow("c", "peer"), slow("ours", "ours")]
    results = measure(cell(*contenders), Ticks(), budget)["results"]
    assert checked[0] == "ours"
    assert [result["contender"] for result in results] == ["a", "b", "c", "ours"]
    assert results[2]["reason"] == "no time left to prepare it in a run of 7 minutes"
    assert results[3]["values"]


@pytest.mark.parametrize("broken", ["peak", "plan"])
def test_what_is_told_beside_the_times_may_fail(monkeypatch, broken):
    machine = Ticks()
    if broken == "peak":
        monkeypatch.setattr(machine, "peak", lambda run, clear: 1 / 0)
    given = contender(plan=(lambda: 1 / 0) if broken == "plan" else (lambda: {"name": "rows"}))
    (result,) = measure(cell(given), machine, TWICE)["results"]
    assert result["values"]
    assert (result["peak_memory"], result["plan"]) == ((None, {"name": "rows"}) if broken == "peak" else (7, None))


def test_a_peak_that_the_allocator_does_not_see_is_not_told():
    (result,) = measure(cell(contender(allocates=False)), Ticks(), TWICE)["results"]
    assert result["peak_memory"] is None


def test_the_plan_is_asked_for_in_the_contenders_precision():
    plan = {"plan": lambda: {"tf32": torch.backends.cuda.matmul.fp32_precision}}
    given = dataclasses.replace(contender(**plan), dtype="tf32")
    (result,) = measure(cell(given), Ticks(), TWICE)["results"]
    assert result["plan"] == {"tf32": "tf32"}


def test_the_plan_is_told_of_what_was_timed():
    plan = {"plan": lambda: {"name": "rows"}}
    ours, wrong = measure(
        cell(contender(**plan), contender("wrong", error=lambda: 1.0, **plan)), Ticks(), TWICE
    )["results"]  # fmt: skip
    assert (ours["plan"], wrong["plan"]) == ({"name": "rows"}, None)


def test_quarters():
    assert quartered([]) == {"median": None, "percentile_20": None, "percentile_80": None}
    assert quartered([3.0]) == {"median": 3.0, "percentile_20": 3.0, "percentile_80": 3.0}
    assert quartered([1.0, 2.0, 3.0]) == {"median": 2.0, "percentile_20": 1.4, "percentile_80": 2.6}


def test_a_cell_has_the_share_that_its_weight_gives():
    end = time.monotonic() + 60
    assert budget_of(3, 9, 10.0, end, 3.0, 12.0).share == pytest.approx(15, abs=0.5)
    assert budget_of(3, 9, 10.0, end, 1.0, 1.0).share == pytest.approx(60, abs=0.5)
    late = budget_of(3, 9, 10.0, time.monotonic() - 1, 1.0, 2.0)
    assert (late.share, late.over(), late.enough()) == (0, True, True)
    assert late.allowance() <= 0
    free = budget_of(3, 9, None, None, 1.0, 2.0)
    assert (free.over(), free.enough(), free.allowance()) == (False, False, math.inf)


def test_titles():
    assert title("sampling", "B", {"B": 1, "steps": 600}) == "sampling, model B, B 1, steps 600"
    assert title("", None, {"rows": 5}) == "rows 5"


def test_a_processors_time_and_peak_memory():
    kept = []
    machine = Cpu(1)
    taken = machine.time(
        {"sleep": lambda: time.sleep(0.05), "work": lambda: torch.ones(300, 300) @ torch.ones(300, 300)}
    )
    wall, cpu = taken["sleep"]
    assert wall >= 0.05 > cpu
    assert list(taken) == ["sleep", "work"]
    size = 1 << 24
    for live in (1, 3):  # so many blocks at once
        peak = machine.peak(lambda live=live: kept.extend(torch.ones(size // 4) for _ in range(live)), kept.clear)
        assert peak == pytest.approx(live * size, rel=0.05)


def test_nothing_is_timed_while_threads_of_the_one_before_spin():
    def spin(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    thread = threading.Thread(target=spin, args=(0.15,))
    thread.start()
    settle()
    assert not thread.is_alive()
    start = time.monotonic()
    settle()
    assert time.monotonic() - start < 0.1


def test_what_a_run_leaves_behind_does_not_hide_the_next():
    """As gradients do: cleared before the run, so that it makes them anew."""
    kept = {}

    def run():
        kept["gradient"] = torch.ones(1 << 22)

    assert Cpu(1).peak(run, kept.clear) == pytest.approx(1 << 24, rel=0.05)
