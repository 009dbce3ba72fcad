"""The small cases: right before they are timed, the same in every call, and run by pytest-benchmark as it documents."""

import subprocess
import sys

import pytest
import torch

from bench.speed.cases import CASES, SMALLEST, Case, Wrong, cases, prepare

from ..conftest import ROOT

SMALL = [case for case in CASES.values() if case.name.partition(f"T{SMALLEST.T} B{SMALLEST.B}")[1]]


def run_pytest(*words):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_work_has_its_smallest_case():
    assert {case.work for case in SMALL} == {"forward", "backward", "lstm", "mdn_nll", "generate"}
    assert len(CASES) == len(list(cases()))


def test_a_gpu_adds_as_many_cases():
    names = [case.name for case in cases(("cpu", "cuda"))]
    assert len(set(names)) == len(names) == 2 * len(list(cases(("cpu",))))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_call_gives_the_same(case):
    run = prepare(case)
    first, second = run(), run()
    assert first
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(first, second, strict=True))


def case_of(*results):
    """A case whose kernel gives the first of these, and whose reference the second."""
    results = iter(results)

    def build():
        values = next(results)
        return lambda: values

    return Case("work", "a case", build, 0.01)


def test_a_case_within_tolerance():
    run = prepare(case_of((torch.tensor([1.0, 2.01]),), (torch.tensor([1.0, 2.0]),)))
    assert run()[0].tolist() == pytest.approx([1.0, 2.01])


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ((torch.tensor([1.0, 2.1]),), "5.0e-02"),
        ((torch.tensor([1.0, float("nan")]),), "inf"),
        ((torch.tensor([1.0, float("inf")]),), "inf"),
        ((torch.tensor([1.0]),), "inf"),
        ((torch.tensor([1.0, 2.0]), torch.tensor(1.0)), "inf"),
    ],
)
def test_a_wrong_case_is_not_timed(values, error):
    with pytest.raises(Wrong, match=f"a case: error {error} where 0.01 is allowed"):
        prepare(case_of(values, (torch.tensor([1.0, 2.0]),)))


def test_a_plain_run_collects_these_alone_and_the_smallest_pass():
    out = run_pytest("bench", "--benchmark-disable", "-v", "-k", f"T{SMALLEST.T} and B{SMALLEST.B}")
    assert f"{len(SMALL)} passed, {len(CASES) - len(SMALL)} deselected" in out
    lines = [line.partition(" PASSED")[0] for line in out.splitlines() if "::" in line]
    assert lines == [f"bench/speed/test_speed.py::test_speed[{case.name}]" for case in SMALL]


def test_a_run_is_saved_and_compared_with(tmp_path):
    words = ["bench", "-k", "mdn_nll and T10", "--benchmark-max-time=0.02", f"--benchmark-storage={tmp_path}"]
    assert "Saved benchmark data in" in run_pytest(*words, "--benchmark-autosave")
    compared = run_pytest(*words, "--benchmark-compare")
    assert "Comparing against benchmarks from: " in compared
    assert "T10 B2] (0001" in compared
    assert "T10 B2] (NOW)" in compared
