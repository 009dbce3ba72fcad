"""Batches for training and evaluation: bucketed by length, padded, dequantised, a function of their seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import ops, preparing
from .dataset import StrokeSet
from .distributed import ALONE, World
from .ops.checks import ROW
from .strokes import Scale

EVALUATION_SEED = 20_130_804  # the day Graves's paper appeared; fixed, so that figures compare for ever
BUCKET_NOISE = 6.0  # points by which lengths are perturbed before sorting, so that batches differ between epochs


class Batch(NamedTuple):
    """rows (T, B, 3 or 5) in the model's units, zero after each sequence's end; lengths (B), rows of each."""

    rows: Tensor
    lengths: Tensor


class Batches:
    """Batches of a `StrokeSet` in a model's units.

    Sequence i of an epoch always gets the same noise, whatever batch it is in: dequantisation by half a quantum either
    way (data on a grid has no density), a random linear map of the page with `augment` as the standard deviation
    of its stretch, 0.6 times that of its shear, and points dropped with probability `drop` (see `preparing.drop`).
    """

    def __init__(
        self,
        data: StrokeSet,
        pen: str,
        scale: Scale,
        batch_size: int,
        seed: int,
        augment: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        self.data, self.pen, self.scale, self.batch_size = data, pen, scale, batch_size
        self.seed, self.augment, self.drop = seed, augment, drop

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.data) // self.batch_size)

    def order(self, epoch: int) -> list[list[int]]:
        """The sequences of each batch of an epoch: similar lengths together, batches shuffled."""
        random = np.random.default_rng([self.seed, epoch])
        keys = self.data.lengths + random.uniform(0, BUCKET_NOISE, len(self.data))
        batches = self._cut(np.argsort(keys, kind="stable"))
        random.shuffle(batches)
        return batches

    def sorted(self, world: World = ALONE) -> Iterator[Batch]:
        """All sequences once, by length, with the noise of epoch 0; each process has some whole batches."""
        for batch in world.share(self._cut(np.argsort(self.data.lengths, kind="stable"))):
            yield self.collate(batch, 0)

    def count_rows(self, batch: Sequence[int], epoch: int) -> int:
        """Rows of these sequences in an epoch."""
        ends = len(batch) * (self.pen == "categorical")
        if self.drop:
            return ends + sum(int(self._kept(i, self._noise(i, epoch)).sum()) for i in batch)
        return ends + int(self.data.lengths[batch].sum())

    def collate(self, batch: Sequence[int], epoch: int) -> Batch:
        """The batch of these sequences, with an epoch's noise; of none, one sequence of no rows."""
        if not batch:
            return Batch(torch.zeros(1, 1, ROW[self.pen]), torch.zeros(1, dtype=torch.int64))
        rows = [self._rows(i, epoch) for i in batch]
        lengths = torch.tensor([len(r) for r in rows])
        padded = np.zeros((max(map(len, rows)), len(rows), rows[0].shape[1]), np.float32)
        for b, r in enumerate(rows):
            padded[: len(r), b] = r
        return Batch(torch.from_numpy(padded), lengths)

    def _rows(self, i: int, epoch: int) -> np.ndarray:
        strokes, noise = self.data[i], self._noise(i, epoch)
        n = len(strokes)
        rows = strokes.rows(self.pen, self.scale)
        shift, std = self.scale.arrays()
        rows[:n, :2] += noise[:n, :2] * (np.float32(self.data.quantum) / std)
        if not self.augment and not self.drop:
            return rows
        rows[:n, :2] += shift / std  # now zero is no movement, as it must be where offsets are multiplied and added
        if self.augment:
            rows[:n, :2] @= preparing.linear_map(self.augment, preparing.DISTORTION, noise[n].reshape(2, 2))
        if self.drop:
            kept = self._kept(i, noise)
            offsets = preparing.merged(rows[:n, :2], kept)
            rows = rows[np.r_[np.flatnonzero(kept), n : len(rows)]]  # with a categorical end row
            n = len(offsets)
            rows[:n, :2] = offsets
        rows[:n, :2] -= shift / std
        return rows

    def _noise(self, i: int, epoch: int) -> np.ndarray:
        """(points + 1, 4), uniform in ±1/2; the last row is the page's."""
        words = ops.uniforms(self.seed, (epoch << 32) + i, 1, int(self.data.lengths[i]) + 1)
        return words[0].numpy() - np.float32(0.5)

    def _kept(self, i: int, noise: np.ndarray) -> np.ndarray:
        """Which points of a sequence are not dropped, by what the noise of its offsets leaves unused."""
        eos = self.data.points[self.data.offsets[i] : self.data.offsets[i + 1], 2]
        return ~(preparing.droppable(eos) & (noise[:-1, 2] + np.float32(0.5) < self.drop))

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        return [order[k : k + self.batch_size].tolist() for k in range(0, len(order), self.batch_size)]
