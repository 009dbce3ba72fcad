"""Strokes out of a job: its directory, one of its shards, or what `merge` made of it; and as a PyTorch dataset."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..strokes import Strokes
from .errors import JobError
from .formats import Piece, from_npz, parquet_pieces
from .job import STROKES, Job, Record


def read(path: str | Path, partial: bool = False) -> Iterator[Strokes]:
    """The sequences of a job in the order of their indices, in raw units; one shard at a time is in memory.

    The SHA-256 of a job's shard is checked before a sequence of it is given; a file by itself has the checksums of its
    format alone.

    Args:
        path: a job's directory, or one .parquet or .npz file.
        partial: give what is there of a job that is not complete, instead of refusing it.

    Raises:
        JobError: a shard is missing or damaged, or the path is none of these; the message names the file.
    """
    for piece in pieces(path, partial):
        yield from piece().strokes


def pieces(path: str | Path, partial: bool = False) -> list[Callable[[], Piece]]:
    """As `read`, in pieces: functions that each read a shard, or a part of a file, and check it.

    Raises:
        JobError: as `read`, as far as it can be seen without reading all.
    """
    path = Path(path)
    if path.is_dir():
        return _of_job(Job(path), partial)
    if not path.is_file():
        raise JobError(f"{path}: is neither a job's directory nor a file")
    if path.suffix == ".parquet":
        return parquet_pieces(path, str(path))
    if path.suffix == ".npz":
        return [functools.partial(_of_npz, path)]
    raise JobError(f"{path}: expected a job's directory, a .parquet or a .npz file")


def _of_job(job: Job, only_written: bool) -> list[Callable[[], Piece]]:
    if job.format.decode is None:
        raise JobError(f"{job.directory}: a job of drawings (output {job.spec.output!r}) has no strokes to read")
    return [functools.partial(decoded, job, record) for record in job.records(only_written)]


def _of_npz(path: Path) -> Piece:
    return from_npz(path.read_bytes(), str(path))


def decoded(job: Job, record: Record) -> Piece:
    """A shard's sequences, checked; raises JobError."""
    assert job.format.decode is not None
    return job.format.decode(bytes_of(job, record), str(job.directory / STROKES / record.file))


def bytes_of(job: Job, record: Record) -> bytes:
    """A shard's file, checked against its record; raises JobError."""
    path = job.directory / STROKES / record.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != record.digest:
        raise JobError(f"{path}: damaged: SHA-256 {found}, expected {record.digest}")
    return data


class StrokeDataset(IterableDataset[Any]):
    """A job's sequences for a `torch.utils.data.DataLoader`.

    Shards are divided over the loader's workers, and over the ranks of torch.distributed if that is initialised when
    this is made, so that every sequence is given once. With as many shards as workers and ranks, or more, all have
    something to do; but not equally many batches, which DistributedDataParallel has to be told of (its `join`).

    Args:
        path: as `read`.
        transform: what is given of each sequence; by default its (N, 3) rows (dx, dy, eos), a float32 tensor.
        partial: as `read`.

    Raises:
        JobError: as `read`.
    """

    def __init__(
        self, path: str | Path, transform: Callable[[Strokes], Any] | None = None, partial: bool = False
    ) -> None:
        self.transform = transform or _points
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.pieces = pieces(path, partial)[rank::ranks]

    def __iter__(self) -> Iterator[Any]:
        """This worker's and rank's sequences."""
        worker = get_worker_info()
        workers, mine = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for piece in self.pieces[mine::workers]:
            for strokes in piece().strokes:
                yield self.transform(strokes)


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch as the module takes it: rows (T, B, ·), zero after each sequence's end, and lengths (B).

    For `DataLoader(collate_fn=pad)`.
    """
    lengths = torch.tensor([len(r) for r in rows])
    return torch.nn.utils.rnn.pad_sequence(list(rows)), lengths


def _points(strokes: Strokes) -> Tensor:
    return torch.from_numpy(strokes.points.copy())
