"""`StrokeSet`: many labelled sequences, the embedded KanjiVG characters, and this package's .npz format.

The .npz format, all arrays plain (never pickled): dx, dy (N) and eos (N) of all points one after the other, offsets
(n + 1) of the sequences in them, labels (n) text, and optionally quantum, the raw unit of dx and dy (0, the default:
they are raw already, and continuous). Numbers of any integer or float type.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .files import replacing
from .strokes import FloatArray, Scale, Strokes

PARTS = ("train", "validation", "test")
COLUMNS = ("dx", "dy", "eos", "offsets", "labels")


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
    """

    points: FloatArray
    offsets: NDArray[np.int64]
    labels: tuple[str, ...]
    quantum: float = 0.0

    @classmethod
    def of(cls, sequences: Sequence[Strokes], quantum: float = 0.0) -> StrokeSet:
        """From single sequences."""
        offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        points = np.concatenate([s.points for s in sequences] or [np.zeros((0, 3), np.float32)])
        return cls(points, offsets, tuple(s.label for s in sequences), quantum)

    @classmethod
    def joined(cls, parts: Sequence[StrokeSet]) -> StrokeSet:
        """The sequences of all parts, which are of one quantum, in order."""
        lengths = [part.lengths for part in parts]
        return cls(
            np.concatenate([part.points for part in parts] or [np.zeros((0, 3), np.float32)]),
            np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]),
            tuple(label for part in parts for label in part.labels),
            parts[0].quantum if parts else 0.0,
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

    def scale(self) -> Scale:
        """(0, standard deviation of dx and dy): a zero row stays "no movement"."""
        std = self.points[:, :2].std(axis=0, dtype=np.float64)
        if not len(self.points) or not (std > 0).all():
            raise ValueError(f"no scale: {len(self.points)} points with standard deviations {std.tolist()}")
        return Scale((0.0, 0.0), (float(std[0]), float(std[1])))

    def without_empty(self) -> StrokeSet:
        """The sequences that have points."""
        return StrokeSet.of([s for s in self if len(s)], self.quantum)

    def digest(self) -> str:
        """SHA-256 of everything in the set."""
        content = hashlib.sha256(self.points.tobytes())
        content.update(self.offsets.tobytes())
        content.update(repr((self.labels, self.quantum)).encode())
        return content.hexdigest()

    def part(self, name: str) -> StrokeSet:
        """The "train" (18 of 20), "validation" (1 of 20) or "test" (1 of 20) part.

        What a sequence says decides where it goes, for ever: SHA-256 of its label (of its position, in a set without
        labels), so no label is in two parts and other data does not move it.
        """
        if name not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}; got {name!r}")
        keys = self.labels if any(self.labels) else tuple(map(str, range(len(self))))
        chosen = [i for i, key in enumerate(keys) if part_of(key) == name]
        return StrokeSet.of([self[i] for i in chosen], self.quantum)

    def save(self, path: str | Path) -> None:
        """Write a .npz file, atomically."""
        with replacing(path) as file:
            self.write(file)

    def write(self, file: IO[bytes], **more: NDArray[Any]) -> None:
        """Write what a .npz file holds, and further arrays; the same bytes for the same strokes."""
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
    with resources.as_file(resources.files("fusedmdn") / "assets/kanjivg/kanjivg.npz") as path:
        return load(path)


def load(source: str | Path) -> StrokeSet:
    """Strokes from "kanjivg" (embedded) or a .npz file.

    Raises:
        StrokeFileError: the file is missing, damaged, or its arrays do not fit together.
    """
    if str(source) == "kanjivg":
        return kanjivg()
    path = Path(source)
    if path.suffix != ".npz":
        raise StrokeFileError(f"{path}: expected a .npz file, or the name kanjivg")
    return read(path, path)


def read(source: IO[bytes] | Path, path: Path) -> StrokeSet:
    """What a .npz file holds; errors call it `path`.

    Raises:
        StrokeFileError: as `load`.
    """
    try:
        with np.load(source, allow_pickle=False) as file:
            missing = [name for name in COLUMNS if name not in file.files]
            if missing:
                raise StrokeFileError(f"{path}: no array named {', '.join(missing)}; found {', '.join(file.files)}")
            arrays = {name: file[name] for name in COLUMNS}
            quantum = file["quantum"] if "quantum" in file.files else np.float64(0)
    except StrokeFileError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise StrokeFileError(f"{path}: cannot be read as .npz: {error}") from error
    return _checked(path, **arrays, quantum=quantum)


def _checked(path: Path, dx: Any, dy: Any, eos: Any, offsets: Any, labels: Any, quantum: Any) -> StrokeSet:
    def refuse(what: str) -> StrokeFileError:
        return StrokeFileError(f"{path}: {what}")

    N, n = dx.size, labels.size
    for name, array, kinds, shape in (
        ("dx", dx, "iuf", (N,)),
        ("dy", dy, "iuf", (N,)),
        ("eos", eos, "iufb", (N,)),
        ("offsets", offsets, "iu", (n + 1,)),
        ("labels", labels, "U", (n,)),
        ("quantum", quantum, "iuf", ()),
    ):
        if array.shape != shape or array.dtype.kind not in kinds:
            raise refuse(f"{name}: expected shape {shape} and kind {kinds}, got {array.shape} of {array.dtype}")
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != N or (np.diff(offsets) < 0).any():
        raise refuse(f"offsets must rise from 0 to {N}, got {offsets[0]} to {offsets[-1]}")
    if not (np.isfinite(quantum) and quantum >= 0):
        raise refuse(f"quantum must be >= 0, got {quantum}")
    points = np.column_stack([dx, dy, eos]).astype(np.float64)
    points[:, :2] *= float(quantum) or 1.0
    with np.errstate(over="ignore"):  # what does not fit float32 is refused as infinite
        rows = points.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if wrong.size:
        raise refuse(f"row {wrong[0]} is not finite")
    if not np.isin(rows[:, 2], (0, 1)).all():
        raise refuse("eos must be 0 or 1 everywhere")
    return StrokeSet(rows, offsets, tuple(labels.tolist()), float(quantum))
