"""Strokes out of XML: IAM-OnDB, InkML, SVG and KanjiVG, files and directories; and what is refused by name."""

import gzip
import sys
import time

import numpy as np
import pytest
from hypothesis import given

from fusedmdn import Strokes, load
from fusedmdn.dataset import StrokeFileError, kanjivg
from fusedmdn.loaders import iam, kanji, markup, svg

from .stroke_files import IAM_FORM, IAM_LINE, INKML, KANJI, SVG, combined, refused
from .test_strokes import drawing


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def iam_line(*strokes):
    """A document of strokes as (x, y, time)."""
    points = ("".join(f'<Point x="{x}" y="{y}" time="{t}"/>' for x, y, t in stroke) for stroke in strokes)
    inside = "".join(f"<Stroke>{points}</Stroke>" for points in points)
    return f"<WhiteboardCaptureSession><StrokeSet>{inside}</StrokeSet></WhiteboardCaptureSession>"


# IAM-OnDB


@pytest.fixture
def database(tmp_path):
    written(tmp_path / "iam/ascii/a01/a01-000/a01-000u.txt", IAM_FORM)
    for name in ("a01-000/a01-000u-01", "a01-000/a01-000u-02", "a01-000/a01-000u-03", "b02-1/b02-1z-01"):
        written(tmp_path / f"iam/lineStrokes/{name[:3]}/{name}.xml", IAM_LINE)
    return tmp_path / "iam"


def test_an_iam_line(database):
    strokes = load(database / "lineStrokes/a01/a01-000/a01-000u-02.xml")
    assert strokes.labels == ("Second line",)
    assert strokes.quantum == 1
    first, dot = strokes[0].polylines()
    lost = [[1106, 1080], [1113, 1091]]  # two of 0.03 s, at 0.01 s a point, on the grid
    expected = [[1073, 1058], [1085, 1060], [1099, 1070], *lost, [1120, 1101], [1127, 1110]]
    assert np.add(first, [1073, 1058]).tolist() == expected
    assert np.add(dot, [1073, 1058]).tolist() == [[1150, 1000]]


def test_an_iam_directory(database):
    for folder in (database, database / "lineStrokes"):
        assert load(folder).labels == ("First line", "Second line", "", "")
    assert load(database / "lineStrokes/a01/a01-000").labels == ("First line", "Second line", "")
    (database / "ascii/a01/a01-000/a01-000u.txt").unlink()
    assert load(database).labels == ("",) * 4


def test_missing_readings_are_filled(tmp_path):
    line = [(0, 0, 0), (1, 0, 0.5), (2, 0, 1), (3, 0, 1.5), (9, 3, 3), (9, 4, 99)]
    document = markup.read(written(tmp_path / "x.xml", iam_line(line)), [iam.ROOT])

    def points(**options):
        return iam.from_documents([document], **options)[0].polylines()[0].tolist()

    rest = [[0, 0], [1, 0], [2, 0], [3, 0], [5, 1], [7, 2], [9, 3], [9, 4]]
    assert points() == rest  # and the pause of 96 s stays one
    assert points(gap=3) == [*rest[:4], *rest[6:]]
    assert len(points(pause=1e3)) == len(rest) + 191
    assert iam.from_documents([document]).quantum == 1


def test_outliers_are_cut_off(tmp_path):
    line = [[k, k % 2, k / 100] for k in range(40)]
    wild = [*line[:20], [900, 900, 0.2], *[[x, y, t + 0.01] for x, y, t in line[20:]]]
    far = [[5000 + x, y, 9 + t] for x, y, t in line]
    path = written(tmp_path / "x.xml", iam_line(wild, [(500, 0, 1)], line, far))
    document = markup.read(path, [iam.ROOT])
    strokes = iam.from_documents([document])[0]
    assert [len(stroke) for stroke in strokes.polylines()] == [39] * 3  # and the steps between strokes, with the dot
    assert strokes.points[-1, 2] == 1
    assert np.hypot(*strokes.points[1:39, :2].T).max() < 2
    kept = iam.from_documents([document], within=1e9, between=1e9)[0]
    assert [len(stroke) for stroke in kept.polylines()] == [41, 1, 40, 40]


@pytest.mark.parametrize("name", ["gap", "pause", "within", "between"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_measures_of_repairs_that_cannot_be(tmp_path, name, value):
    path = written(tmp_path / "x.xml", iam_line([(1, 2, 3)]))
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value}"):
        load(path, **{name: value})
    with pytest.raises(ValueError, match="gap must be at most pause, got 30 and 20"):
        load(path, gap=30)


def test_filled_points_are_bounded(tmp_path):
    """Times from somebody who wants them to be many."""
    line = [*((k, 0, k * 1e-3) for k in range(10)), (20, 0, 1e8)]
    with refused(written(tmp_path / "x.xml", iam_line(line)), "more than 1000000 points with those that are filled in"):
        load(tmp_path / "x.xml", pause=1e300)
    assert len(load(tmp_path / "x.xml", within=1e9)[0]) == 11


def test_an_outlier_at_the_end_of_a_stroke(tmp_path):
    line = [[k, 0, k / 100] for k in range(9)]
    path = written(tmp_path / "x.xml", iam_line([*line, [999, 0, 0.09]], [(8, 1, 1), (8, 2, 1.01)]))
    assert [len(p) for p in load(path)[0].polylines()] == [9, 1]  # the way back is as far


def test_a_whole_iam_is_read_quickly(tmp_path):
    """Its 12,195 lines of some 620 points, in proportion: 42 seconds of a slow processor were measured."""
    random = np.random.default_rng(0)
    files = 40
    for i in range(files):
        walk = random.integers(0, 50, (620, 2)).cumsum(axis=0)
        line = [(x, y, f"{k / 100:.2f}") for k, (x, y) in enumerate(walk.tolist())]
        written(tmp_path / f"lineStrokes/a/{i:03}.xml", iam_line(*(line[k : k + 25] for k in range(0, 620, 25))))
    before = time.process_time()
    assert load(tmp_path).lengths.sum() == files * 620
    assert (time.process_time() - before) / files * 12_195 < 240


# InkML


def test_inkml(tmp_path):
    strokes = load(written(tmp_path / "x.inkml", INKML))
    assert strokes.labels == ("x^{2}",)
    assert strokes.quantum == 0
    assert strokes[0].points.tolist() == [[0, 0, 0], [1, 2, 0], [0.5, -1, 1], [18, 19, 0], [0, 1, 1]]


def traces(tmp_path, *traces, before=""):
    return load(written(tmp_path / "x.inkml", f"<ink>{before}{''.join(traces)}</ink>"))[0].polylines()


def test_differences_as_in_the_standard(tmp_path):
    """Its own example, section 3.2.2."""
    text = """1125 18432,'23'43,"7"-8,3-5,+7 -3,0 0,"""[:-1]
    (line,) = traces(tmp_path, f"<trace>{text}</trace>")
    expected = [[1125, 18432], [1148, 18475], [1178, 18510], [1211, 18540], [1251, 18567], [1291, 18594]]
    assert np.add(line, expected[0]).tolist() == expected


def test_wildcards_and_explicit_values(tmp_path):
    (line,) = traces(tmp_path, "<trace>1 1, * 2, '3 '1, * *, !9 !* , #10 4.5e1</trace>")
    assert np.add(line, [1, 1]).tolist() == [[1, 1], [1, 2], [4, 3], [7, 4], [9, 4], [16, 45]]


def test_channels(tmp_path):
    down = '<channel name="Y" orientation="-ve"/><channel name="X"/>'
    more = "<intermittentChannels><channel name='F'/></intermittentChannels>"
    form = f"<traceFormat>{down}{more}</traceFormat>"
    (line,) = traces(tmp_path, "<trace>1 0, 5 2 T, 6 3 ?</trace>", before=form)
    assert line.tolist() == [[0, 0], [2, -4], [3, -5]]
    with pytest.raises(StrokeFileError, match=r"x\.inkml: trace None: point 1 is '5', expected 2 values"):
        traces(tmp_path, "<trace>1 0, 5</trace>", before=form)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("1 2, 3 4,", [[1, 2], [3, 4]]),
        ("1 2, 3 4,\n ", [[1, 2], [3, 4]]),
        ("1 2, -#A +#F", [[1, 2], [-10, 15]]),
        ("1 2, - 5 + \t6.5", [[1, 2], [-5, 6.5]]),
        ("1 2, '- 5 -#1", [[1, 2], [-4, -1]]),
    ],
)
def test_spellings_of_the_standard(tmp_path, text, points):
    (line,) = traces(tmp_path, f"<trace>{text}</trace>")
    assert np.add(line, points[0]).tolist() == points


@pytest.mark.parametrize("text", ["1 2,, 3 4", ",1 2", ",", "1 2,,", "1 2, - - 5 3", "1 2, 3 -", "1 2, -* 3"])
def test_spellings_of_no_standard(tmp_path, text):
    with refused(tmp_path / "x.inkml", r"trace None: point \d is "):
        traces(tmp_path, f"<trace>{text}</trace>")


def test_traces_go_on_from_those_they_name(tmp_path):
    text = ("<trace id='a'>0 0, 1 1</trace>", "<trace id='b'>5 5</trace>", "<trace continuation='begin'>7 7</trace>")
    more = "<trace id='c' continuation='middle' priorRef='#a'>2 2</trace>"
    more += "<trace continuation='end' priorRef='c'>3 3</trace>"
    last = "<trace continuation='end'>8 8</trace>"
    lines = traces(tmp_path, *text, last, more)
    assert [line.tolist() for line in lines] == [[[0, 0], [1, 1], [2, 2], [3, 3]], [[5, 5]], [[7, 7], [8, 8]]]
    with refused(tmp_path / "x.inkml", "trace 'c': goes on from 'z', which is no trace before it"):
        traces(tmp_path, *text, more.replace("#a", "#z"))


def test_defined_traces_are_no_ink(tmp_path):
    before = "<definitions><trace id='a'>9 9, 8 8</trace></definitions>"
    assert [line.tolist() for line in traces(tmp_path, "<trace>0 0</trace>", before=before)] == [[[0, 0]]]
    with refused(tmp_path / "x.inkml", "found no <trace>"):
        traces(tmp_path, before=before)


def test_continued_and_lifted_traces(tmp_path):
    text = ('<trace continuation="begin">0 0, 1 1</trace>', '<trace type="penUp">5 5, 6 6</trace>')
    lines = traces(tmp_path, *text, '<trace continuation="end">2 2</trace>', "<trace>7 7</trace>", "<trace/>")
    assert [line.tolist() for line in lines] == [[[0, 0], [1, 1], [2, 2]], [[7, 7]]]


def test_an_inkml_directory(tmp_path):
    for name, label in (("b/2", "two"), ("a/1", "one")):
        text = f'<ink><annotation type="truth">{label}</annotation><trace>3 4</trace></ink>'
        written(tmp_path / f"{name}.inkml", text)
    strokes = load(tmp_path)
    assert strokes.labels == ("one", "two")
    assert strokes.quantum == 1


# SVG


def test_svg(tmp_path):
    strokes = load(written(tmp_path / "x.svg", SVG))[0]
    square, curves, turned, polygon, line = strokes.polylines()
    assert square.tolist() == [[10, 20], [30, 20], [30, 40], [10, 40], [10, 20]]
    assert turned.tolist() == pytest.approx(np.array([[10, 20], [10, 22], [8, 22]]))
    assert polygon.tolist() == pytest.approx(np.array([[1, 1], [2, 1], [2, 2], [1, 1]]), abs=1e-5)
    assert line.tolist() == pytest.approx(np.array([[5, 6], [7, 8]]), abs=1e-5)
    assert curves[0].tolist() == [12, 22]
    end = curves[-1]
    assert end.tolist() == pytest.approx([12 + 2 * (4 + 4 + 2 + 2 + 10), 22 + 2 * 10], abs=1e-4)
    extent = max(np.ptp(np.concatenate(strokes.polylines()), axis=0))
    assert np.hypot(*np.diff(curves, axis=0).T).max() <= extent / 100 * 1.001


@pytest.mark.parametrize(
    ("d", "length"),
    [
        ("M0 0C0 55.228 44.772 100 100 100", 157.1),
        ("M0 0Q100 0 100 100", 162.3),
        ("M0 0A100 100 0 0 1 100 100", 157.1),
        ("M0 0A100 100 0 1 0 100 100", 3 * 157.1),
    ],
)
def test_curves_become_even_steps(tmp_path, d, length):
    document = markup.read(written(tmp_path / "x.svg", f'<svg><path d="{d}"/></svg>'), [svg.ROOT])
    (line,) = svg.from_documents([document], step=5)[0].polylines()
    steps = np.hypot(*np.diff(line, axis=0).T)
    assert line[-1] == pytest.approx([100, 100])
    assert len(steps) == np.ceil(length / 5)
    assert steps.sum() == pytest.approx(length, rel=2e-3)
    assert steps.max() / steps.min() < 1.01
    with pytest.raises(ValueError, match="step must be positive, got 0"):
        svg.from_documents([document], step=0)


@given(drawing)
def test_own_drawings_load_back(tmp_path_factory, lines):
    """To the hundredths that drawings have, times one scale, moved by one shift."""
    strokes = Strokes.from_polylines(lines)
    if not len(strokes):
        return
    path = tmp_path_factory.mktemp("drawn") / "x.svg"
    strokes.save(path)
    drawn = load(path)[0].polylines()
    given_lines = [line if np.ptp(line, axis=0).any() else line[:1] for line in strokes.polylines()]
    assert [len(line) for line in drawn] == [len(line) for line in given_lines]
    found, given_points = np.concatenate(drawn), np.concatenate(given_lines)
    found, given_points = found - found.min(axis=0), given_points - given_points.min(axis=0)
    scale = found.max() / given_points.max() if given_points.any() else 1.0
    assert np.abs(found - scale * given_points).max() < 4 * 0.005 + 1e-3


def test_transforms(tmp_path):
    def at(transform):
        text = f'<svg><line x1="1" y1="2" x2="3" y2="5" transform="{transform}"/></svg>'
        return load(written(tmp_path / "x.svg", text))[0].polylines()[0].tolist()

    assert at("matrix(1 2 3 4 5 6)") == [[12, 16], [23, 32]]
    assert at("translate(4)") == [[5, 2], [7, 5]]
    assert at(" scale( 2 ) , translate(1-1)") == [[4, 2], [8, 8]]
    assert at("rotate(90, 1, 1)") == pytest.approx(np.array([[0, 1], [-3, 3]]), abs=1e-5)
    assert at("skewX(45) skewY(0)") == pytest.approx(np.array([[3, 2], [8, 5]]), abs=1e-5)
    for wrong in ("rotate(1 2)", "turn(3)", "scale(a)", "skewX(1e999)", "matrix(1 2 3 4 5 6) x"):
        with pytest.raises(StrokeFileError, match=r"x\.svg: transform '.*' is none of SVG's"):
            at(wrong)


LINE = '<line x2="1" {}/>'
SHOWN, HIDDEN = LINE.format("y2='7'"), LINE.format("")


@pytest.mark.parametrize(
    "hidden",
    [
        f"<style>.st0{{display:none;}}</style><g class='st0'>{HIDDEN}</g>",
        f"<g class='a st0 b'>{HIDDEN}</g><style>.b,\n.st0 {{ fill:red; Display : None }} .b{{fill:red}}</style>",
        f"<style>/* .st1{{ */ .st0{{display:inline}}.st1{{display:none}}</style><g class='st1 st0'>{HIDDEN}</g>",
        f"<style>.st0{{display:inline}}</style><g class='st0' style='display:none'>{HIDDEN}</g>",
        f"<g style='fill:red; display : none !important'>{HIDDEN}</g>",
        f"<g visibility='hidden'>{HIDDEN}<g>{HIDDEN}</g></g>",
        f"<g style='visibility:hidden'>{HIDDEN}</g>",
        f"<style>.v{{visibility:collapse}}</style><g class='v'>{HIDDEN}</g>",
        f"<g visibility='visible' style='visibility:hidden'>{HIDDEN}</g>",
        f"<flowRoot><flowRegion>{HIDDEN}</flowRegion></flowRoot>",
        f"<switch><foreignObject requiredExtensions='x'>{HIDDEN}</foreignObject>{SHOWN}{HIDDEN}</switch>",
        f"<switch><g systemLanguage='de'>{HIDDEN}</g><g><g/></g>{HIDDEN}</switch>",
        f"<foreignObject><svg>{HIDDEN}</svg></foreignObject><g requiredExtensions='x'>{HIDDEN}</g>",
        "<style>@import url(a.css); .a{text-transform:none;font-display:none}</style><g class='a'></g>",
    ],
)
def test_what_is_hidden_is_left_out(tmp_path, hidden):
    strokes = load(written(tmp_path / "x.svg", f"<svg>{hidden}{SHOWN}</svg>"))
    assert {tuple(line[-1].tolist()) for line in strokes[0].polylines()} == {(1, 7)}


@pytest.mark.parametrize(
    "shown",
    [
        f"<g display='none' style='display:inline'>{SHOWN}</g>",
        f"<style>.a{{display:inline}}</style><g display='none' class='a'>{SHOWN}</g>",
        f"<style>.a{{display:none}}.b{{display:inline}}</style><g class='b a'>{SHOWN}</g>",
        f"<style>.a{{display:none}}</style><g class='a' style='display:block'>{SHOWN}</g>",
        f"<g visibility='hidden'><g visibility='visible'>{SHOWN}</g></g>",
        f"<svg width='3' height='4'>{SHOWN}</svg>",
        f"<switch><g systemLanguage='de'/>{SHOWN}</switch>",
        f"<g style='transform:none;visibility:so-so'>{SHOWN}</g>",
    ],
)
def test_what_is_shown_is_drawn(tmp_path, shown):
    assert load(written(tmp_path / "x.svg", f"<svg>{shown}</svg>"))[0].polylines()[0][-1].tolist() == [1, 7]


def test_a_file_of_illustrator_s(tmp_path):
    """Its namespaces are entities, what it draws is in a switch, layers that are off have a class."""
    entities = (
        '<!ENTITY ns_svg "http://www.w3.org/2000/svg"><!ENTITY ns_ai "http://ns.adobe.com/AdobeIllustrator/10.0/">'
    )
    text = f"""<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/svg11.dtd" [{entities}]>
        <svg xmlns="&ns_svg;" xmlns:i="&ns_ai;" x="0px" y="0px" viewBox="0 0 9 9"><style type="text/css">
            .st0{{display:none;}}
            .st1{{fill:none;stroke:#000000;}}</style>
        <switch><foreignObject requiredExtensions="&ns_ai;" x="0" y="0" width="1" height="1"/><g i:extraneous="self">
        <g class="st0"><path class="st1" d="M0,0l3,3"/></g><path class="st1" d="M1,1l5,6"/></g></switch></svg>"""
    (line,) = load(written(tmp_path / "x.svg", text))[0].polylines()
    assert line.tolist() == [[1, 1], [6, 7]]


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        *((f"<svg {key}='1 2 3 4'>{SHOWN}</svg>", "holds an <svg> placed in another") for key in ("x", "y", "viewBox")),
        (f"<svg transform='scale(2)'>{SHOWN}</svg>", "holds an <svg> placed in another"),
        (f"<g style='transform:scale(2)'>{SHOWN}</g>", "<g> has a transform in its style, which is not read"),
        (f"<style>.a{{transform:scale(2)}}</style><g class='a'>{SHOWN}</g>", "<g> has a transform in its style"),
        (
            f"<style>#a{{display:none}}</style>{SHOWN}",
            "style sheet hides or moves by '#a{display:none', which is not read",
        ),
        (f"<style>g .a{{visibility:hidden}}</style>{SHOWN}", "style sheet hides or moves by"),
        (f"<style>.a{{display:none!important}}</style>{SHOWN}", "style sheet hides or moves by"),
        (f"<style>@media print {{.a{{display:none}}}}</style>{SHOWN}", "style sheet hides or moves by"),
        (f"<style>.a{{fill:red}}/* */*{{display:none}}</style>{SHOWN}", "style sheet hides or moves by"),
        (f"<style>a\x09{'b' * 5000}{{display:none}}</style>{SHOWN}", "style sheet hides or moves by"),
        ('<path d="L 1 1"/>', "<path>: 'L 1 1' is no path: it begins with no move"),
        ('<path d="M 0 0 L 1 1 2"/>', "3 numbers after L .* expected 2 or a multiple"),
        ('<path d="M 0 0 L 1 x"/>', "' 1 x' after L, expected numbers"),
        ('<path d="M 0 0 Z 1"/>', "1 numbers after Z .* expected 0"),
        ('<path d="M 0 0 C 1 1"/>', "2 numbers after C .* expected 6"),
        ('<path d="M 0 0 A 1 1 0 2 0 5 5"/>', "<path>: .* is no path"),
        ('<path d="M 0 0 L 1e999 0"/>', "holds a point that is beyond 1e30"),
        ('<polyline points="1 2 3"/>', "<polyline>: points are '1 2 3', expected pairs of numbers"),
        ('<line x1="a"/>', "<line>: could not convert"),
        ('<use href="#a"/>', "holds <use>, which is not read"),
        ("<circle r='3'/><path/>", "found no <path>, <polyline>, <polygon> or <line>, expected some"),
        ('<g display="none"><line x2="1"/></g>', "found no <path>"),
    ],
)
def test_bad_svg_is_refused_by_name(tmp_path, inside, message):
    path = written(tmp_path / "x.svg", f"<svg>{inside}</svg>")
    with refused(path, message):
        load(path)


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "svg.path", None)
    with pytest.raises(ModuleNotFoundError, match=r"need svg\.path: pip install 'fusedmdn\[strokes\]'"):
        load(written(tmp_path / "x.svg", SVG))


# KanjiVG


def test_kanjivg_becomes_the_embedded_set(tmp_path):
    embedded = kanjivg()
    embedded = {c: embedded[embedded.labels.index(c)].points.tolist() for c in KANJI}
    for c, text in KANJI.items():
        written(tmp_path / f"kanji/{ord(c):05x}.svg", text)
        written(tmp_path / f"kanji/{ord(c):05x}-Kaisho.svg", text)
    written(tmp_path / "kanjivg.xml", combined(*"の木"))
    (tmp_path / "kanjivg-20260714.xml.gz").write_bytes(gzip.compress((tmp_path / "kanjivg.xml").read_bytes()))
    single = load(tmp_path / "kanji/06728.svg")
    assert {s.label: s.points.tolist() for s in single} == {"木": embedded["木"]}
    for path in (tmp_path / "kanji", tmp_path / "kanjivg.xml", tmp_path / "kanjivg-20260714.xml.gz"):
        characters = load(path)
        assert characters.labels == ("の", "木")
        assert {s.label: s.points.tolist() for s in characters} == embedded
        assert characters.quantum == 0.25


def test_kanjivg_by_other_measures(tmp_path):
    document = markup.read(written(tmp_path / "x.svg", KANJI["木"]), [svg.ROOT])
    fine = kanji.from_documents([document], step=2, quantum=1)
    assert fine.quantum == 1
    assert len(fine[0]) > 3 * len(kanji.from_documents([document])[0])
    assert (fine[0].points % 1 == 0).all()
    for wrong in ({"step": 0.0}, {"quantum": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            kanji.from_documents([document], **wrong)


@pytest.mark.parametrize(
    ("name", "group", "label"),
    [
        ("x", '<g id="kvg:StrokePaths_00041"><g id="kvg:00041">', "A"),
        ("x", '<g id="kvg:StrokePaths"><g kvg:element="B">', "B"),
        ("00043", '<g id="kvg:StrokePaths"><g>', "C"),
        ("x", '<g id="kvg:0d800"><g>', ""),
    ],
)
def test_labels_of_kanjivg(tmp_path, name, group, label):
    path = written(tmp_path / f"{name}.svg", f'<svg xmlns:kvg="k">{group}<path d="M0 0L1 1"/></g></g></svg>')
    assert load(path).labels == (label,)


def test_kanjivg_with_a_broken_stroke(tmp_path):
    text = KANJI["木"].replace("M50.75,39.5", "L50.75,39.5")
    with pytest.raises(StrokeFileError, match=r"x\.svg: kvg:06728-s3: .* begins with no move"):
        load(written(tmp_path / "x.svg", text))


# All of them


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.xml", "", "cannot be read as XML: no element found"),
        ("x.xml", IAM_LINE[:-3], "cannot be read as XML: unclosed token"),
        ("x.xml", "<a/>", "found <a>, expected <WhiteboardCaptureSession>, <kanjivg>, <ink>, <svg>"),
        ("x.svg", INKML, "found <ink>, expected <svg>"),
        ("x.xml", iam_line(), "found no <Stroke>"),
        ("x.xml", iam_line([(1, 2, "nan")]), "a reading beyond 1e"),
        ("x.xml", iam_line([(1, "", 3)]), "expected every point's x, y and time: could not convert"),
        ("x.xml", iam_line([(1, 2, 3)]).replace("time", "t"), "expected every point's x, y and time: 'time'"),
        ("x.inkml", "<ink/>", "found no <trace>"),
        ("x.inkml", "<ink><trace>1 2 3</trace></ink>", "trace None: point 0 is '1 2 3', expected 2 values"),
        ("x.inkml", "<ink><trace id='a'>1 2, ? 3</trace></ink>", "trace 'a': point 1 .* expected numbers for X and Y"),
        ("x.inkml", "<ink><trace>'1 2</trace></ink>", "expected a first point that is no difference"),
        ("x.inkml", "<ink><trace>1e99 0</trace><trace>0 0</trace></ink>", "is not finite"),
        ("x.inkml", "<ink><traceFormat><channel name='X'/></traceFormat></ink>", "expected X and Y among them"),
        ("x.xml", "<kanjivg><kanji id='a'/></kanjivg>", "found no <path> of a"),
        (
            "x.svg",
            "<!DOCTYPE svg [<!ENTITY a 'b'><!ENTITY c '&a;'>]><svg>&c;</svg>",
            "declares the entity 'c', which is",
        ),
        ("x.svg", f"<!DOCTYPE svg [<!ENTITY a '{'b' * 201}'>]><svg/>", "declares the entity 'a'"),
        ("x.svg", "<!DOCTYPE svg [<!ENTITY a '&#60;g/>'>]><svg>&a;</svg>", "declares the entity 'a'"),
        ("x.svg", "<!DOCTYPE svg [<!ENTITY % a 'b'>]><svg/>", "declares the entity 'a'"),
        ("x.svg", "<!DOCTYPE svg [" + "".join(f"<!ENTITY a{k} ''>" for k in range(65)) + "]><svg/>", "entity 'a64'"),
        ("x.svg", f"<!DOCTYPE svg [<!ENTITY a 'b'>]><svg>{'&a;' * 16_385}</svg>", "declares the entity 'a'"),
        ("x.xml", f"<{'a' * 5000}/>", "found <aaa"),
        ("x.xml", "<kanjivg><kanji id='" + "a&#x9b;[31m" * 5000 + "'/></kanjivg>", "found no <path> of a"),
        (
            "x.xml",
            "<kanjivg><kanji><path id='" + "a&#10;" * 5000 + "' d='L'/></kanji></kanjivg>",
            "begins with no move",
        ),
        ("x.xml", iam_line([("&#x9b;[31m" * 5000, 2, 3)]), "could not convert string to float"),
        ("x.svg", "<svg><line x1='" + "&#x9b;[31m&#10;" * 5000 + "'/></svg>", "<line>: could not convert"),
        ("x.xml", f"<?xml version='1.0' encoding='{'x' * 500}'?><svg/>", "cannot be read"),
        ("x.svg", "<!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>", "declares the entity 'a'"),
        ("x.svg", "<svg>" + "<g>" * 300 + "</g>" * 300 + "</svg>", "elements are nested more than 200 times"),
        ("x.xml.gz", "<svg/>", "cannot be read: Not a gzipped file"),
    ],
)
def test_bad_documents_are_refused_by_name(tmp_path, name, text, message):
    path = written(tmp_path / name, text)
    with refused(path, message):
        load(path)


def test_bad_directories_are_refused_by_name(tmp_path):
    with pytest.raises(StrokeFileError, match=rf"{tmp_path}: expected .* files in it, all of one kind; found none"):
        load(tmp_path)
    written(tmp_path / "a.inkml", INKML)
    written(tmp_path / "b.inkml", SVG)
    with pytest.raises(StrokeFileError, match=r"b\.inkml: found <svg>, expected <ink>"):
        load(tmp_path)
    written(tmp_path / "c.svg", SVG)
    with pytest.raises(StrokeFileError, match="found files ending in .inkml and .svg"):
        load(tmp_path)


@pytest.mark.parametrize("other", ["c.npy", "c.NPZ", "d.inkml.gz", "c.npy.gz", "c.SVG", "c.svgz", "d/e.Xml"])
def test_no_file_of_strokes_is_passed_by(tmp_path, other):
    one = "<ink><trace>3 4</trace></ink>"
    for name in ("a.inkml", "B.INKML", "sub/c.InkML", "README", "a.txt", "a.gz", "a.tar.gz", "inkml"):
        written(tmp_path / name, one)
    assert len(load(tmp_path)) == 3
    written(tmp_path / other, one)
    with refused(tmp_path, r"all of one kind; found files ending in .*\.inkml"):
        load(tmp_path)


def test_capitals_in_endings(tmp_path):
    assert len(load(written(tmp_path / "X.SVG", SVG))) == 1
    (tmp_path / "x.XML.GZ").write_bytes(gzip.compress(IAM_LINE.encode()))
    assert len(load(tmp_path / "x.XML.GZ")) == 1
    kanjivg().part("test").save(tmp_path / "x.NPZ")
    assert len(load(tmp_path / "x.NPZ")) == 342
    np.save(path := tmp_path / "x.npy", np.zeros((2, 3)))
    assert len(load(path.rename(tmp_path / "x.NPY"))) == 1


@pytest.mark.parametrize("first", ["04e0b", "zzz"])
def test_drawings_of_kanjivg_beside_others(tmp_path, first):
    """Whichever comes first."""
    one, other = (KANJI["木"], SVG) if first == "04e0b" else (SVG, KANJI["木"])
    written(tmp_path / "04e0b.svg", one)
    path = written(tmp_path / "my-own.svg", other)
    with refused(path, r"is (no drawing of )?KanjiVG's, and .*04e0b\.svg is .*; expected all of one kind"):
        load(tmp_path)


def test_measures(tmp_path):
    path = written(tmp_path / "x.svg", '<svg><path d="M0 0C0 55.228 44.772 100 100 100"/></svg>')
    assert len(load(path, step=5)[0]) == 33
    assert len(load(tmp_path, step=50)[0]) == 5
    with pytest.raises(ValueError, match=r"x\.svg: gap is no measure of its format; expected step"):
        load(path, gap=2)
    with pytest.raises(ValueError, match="kanjivg: its format has no measures; got step"):
        load("kanjivg", step=2)
    assert load(written(tmp_path / "x.xml", IAM_LINE), gap=9).lengths.tolist() == [6]
    with pytest.raises(ValueError, match=r"x\.inkml: gap is no measure of its format; expected none"):
        load(written(tmp_path / "x.inkml", INKML), gap=2)
