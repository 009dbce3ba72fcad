"""One shard: sampled, encoded, written, recorded. It may be made any number of times, by anybody: the bytes are its."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import files, ops
from ..dataset import StrokeSet
from ..stroke_batch import StrokeBatch
from ..strokes import FloatArray
from .environment import check_environment
from .errors import ShardError
from .formats import Piece
from .job import Job, Record


class ShardWriter:
    """Makes a job's shards in this process.

    Args:
        job: whose.
        device: where to sample; by default a GPU for a job of the backend triton, else the CPU.

    Raises:
        EnvironmentRefused: this process would write other bits.
        JobError: the weights or the prefixes are missing or damaged.
    """

    def __init__(self, job: Job, device: Any = None) -> None:
        spec = job.spec
        if device is None:
            device = "cuda" if spec.environment["backend"] == "triton" else spec.environment.get("device", "cpu")
        self.job, self.device = job, torch.device(device)
        check_environment(spec.environment, self.device, spec.precision, spec.output)
        self.model = job.model(self.device)
        prime = job.prime()
        self.prefixes = [] if prime is None else [strokes.points for strokes in prime]
        self.prime = None if prime is None else _padded(prime, self.model)

    def write(self, shard: int, on_batch: Callable[[int, int], None] = lambda sequences, points: None) -> Record:
        """Make a shard, whatever is there already.

        Args:
            shard: its number.
            on_batch: told the sequences and points of each batch that is drawn; what it raises ends the work.

        Raises:
            ShardError: its strokes are not finite, or too many for a file.
            OSError: it cannot be written; what was there is intact.
        """
        job, sequences = self.job, self.job.spec.sequences_of(shard)
        parts = []
        for start in range(0, len(sequences), job.spec.batch_size):
            strokes = self.draw(sequences[start : start + job.spec.batch_size])
            parts.append(strokes)
            on_batch(len(strokes), len(strokes.points))
        strokes = StrokeSet.joined(parts)
        if len(strokes.points) >= 1 << 31:
            raise ShardError(
                f"shard {shard}: {len(strokes.points)} points, more than int32 counts; make shards smaller"
            )
        wrong = np.flatnonzero(~np.isfinite(strokes.points).all(axis=1))
        if wrong.size:
            k = int(np.searchsorted(strokes.offsets, wrong[0], "right")) - 1
            row = wrong[0] - strokes.offsets[k]
            raise ShardError(
                f"shard {shard}: sequence {sequences[k]} is not finite from point {row} on; do the weights diverge?"
            )
        about = {"job": job.digest, "shard": shard, "first": sequences.start}
        data = job.format.encode(Piece(np.arange(sequences.start, sequences.stop), strokes), about)
        path = job.file_of(shard)
        files.write(path, data)
        record = Record(
            shard, path.name, sequences.start, len(strokes), len(strokes.points), len(data),
            hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        job.write_record(record)
        return record

    def draw(self, sequences: range) -> StrokeSet:
        """These sequences at once, in raw units, each after its prefix."""
        spec = self.job.spec
        chosen = [i % len(self.prefixes) for i in sequences] if self.prefixes else []
        rows, rows_lengths = (None, None) if self.prime is None else (part[chosen] for part in self.prime)
        with ops.plan(spec.plan) if spec.plan else contextlib.nullcontext():
            batch = self.model.generate(
                len(sequences),
                spec.max_steps,
                seed=spec.seed,
                first_index=sequences.start,
                bias=spec.bias,
                temperature=spec.temperature,
                dtype=spec.dtype,
                to="cpu",
                prime=rows,
                prime_lengths=rows_lengths,
            )
        points, lengths = raw_points(batch), batch.lengths.numpy()
        if chosen:
            before = [self.prefixes[i] for i in chosen]
            drawn = np.split(points, np.cumsum(lengths)[:-1])
            points = np.concatenate([part for pair in zip(before, drawn, strict=True) for part in pair])
            lengths = lengths + [len(prefix) for prefix in before]
        return StrokeSet(points, np.concatenate([[0], np.cumsum(lengths)]), ("",) * len(lengths))


def raw_points(batch: StrokeBatch) -> FloatArray:
    """(N, 3) rows (dx, dy, eos) of all sequences, one after the other: `batch[i].points`, bit for bit."""
    rows = batch.points.numpy()
    alive = np.arange(rows.shape[1]) < batch.lengths.numpy()[:, None]
    pen = 2 if rows.shape[2] == 3 else 3  # stroke-5's is (draw, lift, end)
    shift, std = batch.scale.arrays()
    points = np.empty((int(alive.sum()), 3), np.float32)
    points[:, :2] = rows[..., :2][alive] * std + shift
    points[:, 2] = rows[..., pen][alive]
    return points


def _padded(prime: StrokeSet, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The prefixes as rows (m, T, ·) in the model's units, without end rows, and how many each has."""
    lengths = torch.from_numpy(prime.lengths)
    rows = torch.zeros(len(prime), int(lengths.max()), model.input_size)
    for k, strokes in enumerate(prime):
        rows[k, : len(strokes)] = torch.from_numpy(strokes.rows(model.pen, model.scale)[: len(strokes)])
    return rows.to(model.head.weight.device), lengths.to(model.head.weight.device)
