"""`StrokeSet`: many labelled sequences, the embedded KanjiVG characters, and this package's .npz format.

The .npz format, all arrays plain (never pickled): dx, dy (N) and eos (N, or its bits as numpy.packbits packs them) of
all points one after the other, offsets (n + 1) of the sequences in them, labels (n) text, and optionally quantum, the
raw unit of dx and dy (0, the default: they are raw already, and continuous), and parts (n) text, the part that each
sequence belongs to. Numbers of any integer or float type. Other arrays are not read. Every other format that strokes
come in is read by `fusedmdn.loaders`.

A file that somebody else made is held to what it says of itself before anything is unpacked, so that no header can ask
for more memory than the file deserves.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .files import replacing
from .quoting import shown, told
from .strokes import FloatArray, Scale, Strokes

PARTS = ("train", "validation", "test")
NORMALIZATIONS = ("std", "mean-std")
COLUMNS = ("dx", "dy", "eos", "offsets", "labels")
OPTIONAL = {"quantum": np.float64(0), "parts": None}
ENDING = 22  # bytes of a zip's last record, of which the eleventh and twelfth say how many files there are
POINT, SEQUENCE = 12, 400  # bytes in memory of a row; of a sequence, were it empty
UNPACKED, TIMES = 1 << 28, 200  # a file may always unpack to so many bytes, and beyond that to so many times its size
Taken = TypeVar("Taken")


class StrokeFileError(ValueError):
    """A file that does not hold strokes; the message names the file and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class StrokeSet:
    """Sequences in raw units.

    Attributes:
        points: (N, 3) rows (dx, dy, eos) of all sequences, one after the other.
        offsets: (n + 1) int64; sequence i is points[offsets[i] : offsets[i + 1]].
        labels: n texts, "" where unknown.
        quantum: resolution of dx and dy in raw units; 0 for continuous data.
        parts: n names of PARTS, where the data brings a division of its own; else None.
    """

    points: FloatArray
    offsets: NDArray[np.int64]
    labels: tuple[str, ...]
    quantum: float = 0.0
    parts: tuple[str, ...] | None = None

    @classmethod
    def of(cls, sequences: Sequence[Strokes], quantum: float = 0.0, parts: tuple[str, ...] | None = None) -> StrokeSet:
        """From single sequences."""
        offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        points = np.concatenate([s.points for s in sequences] or [np.zeros((0, 3), np.float32)])
        return cls(points, offsets, tuple(s.label for s in sequences), quantum, parts)

    @classmethod
    def joined(cls, parts: Sequence[StrokeSet]) -> StrokeSet:
        """The sequences of all parts, which are of one quantum, in order; each stays in the part that it is in."""
        lengths = [part.lengths for part in parts]
        divided = any(part.parts is not None for part in parts)
        return cls(
            np.concatenate([part.points for part in parts] or [np.zeros((0, 3), np.float32)]),
            np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]),
            tuple(label for part in parts for label in part.labels),
            parts[0].quantum if parts else 0.0,
            tuple(name for part in parts for name in part.divided()) if divided else None,
        )

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.labels)

    def __getitem__(self, i: int) -> Strokes:
        """Sequence i."""
        i = range(len(self))[i]
        return Strokes(self.points[self.offsets[i] : self.offsets[i + 1]], self.labels[i])

    def __iter__(self) -> Iterator[Strokes]:
        """The sequences in order."""
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n) points of each sequence."""
        return np.diff(self.offsets)

    def scale(self, normalize: str = "std") -> Scale:
        """The scale by which offsets get standard deviation 1, and by "mean-std" also mean 0.

        "std" leaves the mean: a zero row, such as the one before the first, stays "no movement". By "mean-std", which
        is what Graves did, it is the mean movement.

        Raises:
            ValueError: another name, or no points, or none that differ.
        """
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}; got {normalize!r}")
        std = self.points[:, :2].std(axis=0, dtype=np.float64)
        if not len(self.points) or not (std > 0).all():
            raise ValueError(f"no scale: {len(self.points)} points with standard deviations {std.tolist()}")
        shift = self.points[:, :2].mean(axis=0, dtype=np.float64) if normalize == "mean-std" else np.zeros(2)
        return Scale((float(shift[0]), float(shift[1])), (float(std[0]), float(std[1])))

    def without_empty(self) -> StrokeSet:
        """The sequences that have points."""
        return self._chosen(np.flatnonzero(self.lengths).tolist())

    def _chosen(self, indices: Sequence[int]) -> StrokeSet:
        parts = None if self.parts is None else tuple(self.parts[i] for i in indices)
        return StrokeSet.of([self[i] for i in indices], self.quantum, parts)

    def digest(self) -> str:
        """SHA-256 of everything in the set."""
        content = hashlib.sha256(self.points.tobytes())
        content.update(self.offsets.tobytes())
        content.update(repr((self.labels, self.quantum)).encode())
        if self.parts is not None:
            content.update(repr(self.parts).encode())
        return content.hexdigest()

    def part(self, name: str) -> StrokeSet:
        """The "train", "validation" or "test" part: as the data says, else 18, 1 and 1 of 20 sequences (`divided`)."""
        if name not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}; got {name!r}")
        return self._chosen([i for i, part in enumerate(self.divided()) if part == name])

    def divided(self) -> tuple[str, ...]:
        """n names: the part of each sequence, as the data says.

        Where it says nothing, what a sequence says decides where it goes, for ever: SHA-256 of its label (of its
        position, in a set without labels), so no label is in two parts and other data does not move it.
        """
        if self.parts is not None:
            return self.parts
        keys = self.labels if any(self.labels) else map(str, range(len(self)))
        return tuple(map(part_of, keys))

    def save(self, path: str | Path) -> None:
        """Write a .npz file, atomically."""
        with replacing(path) as file:
            self.write(file)

    def write(self, file: IO[bytes], **more: NDArray[Any]) -> None:
        """Write what a .npz file holds, and further arrays; the same bytes for the same strokes."""
        if self.parts is not None:
            more = {"parts": np.array(self.parts, dtype=np.str_), **more}
        dx, dy = self.points[:, 0], self.points[:, 1]
        if self.quantum:
            dx, dy = (_smallest(np.rint(v / self.quantum)) for v in (dx, dy))
        np.savez_compressed(
            file,
            dx=dx,
            dy=dy,
            eos=self.points[:, 2].astype(np.uint8),
            offsets=self.offsets,
            labels=np.array(self.labels, dtype=np.str_),
            quantum=np.float64(self.quantum),
            **more,  # type: ignore[arg-type]
        )


def _smallest(values: NDArray[Any]) -> NDArray[Any]:
    """The same whole numbers as int16 where they fit, else as int64."""
    small = not values.size or np.abs(values).max() < 1 << 15
    return values.astype(np.int16 if small else np.int64)


def part_of(key: str) -> str:
    """Where a label belongs: its SHA-256 modulo 20."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 20
    return {0: "validation", 1: "test"}.get(bucket, "train")


def kanjivg() -> StrokeSet:
    """The embedded KanjiVG characters (CC BY-SA 3.0, see assets/kanjivg): 6,703, in a 109 x 109 box, labelled."""
    source = resources.files("fusedmdn") / "assets/kanjivg/kanjivg.npz"
    with source.open("rb") as file:
        return read(file, "kanjivg")


def read(file: IO[bytes], name: str | Path) -> StrokeSet:
    """What a .npz file holds; `name` is what errors call it.

    Raises:
        StrokeFileError: it is damaged, or its arrays do not fit together.
    """
    arrays = read_arrays(file, name, COLUMNS, OPTIONAL)
    check_growth(name, file.seek(0, 2), memory(arrays["dx"].size, arrays["labels"].size))
    return _checked(name, **arrays)


def read_arrays(
    file: IO[bytes], name: str | Path, required: Sequence[str], optional: Mapping[str, Any] | None = None
) -> dict[str, NDArray[Any]]:
    """Arrays of a .npz file by name, none of them pickled; those of `optional` that are not there as they are given.

    Raises:
        StrokeFileError: it is damaged, has no array of a required name, or claims to be larger than it can be.
    """
    return {**(optional or {}), **read_members(file, name, plain_array, required, optional or ())}


def read_members(
    file: IO[bytes],
    name: str | Path,
    take: Callable[[IO[bytes], int], Taken],
    required: Sequence[str],
    optional: Iterable[str] = (),
) -> dict[str, Taken]:
    """What `take` makes of the arrays of a .npz file, each given as a stream and its size in bytes.

    Raises:
        StrokeFileError: as `read_arrays`; or `take` raised.
    """
    try:
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            file.seek(size - ENDING - len(archive.comment))
            listed = int.from_bytes(file.read(ENDING)[10:12], "little")
            if listed != len(members):  # zipfile takes a list of contents that was damaged as it comes
                raise StrokeFileError(f"{name}: lists {len(members)} arrays, and says that it holds {listed}")
            for info in members.values():  # a name that was damaged is not the one that stands before the array
                archive.open(info).close()
            missing = [column for column in required if column not in members]
            if missing:
                raise StrokeFileError(f"{name}: no array named {', '.join(missing)}; found {told(', '.join(members))}")
            chosen = [column for column in (*required, *optional) if column in members]
            check_growth(name, size, sum(members[column].file_size for column in chosen))
            taken = {}
            for column in chosen:
                member = members[column]
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{member.filename}: compression {member.compress_type} is not numpy's")
                with archive.open(member) as data:
                    try:
                        taken[column] = take(data, member.file_size)
                    except ValueError as error:
                        raise ValueError(f"{member.filename}: {error}") from error
            return taken
    except StrokeFileError:
        raise
    except Exception as error:  # of what is damaged, zipfile and numpy raise nearly everything
        raise StrokeFileError(f"{name}: cannot be read as .npz: {told(error)}") from error


def array_names(path: Path) -> list[str]:
    """Names of the arrays that a .npz file says it holds; none of what is no .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception:  # whoever reads it tells why
        return []


def check_growth(name: str | Path, size: int, claimed: int) -> None:
    """Refuse a file of `size` bytes that says it holds more than strokes can be packed into."""
    if claimed > max(UNPACKED, TIMES * size):
        raise StrokeFileError(f"{name}: {size} bytes that would unpack to {claimed} are no strokes")


def memory(points: int, sequences: int) -> int:
    """Bytes that so many points in so many sequences take."""
    return POINT * points + SEQUENCE * sequences


def array_header(data: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a .npy file that is read from its beginning."""
    version = np.lib.format.read_magic(data)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"format {version} is not numpy's for numbers and text")
    shape, _, dtype = headers[version](data)
    return shape, dtype


def plain_array(data: IO[bytes], size: int) -> NDArray[Any]:
    """The array of a .npy file of `size` bytes, as large as it says, and of a kind that needs no pickle."""
    shape, dtype = array_header(data)
    if dtype.hasobject:
        raise ValueError("holds Python objects")
    claimed, there = math.prod(shape) * dtype.itemsize, size - data.tell()
    if claimed != there:
        raise ValueError(f"{shape} of {dtype} are {claimed} bytes, {there} are there")
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False)


def _checked(
    name: str | Path, dx: Any, dy: Any, eos: Any, offsets: Any, labels: Any, quantum: Any, parts: Any
) -> StrokeSet:
    def refuse(what: str) -> StrokeFileError:
        return StrokeFileError(f"{name}: {told(what)}")

    N, n = dx.size, labels.size
    if eos.dtype == np.uint8 and eos.shape == (-(-N // 8),) != (N,):
        eos = np.unpackbits(eos, count=N)
    for column, array, kinds, shape in (
        ("dx", dx, "iuf", (N,)),
        ("dy", dy, "iuf", (N,)),
        ("eos", eos, "iufb", (N,)),
        ("offsets", offsets, "iu", (n + 1,)),
        ("labels", labels, "U", (n,)),
        ("quantum", quantum, "iuf", ()),
        *([] if parts is None else [("parts", parts, "U", (n,))]),
    ):
        if array.shape != shape or array.dtype.kind not in kinds:
            raise refuse(f"{column}: expected shape {shape} and kind {kinds}, got {array.shape} of {array.dtype}")
    if offsets[0] != 0 or offsets[-1] != N or (offsets[1:] < offsets[:-1]).any():
        raise refuse(f"offsets must rise from 0 to {N}, got {offsets[0]} to {offsets[-1]}")
    unit = float(quantum)
    if not 0 <= unit < math.inf:
        raise refuse(f"quantum must be >= 0, got {quantum}")
    points = np.empty((N, 3), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit float32 is refused as infinite
        for k, values in enumerate((dx, dy)):
            points[:, k] = values.astype(np.float64) * (unit or 1.0)
        points[:, 2] = eos
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if wrong.size:
        raise refuse(f"row {wrong[0]} is not finite")
    if not np.isin(eos, (0, 1)).all():
        raise refuse("eos must be 0 or 1 everywhere")
    texts = _texts(name, "labels", labels)
    named = None if parts is None else _texts(name, "parts", parts)
    for part in named or ():
        if part not in PARTS:
            raise refuse(f"parts: expected {', '.join(PARTS)}, got {shown(part)}")
    return StrokeSet(points, offsets.astype(np.int64), texts, unit, named)


def _texts(name: str | Path, column: str, array: Any) -> tuple[str, ...]:
    try:
        texts = tuple(array.tolist())
        "".join(texts).encode()
    except (ValueError, SystemError) as error:  # lone surrogates; numbers that are no characters at all
        raise StrokeFileError(f"{name}: {column} are not text: {told(error)}") from error
    return texts
