"""The files that strokes are kept in: the same bytes for the same strokes, and back.

Parquet: a row a sequence: index (int64), length (int32), dx, dy (list<float32>), pen (list<uint8>), raw units; pen is 1
on the last point of a pen stroke. dx and dy are split into byte streams, which zstd packs better; every page has a
checksum. npz: what `fusedmdn.dataset` reads, with an `index`. svg: a zip of a drawing a sequence, named by its index.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import dataset, render
from ..dataset import StrokeSet
from .environment import pyarrow
from .errors import JobError

COMPRESSION_LEVEL = 3
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's first day: bytes must not depend on when they were written


class Piece(NamedTuple):
    """Some of a job's sequences: the index of each (n), int64, and their strokes in raw units."""

    indices: NDArray[np.int64]
    strokes: StrokeSet

    @classmethod
    def joined(cls, pieces: list[Piece]) -> Piece:
        """All pieces' sequences, in order."""
        indices = np.concatenate([np.zeros(0, np.int64), *(piece.indices for piece in pieces)])
        return cls(indices, StrokeSet.joined([piece.strokes for piece in pieces]))


Write = Callable[[Piece], None]
About = Mapping[str, Any]  # what is said of the strokes, where a file has a place for it


class Format(NamedTuple):
    """How a file ends, how pieces are written one after the other, and how it is read; `None`: not at all."""

    suffix: str
    writer: Callable[[IO[bytes], About], AbstractContextManager[Write]]
    decode: Callable[[bytes, str], Piece] | None

    def encode(self, piece: Piece, about: About) -> bytes:
        """A file of one piece."""
        sink = io.BytesIO()
        with self.writer(sink, about) as write:
            write(piece)
        return sink.getvalue()


def parquet_schema() -> Any:
    """The columns."""
    pa = pyarrow()
    number, pen = pa.list_(pa.float32()), pa.list_(pa.uint8())
    return pa.schema([("index", pa.int64()), ("length", pa.int32()), ("dx", number), ("dy", number), ("pen", pen)])


@contextmanager
def parquet_writer(sink: IO[bytes], about: About) -> Iterator[Write]:
    """A row group a piece."""
    pyarrow()
    import pyarrow.parquet as pq

    with pq.ParquetWriter(
        sink,
        parquet_schema().with_metadata({"fusedmdn": json.dumps(dict(about), sort_keys=True)}),
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=False,
        use_byte_stream_split=["dx.list.element", "dy.list.element"],
        write_page_checksum=True,
    ) as writer:
        yield lambda piece: writer.write_table(_table(piece), row_group_size=max(1, len(piece.indices)))


def _table(piece: Piece) -> Any:
    pa = pyarrow()
    points, offsets = piece.strokes.points, pa.array(piece.strokes.offsets.astype(np.int32))
    columns = [pa.array(piece.indices), pa.array(piece.strokes.lengths.astype(np.int32))]
    for values in (points[:, 0], points[:, 1], points[:, 2].astype(np.uint8)):
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values))))
    return pa.Table.from_arrays(columns, schema=parquet_schema())


def from_parquet(data: bytes, name: str) -> Piece:
    """The piece that a Parquet file holds; `name` is what errors call it.

    Raises:
        JobError: it is no Parquet file of these columns, is damaged, or its rows do not fit together.
    """
    return Piece.joined([read() for read in parquet_pieces(data, name)])


def parquet_pieces(source: bytes | Path, name: str) -> list[Callable[[], Piece]]:
    """A function for each row group of a file, given by its content or where it is, which opens the file and reads it.

    Raises:
        JobError: as `from_parquet`, here or when a row group is read.
    """
    groups = _opened(source, name).num_row_groups
    return [functools.partial(_row_group, source, name, k) for k in range(groups)]


def _row_group(source: bytes | Path, name: str, k: int) -> Piece:
    file = _opened(source, name)
    with _told(name):
        table = file.read_row_group(k, use_threads=False).combine_chunks()
        table.validate(full=True)
    return _piece(table, name)


def _opened(source: bytes | Path, name: str) -> Any:
    pyarrow()
    import pyarrow.parquet as pq

    with _told(name):
        file_or_path = io.BytesIO(source) if isinstance(source, bytes) else source
        file = pq.ParquetFile(file_or_path, page_checksum_verification=True)
        schema = file.schema_arrow
    if not schema.equals(parquet_schema()):
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise JobError(f"{name}: expected the columns index, length, dx, dy and pen of strokes, got {found or 'none'}")
    return file


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Arrow's errors, as one that names the file."""
    try:
        yield
    except (pyarrow().ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise JobError(f"{name}: cannot be read as Parquet: {reason}") from error


def _piece(table: Any, name: str) -> Piece:
    if not len(table):
        return Piece.joined([])
    columns = {column: table[column].chunk(0) for column in table.column_names}
    offsets = columns["dx"].offsets.to_numpy().astype(np.int64)
    parts = []
    for column, values in columns.items():
        lists = column in ("dx", "dy", "pen")
        if values.null_count or (lists and values.values.null_count):
            raise JobError(f"{name}: {column}: a value is missing")
        if lists:
            if not np.array_equal(values.offsets.to_numpy(), offsets):
                raise JobError(f"{name}: dx and {column} have other lengths")
            parts.append(values.values.to_numpy()[offsets[0] : offsets[-1]])
    if not np.array_equal(columns["length"].to_numpy(), np.diff(offsets)):
        raise JobError(f"{name}: length is not how many points there are")
    points = np.column_stack(parts).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1) | (points[:, 2] > 1))
    if wrong.size:
        raise JobError(f"{name}: point {wrong[0]} is not finite, or its pen neither 0 nor 1")
    index = columns["index"].to_numpy()
    return Piece(index, StrokeSet(points, offsets - offsets[0], ("",) * len(index)))


@contextmanager
def npz_writer(sink: IO[bytes], about: About) -> Iterator[Write]:
    """All pieces at the end, as one."""
    pieces: list[Piece] = []
    yield pieces.append
    whole = Piece.joined(pieces)
    whole.strokes.write(sink, index=whole.indices)


def from_npz(data: bytes, name: str) -> Piece:
    """The piece that a .npz file holds.

    Raises:
        JobError: it is none of this package's, is damaged, or has no indices.
    """
    try:
        strokes = dataset.read(io.BytesIO(data), name)
        index = dataset.read_arrays(io.BytesIO(data), name, ("index",))["index"]
    except dataset.StrokeFileError as error:
        raise JobError(str(error)) from error
    if index.shape != (len(strokes),) or index.dtype.kind not in "iu":
        expected = f"shape ({len(strokes)},) of integers"
        raise JobError(f"{name}: index: expected {expected}, got {index.shape} of {index.dtype}")
    return Piece(index.astype(np.int64), strokes)


@contextmanager
def svg_writer(sink: IO[bytes], about: About) -> Iterator[Write]:
    """A drawing a sequence."""
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:

        def write(piece: Piece) -> None:
            for index, strokes in zip(piece.indices.tolist(), piece.strokes, strict=True):
                put(archive, f"{index:09d}.svg", render.svg([strokes]))

        yield write


def put(archive: zipfile.ZipFile, name: str, content: str | bytes) -> None:
    """A file into a zip, without the time of day."""
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(entry, content)


FORMATS = {
    "parquet": Format(".parquet", parquet_writer, from_parquet),
    "npz": Format(".npz", npz_writer, from_npz),
    "svg": Format(".zip", svg_writer, None),
}
