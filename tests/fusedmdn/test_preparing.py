"""Preparing strokes: what simplifying, resampling and random variants keep, and what they may change."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedmdn import Strokes, preparing
from fusedmdn.dataset import StrokeSet, kanjivg

from .test_strokes import drawing, same

RANDOM = np.random.default_rng
few = st.sampled_from([-2.0, 0.0, 0.25, 1.0, 3.0])  # repeated points, straight lines and closed loops are usual
line = st.lists(st.tuples(few, few), min_size=1, max_size=12)
drawings = st.lists(line, max_size=4) | drawing


def distances(points, left):
    """Of each point from the nearest segment of a polyline."""
    start, along = left[:-1], np.diff(left, axis=0)
    square = (along**2).sum(1)
    offset = points[:, None] - start
    t = np.clip((offset * along).sum(-1) / np.where(square > 0, square, 1), 0, 1)
    return np.linalg.norm(offset - t[..., None] * along, axis=-1).min(1)


def places(points, left):
    """Places of the points that are left, in order: each found after the one before."""
    found, k = [], 0
    for point in left:
        k = next(i for i in range(k, len(points)) if np.array_equal(points[i], point))
        found.append(k)
        k += 1
    return found


@settings(deadline=None)
@given(drawings, st.sampled_from([0.0, 0.1, 0.5, 2.0, 1000.0]))
def test_what_is_left_is_some_of_the_points_and_near_the_others(lines, epsilon):
    strokes = Strokes.from_polylines(lines, "x")
    simple = preparing.simplify(strokes, epsilon)
    assert simple.label == "x"
    before, after = strokes.polylines(), simple.polylines()
    assert len(before) == len(after)
    for points, left in zip(before, after, strict=True):
        assert same([points[0], points[-1]], [left[0], left[-1]])
        places(points, left)
        if len(points) > 1:
            assert distances(points, left).max() <= epsilon + 1e-9
        else:
            assert len(left) == 1
    again = preparing.simplify(simple, epsilon)
    assert len(again) <= len(simple)


def test_simplifying_by_hand():
    corner = [(0, 0), (1, 0.1), (2, 0), (3, 0), (3, 1), (3, 2)]
    loop = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0)]
    dot, still = [(7, 7)], [(7, 7), (7, 7), (7, 7)]
    strokes = Strokes.from_polylines([corner, loop, dot, still])
    left = [line.tolist() for line in preparing.simplify(strokes, 0.2).polylines()]
    assert left == [[[0, 0], [3, 0], [3, 2]], [[*map(float, p)] for p in loop], [[7, 7]], [[7, 7], [7, 7]]]
    exact = [line.tolist() for line in preparing.simplify(strokes, 0).polylines()]
    assert exact[0] == [[0, 0], [1, pytest.approx(0.1)], [2, 0], [3, 0], [3, 2]]
    unfinished = Strokes(strokes.points[:4])  # no pen was lifted
    assert preparing.simplify(unfinished, 0.2).points.tolist() == [[0, 0, 0], [3, 0, 0]]
    assert preparing.simplify(Strokes(np.zeros((0, 3))), 1.0).points.shape == (0, 3)


def test_a_set_is_simplified_as_its_sequences():
    data = kanjivg()
    chosen = StrokeSet.of([data[0], Strokes(np.zeros((0, 3)), "none"), *(data[i] for i in range(40, 60))], 0.25)
    simple = preparing.simplify(chosen, 1.0)
    assert (simple.labels, simple.quantum) == (chosen.labels, 0.25)
    assert simple.lengths.sum() < 0.6 * chosen.lengths.sum()
    for a, b in zip(chosen, simple, strict=True):
        assert np.array_equal(preparing.simplify(a, 1.0).points, b.points)
        assert len(a.polylines()) == len(b.polylines())
    assert len(preparing.simplify(StrokeSet.of([]), 1.0)) == 0


def test_a_line_that_would_recur_too_deep_is_cut():
    """The farthest point is always the last but one: the algorithm recurs once for every point, in C++."""
    k = np.arange(100_000)
    strokes = Strokes.from_polylines([np.column_stack([k, np.where(k % 2, k, -k)])])
    assert len(preparing.simplify(strokes, 0.5)) == len(strokes)
    straight = Strokes.from_polylines([np.column_stack([k, k])])
    assert np.flatnonzero(np.diff(preparing.simplify(straight, 0.5).polylines()[0][:, 0]) != 2000).tolist() == [49]


@settings(deadline=None)
@given(drawings, st.sampled_from([0.3, 1.0, 5.0]))
def test_resampled_points_lie_evenly_on_the_line(lines, step):
    strokes = Strokes.from_polylines(lines, "x")
    even = preparing.resample(strokes, step)
    assert even.label == "x"
    before, after = strokes.polylines(), even.polylines()
    assert len(before) == len(after)
    # every offset is rounded to float32, and the roundings add up along the sequence
    slack = 1e-12 + 2.0**-24 * len(even) * np.abs(even.points).max(initial=0)
    for points, placed in zip(before, after, strict=True):
        length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
        assert len(placed) == math.ceil(length / step) + 1
        assert np.allclose(placed[[0, -1]], points[[0, -1]], atol=slack)
        gaps = np.linalg.norm(np.diff(placed, axis=0), axis=1)
        assert (gaps <= length / max(len(gaps), 1) + 2 * slack).all()  # as far along the line, no further across
        if len(points) > 1:
            assert distances(placed, points).max() <= slack


def test_resampling_by_hand():
    strokes = Strokes.from_polylines([[(0, 0), (0, 3), (4, 3)], [(9, 9)], [(1, 1), (1, 1)], [(0, 0), (5, 0)]], "x")
    even = preparing.resample(strokes, 2.0).polylines()
    assert np.allclose(even[0], [(0, 0), (0, 1.75), (0.5, 3), (2.25, 3), (4, 3)])
    assert [line.tolist() for line in even[1:3]] == [[[9, 9]], [[1, 1]]]
    assert np.allclose(even[3], [(0, 0), (5 / 3, 0), (10 / 3, 0), (5, 0)])
    unfinished = Strokes([[5, 5, 0], [4, 0, 0]])
    assert preparing.resample(unfinished, 2.0).points.tolist() == [[5, 5, 0], [2, 0, 0], [2, 0, 0]]
    data = StrokeSet.of([strokes, Strokes(np.zeros((0, 3)), "none"), unfinished], 0.25)
    made = preparing.resample(data, 2.0)
    assert (made.labels, made.quantum, made.lengths.tolist()) == (("x", "none", ""), 0.0, [11, 0, 3])
    assert all(np.array_equal(preparing.resample(s, 2.0).points, r.points) for s, r in zip(data, made, strict=True))
    assert len(preparing.resample(StrokeSet.of([]), 1.0)) == 0


def test_a_set_keeps_its_labels_and_its_own_division():
    data = StrokeSet.of([Strokes([[0, 0, 0], [1, 0, 0], [2, 0, 1]], label) for label in "ab"], 1.0, ("train", "test"))
    for prepared in (preparing.simplify(data, 1), preparing.resample(data, 0.5)):
        assert (prepared.labels, prepared.parts) == (("a", "b"), ("train", "test"))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_tolerances_and_steps(bad):
    strokes = Strokes([[5, 5, 0], [4, 0, 0]])
    with pytest.raises(ValueError, match=f"simplify must be >= 0 and finite, got {bad}"):
        preparing.simplify(strokes, bad)
    with pytest.raises(ValueError, match=f"resample must be > 0 and finite, got {bad}"):
        preparing.resample(strokes, bad)
    with pytest.raises(ValueError, match=r"drop must be in \[0, 1\], got"):
        preparing.drop(strokes, bad, RANDOM(0))
    for make in (preparing.stretch, preparing.slant):
        with pytest.raises(ValueError, match=f"the standard deviation must be >= 0 and finite, got {bad}"):
            make(strokes, bad, RANDOM(0))
    with pytest.raises(ValueError, match="cannot both be given"):
        preparing.prepare(StrokeSet.of([strokes]), 1.0, 1.0)


@pytest.mark.parametrize("step", [1e-12, 5e-324])
def test_no_step_asks_for_more_memory_than_there_is(step):
    with pytest.raises(ValueError, match=r"resample .*: would make more than 16,777,216 points of 2"):
        preparing.resample(Strokes([[5, 5, 0], [3e38, 0, 1]]), step)


def test_without_shapely_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedmdn\[strokes\]'"):
        preparing.simplify(Strokes([[5, 5, 0]]), 1.0)


class Listed:
    """A generator whose numbers are known."""

    def __init__(self, numbers):
        self.numbers = numbers

    def random(self, size):
        assert len(self.numbers) == size
        return self.numbers


def by_sketch_rnn_s_rule(points, numbers, probability):
    """A point that follows three or more of its pen stroke, and is not the last, may be joined to the one before it."""
    made, since = [], 0
    for row, number in zip(points, numbers, strict=True):
        inside = not row[2] and bool(made) and not made[-1][2]
        since = since + 1 if inside else 0
        if since > 2 and number < probability:
            made[-1][:2] += row[:2]
        else:
            made.append(row.copy())
    return np.array(made).reshape(-1, 3)


@given(drawing, st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_points_are_dropped_as_sketch_rnn_drops_them(lines, seed, probability):
    strokes = Strokes.from_polylines(lines, "x")
    numbers = RANDOM(seed).random(len(strokes))
    expected = by_sketch_rnn_s_rule(strokes.points, numbers, probability)
    # There a point is joined to the one before it, which takes its place: it is that one which is lost.
    found = preparing.drop(strokes, probability, Listed(np.roll(numbers, -1)))
    assert np.array_equal(found.points, expected)
    assert found.label == "x"
    assert [line[-1].tolist() for line in found.polylines()] == [line[-1].tolist() for line in strokes.polylines()]


def test_dropping_by_hand():
    strokes = Strokes.from_polylines([[(k, k * k) for k in range(7)], [(0, 0), (0, 1), (0, 2), (0, 3)]])
    left = preparing.drop(strokes, 1.0, RANDOM(0)).polylines()
    assert [line.tolist() for line in left] == [
        [[0, 0], [1, 1], [5, 25], [6, 36]],
        [[0, 0], [0, 1], [0, 2], [0, 3]],
    ]
    rate = np.mean([len(preparing.drop(strokes, 0.25, RANDOM(k))) for k in range(400)])
    assert rate == pytest.approx(11 - 3 * 0.25, abs=0.15)


def test_stretch_and_slant():
    strokes = Strokes.from_polylines([[(10, 20), (13, 24)], [(5, 5)]], "x")
    maps = {preparing.stretch: [], preparing.slant: []}
    for make, found in maps.items():
        for seed in range(400):
            made = make(strokes, 0.1, RANDOM(seed))
            matrix = np.linalg.lstsq(strokes.points[:, :2], made.points[:, :2], rcond=None)[0]
            assert np.allclose(strokes.points[:, :2] @ matrix, made.points[:, :2], atol=1e-4)
            assert np.array_equal(made.points[:, 2], strokes.points[:, 2])
            assert made.label == "x"
            found.append(matrix)
        assert np.array_equal(make(strokes, 0.0, RANDOM(0)).points, strokes.points)
    stretched, slanted = (np.array(found) for found in maps.values())
    assert np.allclose(stretched[:, [0, 1], [1, 0]], 0, atol=1e-5)
    assert np.allclose(stretched.std(0)[[0, 1], [0, 1]], 0.1, atol=0.01)
    assert np.allclose(stretched.mean(0), np.eye(2), atol=0.02)
    assert np.allclose(slanted - np.eye(2) * [1, 1], [[0, 0], [1, 0]] * (slanted[:, 1:, :1]), atol=1e-5)
    assert slanted[:, 1, 0].std() == pytest.approx(0.1, abs=0.01)
