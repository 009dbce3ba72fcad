"""Drawings: on their page, inked where the pen was, written little by little."""

import weakref
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusedmdn import FusedLSTMMDN, Strokes, render
from fusedmdn.render import pixels, views

from .test_strokes import drawing

SQUARE = Strokes.from_polylines([[(0, 0), (10, 0), (10, 10), (0, 10), (0, 0)], [(5, 5)]], "square")
DOT = Strokes.from_polylines([[(5, 5)]])


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


def test_a_line_of_writing_gets_a_fine_pen_and_a_wide_cell():
    zigzag = Strokes.from_polylines([[(x, x % 2 * 20) for x in range(200)]])
    dash = Strokes.from_polylines([[(0, 0), (200, 1)]])
    page, plain = render.lay_out([zigzag]), render.lay_out([SQUARE])
    assert page.pen == pytest.approx(plain.pen * 3 * 20 / 199)  # as the height of what is written
    assert render.lay_out([dash]).pen == plain.pen
    grid = render.lay_out([zigzag] * 6)
    assert grid.figures[0].cell[2] > 5 * grid.figures[0].cell[3]
    assert len({f.cell[:2] for f in grid.figures}) == 6
    assert grid.pen < render.lay_out([SQUARE] * 6).pen
    assert render.lay_out([zigzag, SQUARE, SQUARE]).figures[0].cell[2:] == (render.CELL, render.CELL)


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


@pytest.mark.parametrize("view", ["plain", "strokes"])
def test_painting_by_cells_changes_nothing(view):
    picture = views.picture([SQUARE] * 7, view=view)
    page = picture.page
    one = replace(page.figures[0], cell=(0, 0, page.width, page.height))
    whole = replace(picture, page=replace(page, figures=[one]), ink=[[ink for inks in picture.ink for ink in inks]])
    assert np.array_equal(np.asarray(pixels.still(picture)), np.asarray(pixels.still(whole)))


def test_a_gif_s_frames_are_painted_one_by_one(tmp_path, monkeypatch):
    painted, few_colours = [], render._few_colours

    def watched(image, view):
        assert sum(old() is not None for old in painted) <= 1
        painted.append(weakref.ref(image))
        return few_colours(image, view)

    monkeypatch.setattr(render, "_few_colours", watched)
    render.draw([SQUARE, SQUARE], tmp_path / "x.gif")
    assert len(painted) == render.GIF_FRAMES


def test_columns_are_a_number_that_the_page_has():
    for columns in (0, -2):
        for n in (1, 4):
            with pytest.raises(ValueError, match=f"columns must be >= 1, got {columns}"):
                render.lay_out([SQUARE] * n, columns)
    assert render.lay_out([SQUARE] * 3, 10**9).width == 3 * render.CELL


def test_a_page_too_large_is_refused_before_it_is_painted(tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError("painted, or predicted")

    monkeypatch.setattr(pixels, "_paint", never)
    monkeypatch.setattr(views, "predict", never)
    model = FusedLSTMMDN(3, 4, 1, 2)
    square = r"12,000 x 12,000 pixels, a .png at most 2,147,483,647 a side and 134,217,728 in all: draw fewer sequences"
    high = r"120 x 65,640 pixels, a .gif at most 65,535 a side"
    for n, columns, ending, message in (
        (10_000, 100, ".png", square),
        (547, 1, ".gif", high),
        (547, 600, ".gif", "65,640 x 120 pixels, a .gif"),
        (2401, 49, ".gif", "5,880 x 5,880 pixels, a .gif at most 65,535 a side and 33,554,432 in all"),
    ):
        with pytest.raises(ValueError, match=message):
            render.draw([SQUARE] * n, [tmp_path / "x.svg", tmp_path / f"x{ending}"], columns, "eos", model)
    with pytest.raises(ValueError, match=square):
        render.image([SQUARE] * 10_000, 100)
    with pytest.raises(ValueError, match=high):
        render.frames([SQUARE] * 547, 1)
    assert not list(tmp_path.iterdir())
    assert 'width="12000"' in render.svg([DOT] * 10_000, 100)


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
