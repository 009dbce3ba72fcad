"""Stroke files: there and back, the embedded characters, the split that never moves, what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedmdn import Scale, Strokes, dataset, load
from fusedmdn.dataset import StrokeFileError, StrokeSet, kanjivg, part_of

from .stroke_files import refused
from .test_strokes import drawing


@given(st.lists(st.tuples(drawing, st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))))
def test_files_there_and_back(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("set") / "x.npz"
    given_set = StrokeSet.of([Strokes.from_polylines(lines, label) for lines, label in items], quantum=0.25)
    given_set.save(path)
    again = load(path)
    assert np.array_equal(again.points, given_set.points)
    assert np.array_equal(again.offsets, given_set.offsets)
    assert (again.labels, again.quantum) == (given_set.labels, 0.25)
    assert [len(s) for s in again] == again.lengths.tolist()


def test_continuous_data_is_kept_to_the_bit(tmp_path):
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    points[:, 2] = points[:, 2] > 0
    StrokeSet.of([Strokes(points)]).save(tmp_path / "x.npz")
    assert np.array_equal(load(tmp_path / "x.npz").points, points)


def test_embedded_characters():
    characters = kanjivg()
    assert len(characters) == len(load(Path("kanjivg"))) == 6703
    assert len(set(characters.labels)) == 6703
    assert characters.quantum == 0.25
    kanji = characters[characters.labels.index("木")]
    assert len(kanji.polylines()) == 4
    assert all(s.points[-1, 2] == 1 for s in characters)
    box = np.concatenate([np.concatenate(s.polylines()) for s in characters])
    assert box.min() > 0
    assert box.max() < 109


def test_the_split_is_fixed_for_ever():
    characters = kanjivg()
    parts = {name: characters.part(name) for name in dataset.PARTS}
    assert [len(p) for p in parts.values()] == [6008, 353, 342]
    assert sorted(label for p in parts.values() for label in p.labels) == sorted(characters.labels)
    digest = hashlib.sha256("".join(parts["validation"].labels).encode()).hexdigest()
    assert digest == "7dbc00fca8ceb0734e1ebeeb41b745431aa9f9a09a509996805031cd02bbe501"
    assert [part_of(c) for c in "木永a"] == ["train", "train", "train"]
    assert parts["train"].scale() == Scale((0.0, 0.0), (11.931184419685911, 12.043129754466529))


def test_unlabelled_sets_split_by_position():
    one = [Strokes(np.zeros((1, 3)))] * 400
    parts = [StrokeSet.of(one).part(name) for name in dataset.PARTS]
    assert [len(p) for p in parts] == [sum(part_of(str(i)) == name for i in range(400)) for name in dataset.PARTS]
    assert all(len(p) for p in parts)
    with pytest.raises(ValueError, match="got 'dev'"):
        StrokeSet.of(one).part("dev")


def good():
    return {
        "dx": np.arange(5),
        "dy": np.arange(5) * 0.5,
        "eos": np.array([0, 1, 0, 0, 1]),
        "offsets": np.array([0, 2, 5]),
        "labels": np.array(["a", "b"]),
        "quantum": np.float64(0),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dx": None}, "no array named dx; found dy, eos"),
        ({"dy": np.arange(4)}, r"dy: expected shape \(5,\).* got \(4,\)"),
        ({"eos": np.array([0, 1, 2, 0, 1])}, "eos must be 0 or 1"),
        ({"dx": np.array([0, 1, np.nan, 0, 1])}, "row 2 is not finite"),
        ({"dx": np.array([0, 1, 1e300, 0, 1])}, "row 2 is not finite"),
        ({"offsets": np.array([0, 2, 4])}, "offsets must rise from 0 to 5, got 0 to 4"),
        ({"offsets": np.array([0, 6, 5])}, "offsets must rise"),
        ({"offsets": np.array([0.0, 2.0, 5.0])}, "offsets: expected shape .* of float64"),
        ({"labels": np.array(["a"])}, r"offsets: expected shape \(2,\)"),
        ({"labels": np.array([1, 2])}, "labels: expected"),
        ({"labels": np.array(["a", {}], dtype=object)}, "cannot be read as .npz"),  # pickled: never loaded
        ({"quantum": np.float64(-1)}, "quantum must be >= 0, got -1"),
        ({"quantum": np.zeros(2)}, r"quantum: expected shape \(\)"),
        ({"parts": np.array(["train", "\x1b[31m\n" * 500])}, "parts: expected train, validation, test, got "),
        ({"dx": None, "\x1b[31m\n" * 50: np.zeros(1)}, "no array named dx; found dy, eos"),
        ({"dx": np.zeros(5, [(f"{k}\x1b[31m\n", "i4") for k in range(200)])}, r"dx: expected shape \(5,\)"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "strokes.npz"
    arrays = {k: v for k, v in (good() | change).items() if v is not None}
    np.savez(path, **arrays)
    with refused(path, message):
        load(path)


def test_good_file_is_accepted(tmp_path):
    np.savez(tmp_path / "x.npz", **good())
    assert load(tmp_path / "x.npz")[1].points.tolist() == [[2, 1, 0], [3, 1.5, 0], [4, 2, 1]]
    np.savez(tmp_path / "y.npz", **{k: v for k, v in good().items() if k != "quantum"})
    assert np.array_equal(load(tmp_path / "y.npz").points, load(tmp_path / "x.npz").points)
    np.savez(tmp_path / "z.npz", **good() | {"quantum": np.float64(0.5)})
    assert load(tmp_path / "z.npz")[1].points.tolist() == [[1, 0.5, 0], [1.5, 0.75, 0], [2, 1, 1]]


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "flipped"])
def test_damaged_files_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "strokes.npz"
    StrokeSet.of([Strokes(np.ones((500, 3)))] * 5).save(path)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        flipped = bytearray(data)
        flipped[len(data) // 8] ^= 0xFF
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": data[:-200], "flipped": bytes(flipped)}[damage])
    with refused(path, "cannot be read"):
        load(path)


def test_every_flipped_byte_is_refused_by_name_or_harmless(tmp_path):
    path = tmp_path / "strokes.npz"
    np.savez_compressed(path, **good() | {"quantum": np.float64(0.5)})
    data, digest = path.read_bytes(), load(path).digest()
    for k in range(len(data)):
        for flip in (0x01, 0x08, 0x80, 0xFF):
            path.write_bytes(data[:k] + bytes([data[k] ^ flip]) + data[k + 1 :])
            try:
                assert load(path).digest() == digest
            except StrokeFileError as error:
                assert "strokes.npz" in str(error)


def test_digest_and_without_empty():
    one, other = Strokes(np.ones((2, 3)), "a"), Strokes(2 * np.ones((2, 3)) - [[0, 0, 1]], "a")
    empty = Strokes(np.zeros((0, 3)), "b")
    sets = [StrokeSet.of(s, q) for s, q in (([one], 0), ([other], 0), ([one, empty], 0), ([one], 0.5))]
    assert len({s.digest() for s in sets}) == 4
    assert sets[2].without_empty().digest() == sets[0].digest()


def test_other_endings_are_refused():
    with pytest.raises(
        StrokeFileError, match=r"x.pkl: expected .npz, .npy, .*, a directory of such, or the name kanjivg"
    ):
        load("x.pkl")


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_normalised_rows(pen):
    """ "mean-std" takes both moments out of the offsets, and leaves the pen and the end row alone."""
    data = kanjivg().part("validation")
    for normalize, mean in (("std", False), ("mean-std", True)):
        scale = data.scale(normalize)
        rows = [s.rows(pen, scale)[: len(s)] for s in data]
        offsets = np.concatenate(rows)[:, :2].astype(np.float64)
        assert np.allclose(offsets.std(0), 1, atol=1e-5)
        assert np.allclose(offsets.mean(0), 0, atol=1e-5) == mean
        for strokes in (data[0], data[1]):
            again = strokes.rows(pen, scale)
            assert np.array_equal(again[:, 2:], strokes.rows(pen)[:, 2:])
            assert pen == "bernoulli" or again[-1].tolist() == [0, 0, 0, 0, 1]
            assert np.allclose(Strokes.from_rows(again, scale).points, strokes.points, atol=1e-4)
    with pytest.raises(ValueError, match="normalize must be one of std, mean-std; got 'max'"):
        data.scale("max")


def test_no_scale_without_movement():
    with pytest.raises(ValueError, match="no scale: 2 points"):
        StrokeSet.of([Strokes(np.zeros((2, 3)))]).scale()
