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

from .stroke_files import IAM_FORM, IAM_LINE, INKML, KANJI, SVG, combined
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
    strokes = Strokes.from_polylines(lines)
    if not len(strokes):
        return
    path = tmp_path_factory.mktemp("drawn") / "x.svg"
    strokes.save(path)
    drawn, given_lines = load(path)[0].polylines(), strokes.polylines()
    size = max(max(np.ptp(np.concatenate(given_lines), axis=0)), 1e-9)
    assert [len(line) for line in drawn] == [len(line) if np.ptp(line, axis=0).any() else 1 for line in given_lines]
    for line, other in zip(drawn, given_lines, strict=True):
        unit = max(max(np.ptp(np.concatenate(drawn), axis=0)) / size, 1e-9)
        shift = line[0] - drawn[0][0] - (other[0] - given_lines[0][0]) * unit
        assert np.abs(shift).max() < 0.05


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


@pytest.mark.parametrize(
    ("inside", "message"),
    [
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
    with pytest.raises(StrokeFileError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")


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
        ("x.svg", "<!DOCTYPE svg [<!ENTITY a 'b'>]><svg>&a;</svg>", "declares the entity 'a'"),
        ("x.svg", "<!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>", "declares the entity 'a'"),
        ("x.svg", "<svg>" + "<g>" * 300 + "</g>" * 300 + "</svg>", "elements are nested more than 200 times"),
        ("x.xml.gz", "<svg/>", "cannot be read: Not a gzipped file"),
    ],
)
def test_bad_documents_are_refused_by_name(tmp_path, name, text, message):
    path = written(tmp_path / name, text)
    with pytest.raises(StrokeFileError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")


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
