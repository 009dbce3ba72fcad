"""What a network predicted at every point of given sequences, each point from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..mixture import StrokeMixture
from ..module import FusedLSTMMDN
from ..ops.checks import ROW
from ..strokes import Strokes

BATCH_ROWS = 1 << 14  # rows at a time, padding included; a sequence that is longer goes alone, in pieces


@dataclass(frozen=True)
class Prediction:
    """The mixtures over the offset of each of N points, in raw units, and over what the pen does there.

    Attributes:
        weight: (N, M).
        mean: (N, M, 2).
        sigma: (N, M, 2).
        r: (N, M), atanh of the correlation.
        eos: (N), the probability that the pen is lifted after the point, or that the sequence ends.
    """

    weight: NDArray[np.float32]
    mean: NDArray[np.float32]
    sigma: NDArray[np.float32]
    r: NDArray[np.float32]
    eos: NDArray[np.float32]


def predict(model: FusedLSTMMDN, sequences: Sequence[Strokes]) -> list[Prediction]:
    """Teacher-forced predictions of all sequences, by batches of similar lengths.

    Raises:
        ValueError: a model that does not read what it predicts, strokes that do not fit its units, or a prediction
            that is not finite.
    """
    if model.input_size != ROW[model.pen]:
        raise ValueError(
            f"the model reads {model.input_size} features, but predicts rows of {ROW[model.pen]}: "
            "strokes alone are not its input"
        )
    with np.errstate(over="ignore"):
        rows = [s.rows(model.pen, model.scale)[: len(s)] for s in sequences]  # an end row is nowhere on the page
    for i, sequence in enumerate(rows):
        if not np.isfinite(sequence).all():
            raise ValueError(f"sequence {i}: its offsets are too large for the model's units ({model.scale})")
    predictions: dict[int, Prediction] = {}
    training = model.training
    model.eval()
    try:
        for batch in _batches([len(r) for r in rows]):
            for i, prediction in zip(batch, _predict(model, [rows[i] for i in batch]), strict=True):
                if not all(np.isfinite(v).all() for v in vars(prediction).values()):
                    raise ValueError(f"sequence {i}: what the model predicts is not finite")
                predictions[i] = prediction
    finally:
        model.train(training)
    return [predictions[i] for i in range(len(rows))]


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > BATCH_ROWS:
            yield batch
            batch = []
        batch.append(i)
    yield batch


@torch.no_grad()
def _predict(model: FusedLSTMMDN, rows: list[NDArray[np.float32]]) -> list[Prediction]:
    device = model.head.weight.device
    lengths = torch.tensor([len(r) for r in rows])
    longest = max(1, int(lengths.max()))
    inputs = np.zeros((longest, len(rows), ROW[model.pen]), np.float32)
    for b, r in enumerate(rows):
        inputs[1 : len(r), b] = r[:-1]
    state = None
    pieces = []
    piece = max(1, BATCH_ROWS // len(rows))
    for start in range(0, longest, piece):
        x = torch.from_numpy(inputs[start : start + piece]).to(device)
        left = (lengths - start).clamp(0, len(x)).to(device)
        raw, state = model.raw_output(x, state, left)
        pieces.append(_numbers(model, raw))
    values = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
    return [Prediction(*(v[:n, b] for v in values)) for b, n in enumerate(lengths.tolist())]


def _numbers(model: FusedLSTMMDN, raw: torch.Tensor) -> tuple[NDArray[np.float32], ...]:
    """What a Prediction holds, of raw head output (T, B, P + 6M)."""
    mixture = StrokeMixture(raw, model.num_mixtures, model.pen, model.means)
    q, pen = mixture.parameters, mixture.pen_probs
    eos = pen[..., 0] if model.pen == "bernoulli" else pen[..., 1:].sum(-1)
    shift, std = model.scale.arrays()

    def numbers(value: torch.Tensor) -> NDArray[np.float32]:
        return value.float().cpu().numpy()

    with np.errstate(over="ignore"):
        mean = numbers(torch.stack([q.mu_x, q.mu_y], -1)) * std + shift
        sigma = numbers(torch.stack([q.log_sigma_x, q.log_sigma_y], -1).exp()) * std
    return numbers(q.log_weight.exp()), mean, sigma, numbers(q.r), numbers(eos)
