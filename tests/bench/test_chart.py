"""The charts: where marks stand, how they look, and that no words run into each other."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from bench import chart
from bench.results import Run

from . import synthetic

SVG = "{http://www.w3.org/2000/svg}"
WORKS = ("training", "loss", "sampling")
FULL = synthetic.realistic(dtypes=("float32", "tf32", "bf16", "fp16"), gpu="A GPU")
RUNS = {"cpu": synthetic.realistic(), "gpu": FULL, "one": synthetic.realistic(dtypes=("float32",))}


def drawn(run, work):
    return ET.fromstring(chart.chart(Run("cpu-a-1t", run), work))


def words(root, style=""):
    return [
        element.text for element in root.iter(f"{SVG}text") if set(style.split()) <= set(element.get("class").split())
    ]


def boxes(root):
    """Of all words: left, right, top, bottom, by letters of an ordinary font's width."""
    for element in root.iter(f"{SVG}text"):
        style = element.get("class").split()
        letter = 8.5 if "title" in style else 6.6 if "strong" in style else 6.1
        width, x, y = letter * len(element.text), float(element.get("x")), float(element.get("y"))
        left = x - width if "end" in style else x - width / 2 if "mid" in style else x
        yield left, left + width, y - 9, y + 2, element.text


@pytest.mark.parametrize(("run", "work"), [*itertools.product(RUNS, WORKS)])
def test_words_never_overlap_and_stay_inside(run, work):
    root = drawn(RUNS[run], work)
    width, height = float(root.get("width")), float(root.get("height"))
    assert width <= 900
    found = list(boxes(root))
    for left, right, top, bottom, text in found:
        assert 0 <= left <= right <= width, text
        assert 0 <= top <= bottom <= height, text
    for a, b in itertools.combinations(found, 2):
        assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2], (a[4], b[4])


@pytest.mark.parametrize("work", WORKS)
def test_marks_do_not_reach_the_columns(work):
    axis = re.compile(r"[\d.]+")
    for element in drawn(FULL, work).iter(f"{SVG}path"):
        if "whisker" in element.get("class"):
            left, _, right = map(float, axis.findall(element.get("d")))
            assert chart.PLOT[0] <= left <= right <= chart.PLOT[1]


def one_cell():
    """Ours 10, on a floor of 5; twice as long; half as long."""
    results = [
        synthetic.result("ours", [10.0, 9.0, 11.0, 10.0, 10.0]),
        synthetic.result("JAX", [20.0, 18.0, 22.0, 20.0, 20.0]),
        synthetic.result("eager", [5.0, 4.5, 5.5, 5.0, 5.0]),
    ]
    return synthetic.cell("loss", {"rows": 9, "columns": 121}, results, model=None, floors={"float32": 5.0})


def middles(root, of):
    """Of the marks drawn with a colour: the middle, from left to right. The last is in the column of the best."""
    for element in root.iter():
        if element.get("class") == f"{of} mark":
            if element.tag == f"{SVG}circle":
                yield float(element.get("cx"))
            else:
                xs = [float(point.split(",")[0]) for point in element.get("points").split()]
                yield (min(xs) + max(xs)) / 2


def test_marks_stand_at_their_multiples():
    root = drawn(synthetic.run([one_cell()]), "loss")
    (ours,) = (x for x in middles(root, "ours") if chart.PLOT[0] <= x <= chart.PLOT[1])
    (jax,) = (x for x in middles(root, "purple") if chart.PLOT[0] <= x <= chart.PLOT[1])
    (eager,) = (x for x in middles(root, "orange") if chart.PLOT[0] <= x <= chart.PLOT[1])
    assert jax - ours == pytest.approx(ours - eager, abs=0.2)  # a logarithmic axis: twice and half are as far
    ticks = {element.text: float(element.get("x")) for element in root.iter(f"{SVG}text") if "×" in element.text}
    assert ours == pytest.approx(ticks["1×"], abs=0.1)
    assert jax == pytest.approx(ticks["2×"], abs=0.1)
    floors = [float(e.get("d")[1:].split()[0]) for e in root.iter(f"{SVG}path") if e.get("class") == "floor"]
    assert floors[-1] == pytest.approx(eager, abs=0.1)  # the first is the legend's


def test_the_columns_say_our_time_and_the_best_peer():
    cell = one_cell()
    root = drawn(synthetic.run([cell]), "loss")
    assert "10" in words(root, "ours strong")
    assert words(root, "behind") == ["0.50×", "eager"]
    cell["results"].pop()
    root = drawn(synthetic.run([cell]), "loss")
    assert words(root, "behind") == []
    assert "2.00×" in words(root, "strong")
    cell["results"].pop()
    assert "no peer in float32" in words(drawn(synthetic.run([cell]), "loss"))


def test_a_floor_is_explained_where_there_is_one():
    cell = one_cell()
    explained = "floor: least time that the machine allows"
    assert explained in words(drawn(synthetic.run([cell]), "loss"))
    assert explained not in words(drawn(synthetic.run([{**cell, "floors": {}}]), "loss"))


def test_a_lower_row_for_each_dtype_of_a_cell():
    root = drawn(synthetic.run([synthetic.sampling(1, [3000.0] * 3, [190.0] * 3)]), "sampling")
    assert "model B, B 1" in words(root)
    assert {"float32", "bf16", "µs/step", "A Processor, 1 thread"} <= set(words(root))


def test_a_cell_without_ours_is_not_drawn():
    cell, untimed = one_cell(), one_cell()
    untimed["setup"] = {"rows": 10, "columns": 121}
    untimed["results"][0] |= {"values": [], "reason": "wrong"}
    shown = words(drawn(synthetic.run([cell, untimed]), "loss"))
    assert "rows 9" in shown
    assert "rows 10" not in shown
    assert "A Processor, 1 thread, columns 121" in shown
    assert chart.chart(Run("a", synthetic.run([untimed])), "loss") is None


def test_a_contender_looks_alike_in_all_rows_and_no_two_alike():
    names = [*chart.KNOWN, *(f"peer {n}" for n in range(12))]
    together = chart.styles_of(list(dict.fromkeys(names)))
    works = (synthetic.TRAINERS, synthetic.SAMPLERS, synthetic.LOSSES)
    for work in works:
        styles = chart.styles_of([*work, "one", "two"])
        assert len(set(styles.values())) == len(styles)
        assert all(styles[name] == together[name] for name in work)
    unknown = [together[f"peer {n}"] for n in range(12)]
    assert len(set(unknown)) == 12
    assert not set(unknown) & set(chart.KNOWN.values())


def luminance(colour):
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [0, 1])
def test_colours_are_seen_on_both_grounds(dark):
    """WCAG's contrast: 3 for marks, 4.5 for words."""
    ground = luminance(chart.GROUND["ground"][1 + dark])

    def contrast(colour):
        low, high = sorted((ground, luminance(colour)))
        return (high + 0.05) / (low + 0.05)

    assert all(contrast(shades[dark]) >= 3 for shades in chart.COLOURS.values())
    assert all(contrast(chart.GROUND[name][1 + dark]) >= 4.5 for name in ("text", "faint", "ours", "behind"))


def test_both_grounds_are_in_the_file():
    svg = chart.chart(Run("a", synthetic.run([one_cell()])), "loss")
    light, dark = svg.split("@media(prefers-color-scheme:dark){")
    for name, (what, *colours) in chart.GROUND.items():
        assert f".{name}{{{what}:{colours[0]}}}" in light
        assert f".{name}{{{what}:{colours[1]}}}" in dark


@pytest.mark.parametrize("factor", [1.001, 1.4, 12, 3000, 1e9])
def test_ticks_have_room(factor):
    for axis in (chart.Axis(0.8, 1.5 * factor), chart.Axis(0.8 / factor, 1.5)):
        at = [axis.x(tick) for tick in axis.ticks()]
        assert 1 in axis.ticks()
        assert all(b - a > 30 for a, b in itertools.pairwise(at))


def test_marks_that_are_close_have_lanes_of_their_own():
    axis = chart.Axis(0.8, 1.5)
    marks = [chart.Mark(name, middle, 1, 1) for name, middle in (("ours", 1), ("a", 1.001), ("b", 1.002), ("c", 1.4))]
    assert chart.lanes(marks, axis) == [0, -1, 1, 0]
    beside = 1.5 ** (12 / (chart.PLOT[1] - chart.PLOT[0]) * 1.57)  # some 12 pixels from ours, which is larger
    assert chart.lanes([marks[0], chart.Mark("a", beside, 1, 1)], axis) == [0, -1]
    assert chart.lanes([chart.Mark("b", 1, 1, 1), chart.Mark("a", beside, 1, 1)], axis) == [0, 0]
