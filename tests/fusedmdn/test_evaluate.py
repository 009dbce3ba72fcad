"""Evaluation against StrokeMixture, one sequence at a time."""

import pytest
import torch

from fusedmdn import FusedLSTMMDN
from fusedmdn.batches import Batches
from fusedmdn.dataset import StrokeSet
from fusedmdn.evaluate import evaluate

from .synthetic import zigzags


def test_evaluation_is_the_mean_negative_log_likelihood():
    """By StrokeMixture, sequence by sequence, with the same fixed noise."""
    data = zigzags(30)
    for pen, I in (("bernoulli", 3), ("categorical", 5)):
        model = FusedLSTMMDN(I, 8, 1, 2, pen=pen, batch_first=True)
        model.scale = data.scale()
        result = evaluate(model, data, batch_size=7)
        batches = Batches(data, pen, model.scale, 1, 20_130_804)
        nats = squared = pens = rows_seen = 0.0
        for i in range(len(data)):
            rows = batches.collate([i], 0).rows[:, 0]
            mixture, _ = model(torch.cat([torch.zeros(1, I), rows[:-1]]))
            nats -= mixture.log_prob(rows).sum().item()
            n = len(data[i])
            squared += (mixture.mean[:n, :2] - rows[:n, :2]).square().sum().item()
            chance = mixture.pen_probs
            state = rows[:, 2:]
            pens -= torch.where(state > 0, chance, 1 - chance if pen == "bernoulli" else 1).log().sum().item()
            rows_seen += len(rows)
        assert result.rows == rows_seen
        assert result.sequences == 30
        assert result.nats_per_row == pytest.approx(nats / rows_seen, rel=1e-5)
        assert result.nats_per_sequence == pytest.approx(nats / 30, rel=1e-5)
        assert result.pen_nats_per_row == pytest.approx(pens / rows_seen, rel=1e-4)
        assert result.sse == pytest.approx(squared / len(data.points), rel=1e-5)
    with pytest.raises(ValueError, match="no sequences"):
        evaluate(model, StrokeSet.of([]))
