"""`pytest bench`: every case checked, then timed by pytest-benchmark, whose options compare runs with saved ones."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .cases import CASES, Case, prepare


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_speed(case: Case, benchmark: BenchmarkFixture) -> None:
    """Right, then timed beside the other cases of the same work."""
    benchmark.group = case.work
    benchmark(prepare(case))
