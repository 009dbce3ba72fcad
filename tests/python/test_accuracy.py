"""The accuracy rule itself: each of its three allowances, and what it does not take."""

import math

import pytest
import torch
from fusedmdn.ops.accuracy import deviation

EXACT = torch.tensor([4.0, -8.0, 1.0], dtype=torch.float64)


def moved(by):
    value = EXACT.clone()
    value[0] += by
    return value


@pytest.mark.parametrize(
    ("dtype", "theirs", "allowed"),
    [
        (torch.float64, 0.0, 64 * 2**-24 * 8 + 2**-53 * 8),
        (torch.float64, 0.25, 2 * 0.25 + 64 * 2**-24 * 8 + 2**-53 * 8),
        (torch.float32, 0.0, 64 * 2**-24 * 8 + 2**-24 * 8),
        (torch.bfloat16, 0.5, 2 * 0.5 + 64 * 2**-24 * 8 + 2**-8 * 8),
    ],
)
def test_what_is_allowed(dtype, theirs, allowed):
    found = deviation(EXACT.to(dtype), moved(theirs).to(dtype), EXACT)
    assert found == (0.0, pytest.approx(allowed, rel=1e-15), 8.0)
    assert not found.excessive
    assert found.share == 0


def test_the_largest_error_decides():
    allowed = deviation(EXACT, moved(0.25), EXACT).allowed
    within, beyond = (deviation(moved(allowed * by), moved(0.25), EXACT) for by in (0.99, 1.01))
    assert (within.excessive, beyond.excessive) == (False, True)
    assert within.share == pytest.approx(0.99)
    assert beyond.share == pytest.approx(1.01)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_breaks_it(value):
    found = deviation(moved(value), moved(0.25), EXACT)
    assert found.excessive
    assert found.share == math.inf


def test_infinity_does_not_allow_infinity():
    assert deviation(moved(math.inf), moved(math.inf), moved(math.inf)).excessive
    assert not deviation(EXACT, moved(math.inf), EXACT).excessive


def test_where_all_is_zero_nothing_is_allowed():
    zero = torch.zeros(2)
    assert deviation(zero, zero, zero.double()).share == 0
    found = deviation(zero + 1e-30, zero, zero.double())
    assert found.excessive
    assert found.share == math.inf


def test_nothing_deviates_by_nothing():
    assert deviation(EXACT[:0], EXACT[:0], EXACT[:0]) == (0, 0, 0)


def test_other_shapes_and_dtypes_are_named():
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(3,\)"):
        deviation(EXACT[:2], EXACT, EXACT)
    with pytest.raises(ValueError, match="torch.float32, expected torch.bfloat16"):
        deviation(EXACT.float(), EXACT.bfloat16(), EXACT)
