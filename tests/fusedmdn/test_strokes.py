"""Strokes: conversions and their inverses, drawing, and what is refused."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusedmdn import Scale, Strokes, render

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


SQUARE = Strokes.from_polylines([[(0, 0), (10, 0), (10, 10), (0, 10), (0, 0)], [(5, 5)]], "square")


@given(st.lists(drawing, min_size=1, max_size=5))
def test_every_drawing_lies_on_its_page(drawings):
    sequences = [Strokes.from_polylines(lines) for lines in drawings]
    page = render.lay_out(sequences)
    assert len(page.polylines) == sum(len(s.polylines()) for s in sequences)
    for line in page.polylines:
        assert (line >= 0).all()
        assert (line <= [page.width, page.height]).all()


def test_svg_is_well_formed_and_holds_every_stroke():
    root = ET.fromstring(SQUARE._repr_svg_())
    paths = root.findall(".//{http://www.w3.org/2000/svg}path")
    assert [p.get("d").count("L") for p in paths] == [4, 1]  # a lone point is a line to itself: a dot
    grid = ET.fromstring(render.svg([SQUARE] * 5, columns=2))
    assert len(grid.findall(".//{http://www.w3.org/2000/svg}path")) == 10
    assert (int(grid.get("width")), int(grid.get("height"))) == (2 * render.CELL, 3 * render.CELL)


def test_one_drawing_keeps_its_proportions():
    wide = render.lay_out([Strokes.from_polylines([[(0, 0), (40, 10)]])])
    span = np.ptp(wide.polylines[0], axis=0)
    assert span[0] / span[1] == pytest.approx(4)
    assert wide.width > wide.height


def test_png_is_inked_where_the_pen_was(tmp_path):
    SQUARE.save(tmp_path / "x.png")
    image = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    page = render.lay_out([SQUARE])
    assert image.shape == (page.height, page.width)
    for line in page.polylines:
        for x, y in line:
            assert image[round(y), round(x)] < 60
    assert image[0, 0] == 255
    assert 0.01 < (image < 128).mean() < 0.2


def test_painting_in_bands_changes_nothing(monkeypatch):
    drawings = [SQUARE] * 7
    whole = np.asarray(render.image(drawings))
    monkeypatch.setattr(render, "BAND", 17)
    assert np.array_equal(np.asarray(render.image(drawings)), whole)


def test_last_frame_is_the_whole_drawing():
    images = render.frames([SQUARE, Strokes.from_polylines([[(0, 0), (3, 4)]])])
    whole = render.image([SQUARE, Strokes.from_polylines([[(0, 0), (3, 4)]])])
    assert len(images) == render.GIF_FRAMES
    assert np.abs(np.asarray(images[-1], int) - np.asarray(whole, int)).max() <= 2


def test_gif_writes_little_by_little(tmp_path):
    render.draw([SQUARE, SQUARE], tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as gif:
        ink = []
        for k in range(gif.n_frames):
            gif.seek(k)
            ink.append((np.asarray(gif.convert("L")) < 128).sum())
    assert len(ink) > 3
    assert ink == sorted(ink)
    assert ink[-1] > 2 * ink[0] > 0


def test_drawings_are_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"x.bmp: drawings end in .svg, .png or .gif"):
        SQUARE.save(tmp_path / "x.bmp")
    with pytest.raises(ValueError, match="nothing to draw"):
        render.draw([], tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_an_empty_sequence_is_an_empty_page():
    empty = Strokes.from_polylines([])
    assert len(empty) == 0
    assert "<path" not in empty._repr_svg_()
    assert render.svg([empty, SQUARE]).count("<path") == 2
    assert render.frames([empty])
