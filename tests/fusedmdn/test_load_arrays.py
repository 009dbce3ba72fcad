"""Strokes out of numpy's files: .npy, sketch-rnn .npz and ours; and pickles that would do more than hold them."""

import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from fusedmdn import Strokes, load
from fusedmdn.dataset import StrokeSet
from fusedmdn.loaders import pickled

from .stroke_files import drawings, objects, refused

ROWS = [[1.5, 2, 0], [3, -4, 1], [0, 1, 1]]


def saved(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def pickled_npy(path, data):
    """A .npy file of a row of objects, and these bytes as its pickle."""
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": "|O", "fortran_order": False, "shape": (3,)})
    path.write_bytes(sink.getvalue() + data)
    return path


# What is right


def test_one_sequence(tmp_path):
    strokes = load(saved(tmp_path / "x.npy", np.array(ROWS)))
    assert strokes[0].points.tolist() == ROWS
    assert (len(strokes), strokes.labels, strokes.quantum, strokes.parts) == (1, ("",), 0.0, None)
    five = Strokes(np.array(ROWS)).stroke5()
    assert load(saved(tmp_path / "y.npy", five))[0].points.tolist() == ROWS
    whole = load(saved(tmp_path / "z.npy", np.array(ROWS).astype(np.int8)))
    assert whole.quantum == 1


def test_many_sequences(tmp_path):
    arrays = drawings()
    strokes = load(saved(tmp_path / "x.npy", objects(arrays)))
    assert [s.points.tolist() for s in strokes] == [a.tolist() for a in arrays]
    assert strokes.quantum == 1
    five = [Strokes(a).stroke5() for a in arrays]
    assert [len(s) for s in load(saved(tmp_path / "x.npy", objects(five)))] == [len(a) for a in arrays]
    assert len(load(saved(tmp_path / "x.npy", objects([])))) == 0


def test_pen_ends_first_or_last(tmp_path):
    """Told over all sequences: of one alone, every column may be zeros and ones."""
    ends_last = [np.array([[5.5, 0, 0], [1, 0, 1]]), np.array([[1.0, 7, 1], [0, 1, 1]])]
    ends_first = [a[:, [2, 0, 1]] for a in ends_last]
    for arrays in (ends_last, ends_first):
        strokes = load(saved(tmp_path / "x.npy", objects(arrays)))
        assert [s.points.tolist() for s in strokes] == [a.tolist() for a in ends_last]
    ranges = "the columns are 0 to 6, 0 to 7, 0 to 8"
    with refused(tmp_path / "x.npy", rf"x\.npy: no column of pen ends \(0 or 1\), last or first; {ranges}"):
        load(saved(tmp_path / "x.npy", np.array([[0, 0, 0], [6.0, 7, 8]])))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, ">i2", np.uint8])
@pytest.mark.parametrize("protocol", range(5))
def test_whatever_way_numpy_pickles(tmp_path, dtype, protocol):
    arrays = [np.abs(a).astype(dtype) for a in drawings(4)] + [np.zeros((0, 3), dtype)]
    arrays[1] = np.asfortranarray(arrays[1])
    data = pickle.dumps(objects(arrays), protocol=protocol)
    found = pickled.unpickled(data, 10_000)
    assert [a.tolist() for a in found] == [a.tolist() for a in arrays]
    assert all(a.dtype == np.dtype(dtype) for a in found)


def python2(data):
    """Protocol 2 as Python 2 writes it: bytes as strings, numpy's old names."""
    kind = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
    parts = [b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87R"]
    parts += [b"(K\x01K\x01\x85cnumpy\ndtype\nq\x02U\x02O8K\x00K\x01\x87R(K\x03U\x01|", kind, b"?tb\x89]"]
    for array in data:
        raw = array.astype("<i2").tobytes()
        parts += [b"h\x00h\x01K\x00\x85U\x01b\x87R(K\x01K", bytes([len(array)]), b"K\x03\x86"]
        parts += [b"h\x02U\x02i2K\x00K\x01\x87R(K\x03U\x01<", kind, b"\x00tb\x89U", bytes([len(raw)]), raw, b"tba"]
    return b"".join(parts) + b"tb."


def test_what_python_2_pickled():
    arrays = [np.abs(a) for a in drawings(1)]
    arrays[0][0, 0] = -300  # bytes that are no ASCII
    assert np.array_equal(pickle.loads(python2(arrays), encoding="latin1")[0], arrays[0])  # numpy agrees
    assert [a.tolist() for a in pickled.unpickled(python2(arrays), 1000)] == [a.tolist() for a in arrays]


def test_sketch_rnn_brings_its_own_division(tmp_path):
    train, valid, test = (objects(drawings(n)) for n in (5, 2, 1))
    np.savez_compressed(tmp_path / "cat.npz", train=train, valid=valid, test=test)
    strokes = load(tmp_path / "cat.npz")
    assert strokes.parts == ("train",) * 5 + ("validation",) * 2 + ("test",)
    assert [len(strokes.part(name)) for name in ("train", "validation", "test")] == [5, 2, 1]
    assert strokes.part("test")[0].points.tolist() == drawings(1)[0].tolist()
    assert strokes.part("test").parts == ("test",)
    assert strokes.quantum == 1


def test_a_division_is_carried(tmp_path):
    one, other = [Strokes(np.ones((2, 3)), c) for c in "ab"]
    empty = Strokes(np.zeros((0, 3)), "c")
    divided = StrokeSet.of([one, empty, other], 1.0, ("test", "train", "validation"))
    divided.save(tmp_path / "x.npz")
    again = load(tmp_path / "x.npz")
    assert again.parts == divided.parts
    assert again.digest() == divided.digest() != StrokeSet.of([one, empty, other], 1.0).digest()
    assert again.without_empty().parts == ("test", "validation")
    plain = StrokeSet.of([one, other], 1.0)
    assert StrokeSet.joined([plain, plain]).parts is None
    assert StrokeSet.joined([again, plain]).parts == (*divided.parts, *plain.divided())
    assert [p.labels for p in map(again.part, ("train", "validation", "test"))] == [("c",), ("b",), ("a",)]


def test_packed_pen_ends(tmp_path):
    eos = np.array([0, 1] * 9 + [1])
    columns = {"dx": np.arange(19), "dy": np.arange(19), "offsets": np.array([0, 19]), "labels": np.array(["a"])}
    np.savez(tmp_path / "x.npz", eos=np.packbits(eos), **columns)
    assert load(tmp_path / "x.npz").points[:, 2].tolist() == eos.tolist()
    np.savez(tmp_path / "x.npz", eos=np.packbits(eos)[:2], **columns)
    with refused(tmp_path / "x.npz", r"x\.npz: eos: expected shape \(19,\) .* got \(2,\) of uint8"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "n", "letters", "points"),
    [
        ("unipen/unipen_mini_lines", 1500, 37, 551),
        ("unipen/unipen_mini_words", 5000, 5, 152),
        ("omniglot/omniglot_latin", 520, 1, 67),
    ],
)
def test_real_sets(test_data, name, n, letters, points):
    strokes = load(test_data / f"{name}.npz")
    assert (len(strokes), len(strokes.labels[0]), len(strokes[0])) == (n, letters, points)
    assert all(s.points[-1, 2] == 1 for s in strokes)
    assert 4 < strokes.scale().std[0] < 100


# What is wrong


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"sequence 0 is \(3,\) of float64, expected numbers \(N, 3\) or \(N, 5\), all alike"),
        (np.zeros((2, 4)), r"sequence 0 is \(2, 4\) of float64"),
        (np.zeros((2, 2, 3)), r"sequence 0 is \(2, 2, 3\)"),
        (np.zeros((2, 3), "c8"), "of complex64"),
        (np.zeros((2, 3), "U1"), "of <U1"),
        (np.array([[0, np.nan, 1]]), "sequence 0: .*row 0 is not finite"),
        (np.zeros((2, 5)), "sequence 0: stroke-5: row 0 is not one-hot"),
        (objects([np.zeros((1, 3)), np.zeros((1, 5))]), r"sequence 1 is \(1, 5\)"),
        (objects([np.zeros(3)] * 2), r"sequence 0 is \(3,\)"),
        (objects([1, "a"]), "found int in a pickled array, expected arrays of numbers"),
        (objects([np.zeros((1, 3)), None]), "found NoneType in a pickled array"),
        (objects([objects([1])]), "found numbers in a pickled array"),
        (np.full((2, 2), None), r"\(2, 2\) of object, expected a row of arrays"),
        (np.array([(1, None)], [("a", "i4"), ("b", "O")]), "expected a row of arrays"),
        (np.zeros((2, 3), [(f"{k}\x1b[31m\n", "i4") for k in range(200)]), "sequence 0 is"),
    ],
    ids=repr,
)
def test_bad_arrays_are_refused_by_name(tmp_path, array, message):
    path = saved(tmp_path / "x.npy", array)
    with refused(path, message):
        load(path)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"hello", b"\x93NUMPY\x01\x00\xff\xff{"])
def test_no_npy_at_all(tmp_path, data):
    (tmp_path / "x.npy").write_bytes(data)
    with refused(tmp_path / "x.npy", r"x\.npy: cannot be read as \.npy: "):
        load(tmp_path / "x.npy")
    with refused(tmp_path / "y.npy", r"y\.npy: cannot be read as \.npy: .*No such file"):
        load(tmp_path / "y.npy")


def test_a_header_that_claims_too_much(tmp_path):
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3)})
    (tmp_path / "x.npy").write_bytes(sink.getvalue())
    with refused(tmp_path / "x.npy", r"x\.npy: .* are 26388279066624 bytes, 0 are there"):
        load(tmp_path / "x.npy")


def test_bad_sketch_rnn_sets(tmp_path):
    path = tmp_path / "cat.npz"
    np.savez(path, train=objects(drawings()), valid=objects([]))
    with refused(path, r"cat\.npz: no array named test; found train, valid"):
        load(path)
    np.savez(path, train=np.zeros((3, 3)), valid=objects([]), test=objects([]))
    with refused(path, r"cat\.npz: .*train.npy: \(3, 3\) of float64, expected a row of arrays"):
        load(path)


# Pickles that would do harm

MARKED = "harmed"


class Reduced:
    """Pickled as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def named(module, name, *arguments):
    """Protocol 4, by STACK_GLOBAL: a call of any name."""
    parts = [b"\x80\x04", *(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)), b"\x93("]
    return b"".join([*parts, *(b"\x8c" + bytes([len(text)]) + text.encode() for text in arguments), b"tR."])


CALLS = [
    pickle.dumps(Reduced(os.system, f"touch {MARKED}"), protocol=0),
    pickle.dumps(Reduced(os.system, f"touch {MARKED}"), protocol=4),
    pickle.dumps(Reduced(eval, f"open({MARKED!r}, 'w')"), protocol=2),
    pickle.dumps(Reduced(getattr, Reduced(eval, "1"), "real"), protocol=2),
    pickle.dumps(objects([Reduced(os.system, f"touch {MARKED}")]), protocol=4),
    named("builtins", "exec", f"open({MARKED!r}, 'w')"),
    named("numpy", "load", MARKED),
    named("numpy", "ndarray.tofile", MARKED),
    named("numpy", "memmap", MARKED, "uint8", "w+"),
    named("numpy.testing._private.utils", "runstring", f"open({MARKED!r}, 'w')", "x"),
    named("numpy.core.multiarray", "fromfile", MARKED),
    named("numpy.f2py", "os.system", f"touch {MARKED}"),
    named("numpy", "_core.os.system", f"touch {MARKED}"),
    named("_codecs", "lookup", "x"),
    named("codecs", "encode", "x"),
    named("builtins", "bytes.fromhex", "00"),
    b"(S'touch harmed'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch harmed'\no.",
    b"\x80\x02cnumpy\nndarray\n)\x81.",
    b"\x80\x02\x82\x01.",
    b"Pa\n.",
    b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93}\x8c\x0b__setstate__Nsb.",
]


@pytest.mark.parametrize("data", CALLS)
def test_nothing_that_a_pickle_names_is_run(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    path = pickled_npy(tmp_path / "x.npy", data)
    with refused(tmp_path / "x.npy", r"x\.npy: cannot be read as \.npy: .*(pickle (names|holds)|found)"):
        load(path)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("train", "valid", "test"):
            archive.writestr(f"{name}.npy", path.read_bytes())
    with refused(tmp_path / "x.npz", r"x\.npz: cannot be read as \.npz: train\.npy: "):
        load(tmp_path / "x.npz")
    assert not (tmp_path / MARKED).exists()


def test_they_would_do_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for data in CALLS[:3]:
        pickle.loads(data)
        (tmp_path / MARKED).unlink()


def test_nothing_is_imported_by_a_pickle(tmp_path):
    path = pickled_npy(tmp_path / "x.npy", named("this", "s"))
    code = f"import sys, fusedmdn\ntry: fusedmdn.load({str(path)!r})\nexcept ValueError: print('this' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout
    assert out == "False\n"


def state(shape, dtype, values):
    """A row of one array, whose state is this."""

    bad = Reduced(np.zeros(1).__reduce__()[0], np.ndarray, (0,), b"b")
    bad.call += ((1, shape, dtype, False, values),)
    return pickle.dumps(objects([bad]), protocol=4)


BYTES = 1 << 40
ENCODED = b"h\x01h\x00U\x06latin1\x86R"
ARRAY = b"h\x00h\x01K\x00\x85U\x01b\x87R(K\x01M\x10\x27\x85h\x03\x89h\x02tb"  # 10,000 bytes, of one text for all
SHARED = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01X\x10\x27\x00\x00" + b"a" * 10_000
SHARED += b"q\x02cnumpy\ndtype\nU\x02i1K\x00K\x01\x87Rq\x03(" + ARRAY * 5000 + b"l."
CHOSEN = SHARED.replace(b"h\x00h\x01K\x00\x85U\x01b\x87R", b"h\x01c_codecs\nencode\n\x85R")  # its own way of encoding
HUGE = {
    "python 2": SHARED,
    "called": CHOSEN,
    "memo": b"\x80\x04]r\xff\xff\xff\x00.",
    "memo in text": b"(lp16777215\n.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", BYTES) + b"abc.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", BYTES) + b"abc.",
    "long": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", BYTES) + b"abc.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", BYTES) + b"abc.",
    "shape": state((BYTES,), np.dtype("f8"), b"\0" * 8),
    "no shape": state((0, 1 << 80), np.dtype("f8"), b""),
    "negative": state((-1, -8), np.dtype("i1"), b"\0" * 8),
    "objects": state((BYTES,), np.dtype(object), []),
    "pointers": state((1,), np.dtype(object), b"\0" * 8),
    "dimensions": state((1,) * 3000, np.dtype("f8"), b"\0" * 8),
    "dtype": state((1,), np.dtype("V99999"), b"\0" * 8),
    "structure": state((1,), np.dtype([("a", "i4")]), b"\0" * 4),
    "same": b"\x80\x04]\x94" + b"(" + b"h\x00" * 1000 + b"e.",
    "doubled": b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (k, k - 1, k - 1) for k in range(1, 60)) + b"\x85.",
    "nested": b"]" * 50_000 + b"a" * 49_999 + b".",
    "tuples": b")" + b"\x85" * 50_000 + b".",
    "encoded": b"\x80\x02X\x10\x27\x00\x00" + b"a" * 10_000 + b"q\x00c_codecs\nencode\nq\x01(" + ENCODED * 5000 + b"l.",
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_no_pickle_takes_more_memory_than_it_deserves(tmp_path, name):
    path = pickled_npy(tmp_path / "x.npy", HUGE[name])
    tracemalloc.start()
    try:
        with refused(tmp_path / "x.npy", r"x\.npy: cannot be read as \.npy: "):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(HUGE[name]) + (4 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HUGE)
def test_no_packed_pickle_takes_more_memory_than_it_deserves(tmp_path, name):
    """sketch-rnn's files are packed: a pickle is larger than its file."""
    data, path = pickled_npy(tmp_path / "x.npy", HUGE[name]).read_bytes(), tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("train", "valid", "test"):
            archive.writestr(f"{part}.npy", data)
    tracemalloc.start()
    try:
        with refused(path, r"cannot be read as \.npz: train\.npy: "):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 100 * path.stat().st_size + (16 << 20)
    finally:
        tracemalloc.stop()


def test_empty_sequences_take_memory_too(tmp_path):
    path, empty = tmp_path / "x.npz", objects([np.zeros((0, 3), np.int8)] * 300_000)
    np.savez_compressed(path, train=empty, valid=empty, test=empty)
    with refused(path, r"\d+ bytes that would unpack to 360000000 are no strokes"):
        load(path)
    header, n = io.BytesIO(), 1_000_000
    np.lib.format.write_array_header_1_0(header, {"descr": "<U0", "fortran_order": False, "shape": (n,)})
    arrays = {"dx": np.zeros(0), "dy": np.zeros(0), "eos": np.zeros(0), "offsets": np.zeros(n + 1, np.int8)}
    np.savez_compressed(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.npy", header.getvalue())
    with refused(path, r"\d+ bytes that would unpack to 400000000 are no strokes"):
        load(path)


def test_names_in_an_archive_are_shown_as_text(tmp_path):
    path = tmp_path / "x.npz"
    for names in (["\x1b[31mred\nline"] * 1, [f"{k}" * 300 for k in range(300)]):
        np.savez(path, **dict.fromkeys(["train", *names], np.zeros(1)))
        with refused(path, "no array named valid, test; found "):
            load(path)


def test_an_array_that_is_there_many_times(tmp_path):
    array = np.zeros((300_000, 3), np.int8)
    path = saved(tmp_path / "x.npy", objects([array] * 1000))
    assert path.stat().st_size < 1_000_000
    with refused(tmp_path / "x.npy", r"x\.npy: \d+ bytes that would unpack to 3600400000 are no strokes"):
        load(path)


def test_a_bomb_of_instructions(tmp_path):
    """A small .npz whose pickles are long."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train", "valid", "test"):
            archive.writestr(f"{name}.npy", pickled_npy(tmp_path / "x.npy", b"]" * 3_000_000).read_bytes())
    with refused(tmp_path / "x.npz", r"x\.npz: .*train\.npy: .*pickle is more than 1048576 instructions"):
        load(tmp_path / "x.npz")
