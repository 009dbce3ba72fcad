"""How well a model predicts held-out strokes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import ops
from .batches import EVALUATION_SEED, Batches
from .dataset import StrokeSet
from .distributed import ALONE, World
from .mixture import StrokeMixture
from .module import FusedLSTMMDN
from .ops import reference


@dataclass(frozen=True)
class Evaluation:
    """Likelihood in nats (lower is better, densities make it negative) and squared error, in the model's units.

    Attributes:
        nats_per_row: per row; a categorical end row counts as a row, without offsets.
        nats_per_sequence: per sequence.
        pen_nats_per_row: the pen state's share of nats_per_row.
        sse: squared error of the mixture's mean, summed over x and y, per point (Graves's SSE).
        rows: rows counted.
        sequences: sequences counted.
    """

    nats_per_row: float
    nats_per_sequence: float
    pen_nats_per_row: float
    sse: float
    rows: int
    sequences: int


@torch.no_grad()
def evaluate(
    model: FusedLSTMMDN,
    data: StrokeSet,
    batch_size: int = 64,
    world: World = ALONE,
) -> Evaluation:
    """Teacher-forced evaluation of every sequence, dequantised by fixed noise; several processes share the batches.

    Raises:
        ValueError: no sequences, or none with points.
    """
    if not len(data):
        raise ValueError("nothing to evaluate: the set holds no sequences")
    training = model.training
    model.eval()
    device = model.head.weight.device
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for rows, lengths in Batches(data, model.pen, model.scale, batch_size, EVALUATION_SEED).sorted(world):
        rows, lengths = rows.to(device), lengths.to(device)
        inputs = torch.cat([torch.zeros_like(rows[:1]), rows[:-1]])
        raw, _ = model.raw_output(inputs, None, lengths)
        nll = ops.mdn_nll(raw, rows, lengths, num_mixtures=model.num_mixtures, pen=model.pen, means=model.means)

        mixture = StrokeMixture(raw, model.num_mixtures, model.pen, model.means)
        logits, state = mixture.parameters.pen, rows[..., 2:]
        is_point = alive = reference.alive(len(rows), lengths)[..., 0]
        if model.pen == "bernoulli":
            pen = torch.nn.functional.binary_cross_entropy_with_logits(logits, state, reduction="none")[..., 0]
        else:
            pen = -(state * logits.log_softmax(-1)).sum(-1)
            is_point = alive & (rows[..., reference.END] == 0)
        squared = (mixture.mean - rows)[..., :2].square().sum(-1)
        summed = [v.sum(dtype=torch.float64) for v in (nll, pen[alive], squared[is_point], lengths, is_point)]
        sums += torch.stack(summed)
    model.train(training)
    nats, pen_nats, error, rows_seen, points_seen = world.gather(sums).sum(0).tolist()
    if not rows_seen:
        raise ValueError(f"nothing to evaluate: the {len(data)} sequences have no points")
    return Evaluation(
        nats / rows_seen,
        nats / len(data),
        pen_nats / rows_seen,
        error / max(points_seen, 1),
        int(rows_seen),
        len(data),
    )
