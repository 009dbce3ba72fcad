"""Strokes: conversions and their inverses, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedmdn import Scale, Strokes

coordinate = st.integers(-2000, 2000).map(lambda v: v / 4)  # quarters: sums and differences are exact
polyline = st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=12)
drawing = st.lists(polyline, max_size=6)


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(drawing)
def test_polylines_there_and_back(lines):
    assert same(Strokes.from_polylines(lines).polylines(), [np.array(line, dtype=float) for line in lines])


@given(drawing)
def test_stroke5_there_and_back(lines):
    strokes = Strokes.from_polylines(lines)
    rows = strokes.stroke5()
    assert rows.shape == (len(strokes) + 1, 5)
    assert rows[-1].tolist() == [0, 0, 0, 0, 1]
    assert (rows[:, 2:].sum(1) == 1).all()
    assert np.array_equal(Strokes.from_stroke5(rows).points, strokes.points)


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
@given(drawing)
def test_model_rows_there_and_back(pen, lines):
    strokes, scale = Strokes.from_polylines(lines), Scale((0.5, -0.25), (4.0, 2.0))
    rows = strokes.rows(pen, scale)
    assert rows.shape == ((len(strokes) + 1, 5) if pen == "categorical" else (len(strokes), 3))
    assert np.array_equal(Strokes.from_rows(rows, scale).points, strokes.points)
    if pen == "categorical":
        assert rows[-1].tolist() == [0, 0, 0, 0, 1]  # the scale does not touch the end row


def test_rows_are_what_they_are_said_to_be():
    strokes = Strokes.from_polylines([[(10, 20), (13, 24)], [(5, 5)]])
    assert strokes.points.tolist() == [[10, 20, 0], [3, 4, 1], [-8, -19, 1]]
    assert len(strokes) == 3
    assert repr(strokes) == "Strokes(3 points, 2 strokes)"
    assert repr(Strokes(strokes.points, "A")) == "Strokes('A', 3 points, 2 strokes)"
    unfinished = Strokes(strokes.points[:1])
    assert same(unfinished.polylines(), [np.array([[10.0, 20.0]])])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((3, 2)), r"expected shape \(N, 3\), rows \(dx, dy, eos\), got \(3, 2\)"),
        (np.zeros(3), r"got \(3,\)"),
        ([[0, 0, 0], [0, math.nan, 1]], "row 1 is not finite"),
        ([[0, 0, 0.5]], "eos must be 0 or 1, got 0.5 in row 0"),
    ],
)
def test_bad_points(points, message):
    with pytest.raises(ValueError, match=message):
        Strokes(points)


def test_bad_stroke5():
    with pytest.raises(ValueError, match=r"expected shape \(N, 5\)"):
        Strokes.from_stroke5(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"row 0 is not one-hot: \[1.0, 1.0, 0.0\]"):
        Strokes.from_stroke5([[0, 0, 1, 1, 0]])
