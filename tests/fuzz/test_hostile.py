"""What is made to be expensive, or to trip a parser: refused with a reason, and in little memory."""

import contextlib
import gzip
import io
import json
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from fusedmdn import load, sealed
from fusedmdn.dataset import StrokeFileError
from fusedmdn.loaders import kanji, svg

from ..fusedmdn.stroke_files import refused
from .mutations import VALUES
from .targets import ARRAYS, Target, prepare

LITTLE = 32 << 20  # bytes that a refusal may take


@contextlib.contextmanager
def refused_in_little_memory(error, match):
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match):
            yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak < LITTLE
    finally:
        tracemalloc.stop()


def npy(array, **changes):
    """A .npy file whose header says something else."""
    sink = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(np.asarray(array)) | changes
    np.lib.format.write_array_header_1_0(sink, header)
    return sink.getvalue() + np.asarray(array).tobytes()


GOOD = {"dx": np.arange(2.0), "dy": np.arange(2.0), "eos": np.zeros(2), "offsets": np.array([0, 2])}
MORE = {"labels": np.array(["a"]), "quantum": np.float64(0), "parts": np.array(["train"])}
MEMBERS = {name: npy(array) for name, array in (GOOD | MORE).items()}


def npz(path, method=zipfile.ZIP_STORED, **changes):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ARRAYS:
            archive.writestr(f"{name}.npy", changes.get(name, MEMBERS[name]))
    return path


def test_the_good_one_is_taken(tmp_path):
    assert load(npz(tmp_path / "good.npz")).labels == ("a",)


@pytest.mark.parametrize(
    "change",
    [
        {"dx": npy(GOOD["dx"], shape=(1 << 60,))},
        {"dx": npy(GOOD["dx"], shape=(1 << 40,))},
        {"dx": npy(GOOD["dx"], shape=(-2, -1))},
        {"dx": npy(GOOD["dx"], shape=(0, 1 << 70))},
        {"dx": npy(GOOD["dx"], shape=(1 << 500,))},
        {"labels": npy(np.array(["a"]), descr="<U1000000000")},
        {"labels": npy(np.array(["a"]), descr="<U0", shape=(1 << 60,))},
        {"labels": npy(np.array(["a"]), descr="|O", shape=(0,))},
        {"labels": npy(np.array([0xD800], np.uint32), descr="<U1")},
        {"labels": npy(np.array([0xFFFFFFFF], np.uint32), descr="<U1")},
        {"dx": npy(GOOD["dx"], descr=[("a", "<f4"), ("b", "<f4")])},
        {"dx": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535},
        {"dx": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 1000},
        {"dx": b"\x93NUMPY\x03\x00"},
        {"dx": b""},
        {"offsets": npy(np.array([0, (1 << 63) - 1, -(1 << 63), -1, 2])), "labels": npy(np.array(["a"] * 4))},
        {"offsets": npy(np.array([0, (1 << 64) - 1], np.uint64))},
        {"quantum": npy(np.array(1e309, np.longdouble))},
        {"quantum": npy(np.array(np.nan))},
    ],
    ids=str,
)
def test_headers_that_claim_too_much(tmp_path, change):
    path = npz(tmp_path / "strokes.npz", **change)
    with refused_in_little_memory(StrokeFileError, "strokes.npz: "):
        load(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_bound(tmp_path, method):
    path = npz(tmp_path / "strokes.npz", method)
    with refused_in_little_memory(StrokeFileError, "is not numpy's"):
        load(path)


def test_a_bomb(tmp_path):
    """Good in all it says: 90 million points in 270 kB."""
    path, N = tmp_path / "strokes.npz", 90_000_000
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (N,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("dx", "dy", "eos"):
            with archive.open(f"{name}.npy", "w") as member:
                member.write(header.getvalue())
                for _ in range(N // 1_000_000):
                    member.write(bytes(1_000_000))
        archive.writestr("offsets.npy", npy(np.array([0, N])))
        archive.writestr("labels.npy", MEMBERS["labels"])
    with refused_in_little_memory(
        StrokeFileError, r"strokes\.npz: \d+ bytes that would unpack to 270000\d+ are no strokes"
    ):
        load(path)


def xml(inside, before=""):
    return f"<!DOCTYPE svg [{before}]><svg>{inside}</svg>"


LAUGHS = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 20))
BOUNDS = {"POINTS": 10_000, "CURVES": 1000, "MOST": 10_000}
DOCUMENTS = {
    "laughs": (".svg", xml("&a19;", f'<!ENTITY a0 "ha">{LAUGHS}'), "declares the entity"),
    "quadratic": (".svg", xml("&a;" * 100_000, f'<!ENTITY a "{"x" * 100_000}">'), "declares the entity"),
    "references": (".svg", xml("&a;" * 20_000, '<!ENTITY a "x">'), "declares the entity"),
    "styles": (".svg", xml(f"<style>{'.a,' * 50_000}{{display:none}}</style>"), "style sheet hides or moves by"),
    "comments": (".svg", xml(f"<style>display:{'/*' * 500_000}</style>"), "found no <path>"),
    "parameter": (".svg", xml("", '<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;'), "declares the entity"),
    "defaults": (".svg", xml("<g/>" * 50_000, f'<!ATTLIST g a CDATA "{"x" * 100_000}">'), "found no <path>"),
    "deep": (".svg", xml("<g>" * 200_000), "nested more than 200 times"),
    "other": (".svg", "<html>" + "<a/>" * 1_000_000, "found <html>"),
    "path": (".svg", xml(f'<path d="M0 0{"t1 1" * 300_000}"/>'), "<path>: 1200004 letters"),
    "curves": (".svg", xml(f'<path d="M0 0{"t1 1" * 600}"/>' * 2), "more than 10000 lines, or 1000 curves"),
    "lines": (".svg", xml(f'<polyline points="{"1 1 " * 20_000}"/>'), "more than 10000 lines, or 1000 curves"),
    "long": (".svg", xml('<path d="M0 0C0 1e29 1 1e29 1 0"/>' * 900), "more than 10000 points"),
    "nan": (".svg", xml('<path d="M0 0C1e308 1e308 -1e308 1e308 1 0"/>'), "beyond 1e30"),
    "transform": (".svg", xml(f'<g transform="{"scale(1e300)" * 3000}"/>'), "is none of SVG"),
    "spaces": (".inkml", f"<ink><trace>1 {' ' * 1_000_000}x</trace></ink>", "point 0 is"),
    "trace": (".inkml", f"<ink><trace>{'1 1,' * 1_100_000}</trace></ink>", "4400000 letters"),
    "faster": (".inkml", f"<ink><trace>0 0,&quot;1e300 &quot;1{',* *' * 9}</trace></ink>", "is not finite"),
    "kanji": (".xml", "<kanjivg>" + '<kanji><path d="M0 0L1e29 0"/></kanji>' * 20 + "</kanjivg>", "more than 10000 p"),
    "strokes": (".xml", "<kanjivg><kanji>" + '<path d="M0 0L1 0"/>' * 300 + "</kanji></kanjivg>", "more than 200 pen"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_ask_for_too_much(tmp_path, monkeypatch, name):
    for module, bound in ((svg, "POINTS"), (svg, "CURVES"), (kanji, "MOST")):  # counting memory makes it slow
        monkeypatch.setattr(module, bound, BOUNDS[bound])
    ending, text, message = DOCUMENTS[name]
    path = tmp_path / f"strokes{ending}"
    path.write_text(text)
    tracemalloc.start()
    try:
        with refused(path, message):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * LITTLE + 20 * len(text)
    finally:
        tracemalloc.stop()


CURVE, LINE = '<path d="M0 0C0 1e29 1 1e29 1 0"/>', '<path d="M0 0L1e29 0"/>'
AS_THEY_ARE = {
    "curves": (".svg", xml(f'<path d="M0 0{"t1 1" * 600}"/>' * 51), "more than 1000000 lines, or 30000 curves"),
    "long": (".svg", xml(CURVE * 5500), "more than 1000000 points"),
    "kanji": (".xml", f"<kanjivg>{f'<kanji>{LINE * 200}</kanji>' * 16}</kanjivg>", "more than 3000000 points"),
}


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_bounds_as_they_are(tmp_path, name):
    ending, text, message = AS_THEY_ARE[name]
    path = tmp_path / f"strokes{ending}"
    path.write_text(text)
    with refused(path, message):
        load(path)


def test_a_bomb_of_elements(tmp_path):
    """16 kB, which as a tree would be a gigabyte."""
    path = tmp_path / "strokes.svg.gz"
    for element in ("<g/>", "<g a='' b='' c=''/>"):
        path.write_bytes(gzip.compress(f"<svg>{element * ((15 << 20) // len(element))}</svg>".encode()))
        tracemalloc.start()
        try:
            with refused(path, r"\d+ bytes of more than 131072 elements and attributes are no strokes"):
                load(path)
            assert tracemalloc.get_traced_memory()[1] < 4 * LITTLE
        finally:
            tracemalloc.stop()


def test_a_bomb_of_xml(tmp_path):
    path = tmp_path / "strokes.xml.gz"
    path.write_bytes(gzip.compress(b"<svg>" + bytes([32]) * (20 << 20)))
    with pytest.raises(StrokeFileError, match=r"strokes\.xml\.gz: \d+ bytes that hold more than 16777216 of XML"):
        load(path)


HOSTILE = [
    b"", b"\0", b"null", b"[]", b"\xff\xfe{}", b'{"a": "\xed\xa0\x80"}', b"\xef\xbb\xbf{}", b"{" * 100_000,
    b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 990 + b"1" + b"}" * 990, b'{"a": ' + b"9" * 5000 + b"}",
    b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"plans": ' + b"[" * 40 + b"]" * 40 + b"}",
]  # fmt: skip
JSON_TARGETS = ("config", "job-spec", "plans-added-to")


@pytest.mark.parametrize("name", JSON_TARGETS)
def test_no_json(tmp_path, name):
    target = prepare(name, tmp_path)
    for data in HOSTILE:
        with refused_in_little_memory(ValueError, re.escape(target.named)):
            target.load(data)


@pytest.mark.parametrize("name", ["metrics", "plans-taken", "record", "manifest"])
@pytest.mark.filterwarnings("ignore:.*is damaged:UserWarning")
def test_no_json_where_it_is_done_without(tmp_path, name):
    target = prepare(name, tmp_path)
    for data in HOSTILE:
        target.load(data)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e400", '{"a": 1, "b": 2, "a": 1}', "[" * 33 + "]" * 33])
def test_sealed_json_is_to_the_letter(value):
    assert sealed.parse(b'{"a": [1e-400, 1, "\\ud800"], "b": %s}' % (b"[" * 31 + b"]" * 31))["a"] == [0.0, 1, "\ud800"]
    with pytest.raises(ValueError, match="is no finite number|'a' is there twice|nested more than 32 times"):
        sealed.parse(value.encode())


def test_what_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed.write(tmp_path / "x.json", {"format": "x", "a": float("inf")})
    assert not list(tmp_path.iterdir())


def every_value(document, at=()):
    """Places of all values in it."""
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*at, key)
        if isinstance(value, (dict, list)):
            yield from every_value(value, (*at, key))


@pytest.mark.parametrize(
    ("name", "part"), [("config-sealed", ()), ("progress", ("progress",)), ("job-spec-sealed", ())]
)
def test_every_value_replaced_by_every_other(tmp_path, name, part):
    """With a right seal: what is accepted works, and what is not is refused by name."""
    target = prepare(name, tmp_path)
    places = [place for place in every_value(json.loads(target.seeds[0])) if place[: len(part)] == part]
    assert len(places) > 20
    for place in places:
        for value in VALUES:
            document = json.loads(target.seeds[0])
            holder = document
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = "\N{SNOWMAN}"
            target.check(json.dumps(document).replace('"\\u2603"', value).encode())


def test_the_checks_can_fail():
    def raises(error):
        def load(data):
            raise error

        return Target(load, [b""], "x.json")

    raises(ValueError("x.json: no good")).check(b"")
    with pytest.raises(KeyError):
        raises(KeyError("a")).check(b"")
    with pytest.raises(AssertionError, match="no reason"):
        raises(ValueError()).check(b"")
    with pytest.raises(AssertionError, match="does not name x.json"):
        raises(ValueError("no good")).check(b"")
    for said in ("\n", "\x1b[31m", "a" * 400):
        raises(ValueError(f"x.json: {said}")).check(b"")
        with pytest.raises(AssertionError, match="is no plain line"):
            raises(ValueError(f"x.json: {said}"))._replace(plain=True).check(b"")
