"""Batches: whole, bucketed, repeatable, dequantised."""

import fusedmdn.ops as ops
import numpy as np
import pytest
import torch

from fusedmdn import preparing
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


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_points_are_dropped_by_seed_epoch_and_index(pen):
    data = zigzags()
    whole = Batches(data, pen, data.scale(), 16, seed=3)
    batches = Batches(data, pen, data.scale(), 16, seed=3, drop=0.4)
    a, b = batches.collate([3, 5, 9], 0), batches.collate([9, 3], 0)
    assert torch.equal(a.rows[: int(a.lengths[0]), 0], b.rows[: int(b.lengths[1]), 1])
    assert a.lengths.tolist() != whole.collate([3, 5, 9], 0).lengths.tolist()
    assert not torch.equal(a.lengths, batches.collate([3, 5, 9], 1).lengths)
    dropped, possible = [], 0
    for i in range(len(data)):
        n, eos = len(data[i]), data[i].points[:, 2]
        before, after = (x.collate([i], 2).rows[:, 0].numpy() for x in (whole, batches))
        path, left = (np.cumsum(rows[:, :2], axis=0, dtype=np.float64) for rows in (before, after))
        near = np.abs(left[:, None] - path).sum(-1) < 1e-5
        assert near.any(1).all()  # every point that is left is where it was
        places = [int(np.flatnonzero(row)[0]) for row in near[: len(after) - (pen == "categorical")]]
        assert places == sorted(set(places))
        gone = sorted(set(range(n)) - set(places))
        assert preparing.droppable(eos)[gone].all()
        assert np.array_equal(after[: len(places), 2:], before[places, 2:])
        if pen == "categorical":
            assert after[-1].tolist() == [0, 0, 0, 0, 1]
        dropped += (before[gone, 0] * np.float32(whole.scale.std[0]) - data[i].points[gone, 0]).tolist()
        possible += int(preparing.droppable(eos).sum())
    assert 0.34 < len(dropped) / possible < 0.46
    assert abs(np.mean(dropped)) < 0.03  # whatever noise its offset had, of ±0.25


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
@pytest.mark.parametrize("noise", [{"augment": 0.2}, {"drop": 0.5}, {"augment": 0.2, "drop": 0.5}])
def test_noise_is_of_the_page_whatever_the_normalisation(pen, noise):
    """Stretched and dropped are movements: by "mean-std" rows say the same in other units."""
    data = zigzags()
    rows, points, end = {}, {}, int(pen == "categorical")
    for normalize in ("std", "mean-std"):
        scale = data.scale(normalize)
        shift, std = scale.arrays()
        rows[normalize], lengths = Batches(data, pen, scale, 16, seed=3, **noise).collate([3, 5, 9], 0)
        points[normalize] = rows[normalize].numpy()[..., :2] * std + shift
        for b, n in enumerate(lengths.tolist()):
            points[normalize][n - end :, b] = 0
            assert not rows[normalize][n:, b].any()
            if end:
                assert rows[normalize][n - 1, b].tolist() == [0, 0, 0, 0, 1]
    assert not torch.allclose(rows["std"], rows["mean-std"], atol=0.1)
    assert np.allclose(points["std"], points["mean-std"], atol=1e-4)


def test_the_noise_of_a_seed_never_changes():
    """What runs were trained on so far, to the bit."""
    data = zigzags()
    scale, quantum = data.scale(), np.float32(0.5)
    for i in (3, 9):
        n = len(data[i])
        noise = ops.uniforms(3, (1 << 32) + i, 1, n + 1)[0].numpy() - np.float32(0.5)
        wanted = data[i].rows("bernoulli", scale)
        wanted[:, :2] += noise[:n, :2] * (quantum / np.array(scale.std, np.float32))
        plain = Batches(data, "bernoulli", scale, 16, seed=3).collate([i], 1).rows[:, 0]
        assert np.array_equal(plain.numpy(), wanted)
        spread = np.float32(0.07 * 12**0.5) * np.array([[1, 0.6], [0.6, 1]], np.float32)
        wanted[:, :2] @= np.eye(2, dtype=np.float32) + spread * noise[n].reshape(2, 2)
        augmented = Batches(data, "bernoulli", scale, 16, seed=3, augment=0.07).collate([i], 1).rows[:, 0]
        assert np.array_equal(augmented.numpy(), wanted)
