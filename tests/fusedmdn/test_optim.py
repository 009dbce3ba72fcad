"""Graves's optimiser is the paper's."""

import math

import pytest
import torch

from fusedmdn.optim import GravesRMSprop


def test_graves_rmsprop_is_the_papers():
    """Equations 38-45, one weight at a time, in plain Python."""
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = GravesRMSprop([w], lr=1e-2)
    expected, n, g, step = w.tolist(), [0.0] * 3, [0.0] * 3, [0.0] * 3
    for k in range(20):
        optimizer.zero_grad()
        ((w - 3) ** 4 * torch.tensor([1.0, 1e-3, 10.0], dtype=torch.float64) * (1 + k % 3)).sum().backward()
        for j, scale in enumerate((1.0, 1e-3, 10.0)):
            e = 4 * (expected[j] - 3) ** 3 * scale * (1 + k % 3)
            n[j] = 0.95 * n[j] + 0.05 * e * e
            g[j] = 0.95 * g[j] + 0.05 * e
            step[j] = 0.9 * step[j] - 1e-2 * e / math.sqrt(n[j] - g[j] ** 2 + 1e-4)
            expected[j] += step[j]
        optimizer.step()
        assert w.tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="eps must be > 0, got 0"):
        GravesRMSprop([w], eps=0)
