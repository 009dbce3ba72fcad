"""Timing in turn, and cells whose contenders are wrong, missing or left out."""

import pytest
import torch

from bench.cell import Cell, Contender, Prepared, measure
from bench.timing import interleaved


def test_every_repetition_runs_every_contender_in_turn():
    ran = []
    times = interleaved({name: lambda name=name: ran.append(name) for name in "abc"}, 3, pause=0)
    assert ran == list("abcabcabc")
    assert all(len(t.wall) == len(t.cpu) == 3 and min(t.wall) >= 0 for t in times.values())


def test_no_repeats():
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        interleaved({}, 0)


def cell(*contenders):
    return Cell("sampling", "B", {"batch": 1}, "us/step", contenders)


def right(ran, name="right", **options):
    return Contender(name, "ours", lambda: Prepared(lambda: ran.append(name), lambda: 1e-6), 1e-3, **options)


def must_not_run():
    raise AssertionError("timed")


def missing():
    raise ModuleNotFoundError("No module named 'peer'")


def broken():
    raise RuntimeError("no such kernel\nand a long trace")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda: Prepared(must_not_run, lambda: 0.5), "wrong: error 0.5 where 0.001 is allowed"),
        (lambda: Prepared(must_not_run, lambda: float("nan")), "wrong: error nan where 0.001 is allowed"),
        (missing, "not installed: No module named 'peer'"),
        (broken, "RuntimeError: no such kernel"),
        (lambda: Prepared(broken, lambda: 0.0), "RuntimeError: no such kernel"),
    ],
)
def test_a_contender_that_is_wrong_or_missing_is_not_timed(prepare, reason):
    ran = []
    result = measure(cell(right(ran), Contender("peer", "peer", prepare, 1e-3)), 2)
    ours, peer = result["results"]
    assert (peer["reason"], peer["repeats"], peer["values"], peer["median"]) == (reason, 0, [], None)
    assert (ours["reason"], ours["repeats"], ours["error"]) == (None, 2, 1e-6)
    assert len(ran) == 1 + 2  # warm-up and repetitions


def test_left_out():
    result = measure(cell(right([]), Contender("A Peer", "peer", must_not_run, 1e-3)), 1, without=["peer"])
    assert [entry["reason"] for entry in result["results"]] == [None, "left out (--without peer)"]


def test_values_are_per_call():
    def run():
        torch.ones(1000).sum()

    one, many = (
        Contender(name, "ours", lambda: Prepared(run), calls=calls) for name, calls in (("one", 1), ("many", 1000))
    )
    result = measure(cell(one, many), 3)["results"]
    assert result[1]["median"] < result[0]["median"] / 50
    assert result[0]["minimum"] <= result[0]["median"]
