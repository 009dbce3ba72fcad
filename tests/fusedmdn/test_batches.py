"""Batches: whole, bucketed, repeatable, dequantised."""

import numpy as np
import torch

from fusedmdn.batches import Batches
from fusedmdn.dataset import StrokeSet

from .synthetic import zigzags


def test_batches_are_whole_bucketed_and_repeatable():
    data = zigzags()
    batches = Batches(data, "categorical", data.scale(), 16, seed=3, augment=0.1)
    for epoch in (0, 1):
        order = batches.order(epoch)
        assert sorted(i for batch in order for i in batch) == list(range(len(data)))
        assert len(order) == len(batches)
        spread = [np.ptp(data.lengths[batch]) for batch in order]
        assert max(spread) <= 7  # against 11 of the whole set
    assert batches.order(0) != batches.order(1)
    a, b = batches.collate([3, 5, 9], 0), batches.collate([9, 3], 0)
    assert torch.equal(a.rows[: int(a.lengths[0]), 0], b.rows[: int(b.lengths[1]), 1])  # whatever batch it is in
    assert a.lengths.tolist() == [len(data[i]) + 1 for i in (3, 5, 9)]
    assert not torch.equal(a.rows, batches.collate([3, 5, 9], 1).rows)
    for k, i in enumerate((3, 5, 9)):
        n = len(data[i])
        assert a.rows[n, k].tolist() == [0, 0, 0, 0, 1]
        assert not a.rows[n + 1 :, k].any()
        assert torch.equal(a.rows[:n, k, 3], torch.from_numpy(data[i].points[:, 2]))


def test_noise_is_half_a_quantum_either_way():
    data = zigzags()
    scale = data.scale()
    batches = Batches(data, "bernoulli", scale, 16, seed=3)
    noise = []
    for i in range(len(data)):
        rows = batches.collate([i], 0).rows[:, 0, :2].numpy() * np.float32(scale.std)
        noise.append(rows - data[i].points[:, :2])
    noise = np.concatenate(noise)
    assert np.abs(noise).max() < 0.2501
    assert np.abs(noise).max() > 0.24
    assert abs(noise.mean()) < 0.01
    continuous = StrokeSet(data.points, data.offsets, data.labels, quantum=0.0)
    rows = Batches(continuous, "bernoulli", scale, 16, seed=3).collate([0], 0).rows[:, 0]
    assert np.array_equal(rows.numpy(), data[0].rows("bernoulli", scale))
