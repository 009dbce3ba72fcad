"""Small made-up strokes that several tests train on."""

import numpy as np

from fusedmdn import Strokes
from fusedmdn.dataset import StrokeSet


def zigzags(n=120):
    """Strokes that an LSTM predicts better than chance: alternating slopes on a grid of halves."""
    random = np.random.default_rng(0)
    sequences = []
    for i in range(n):
        length = int(random.integers(4, 16))
        k = np.arange(length)
        points = np.column_stack([np.full(length, 4.0), np.where(k % 2, 6.0, -6.0), k == length - 1])
        points[:, :2] += random.integers(-1, 2, (length, 2)) / 2
        sequences.append(Strokes(points, str(i)))
    return StrokeSet.of(sequences, quantum=0.5)
