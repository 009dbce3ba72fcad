"""The mixture loss as PyTorch code writes it, per row in nats: raw (..., 1 + 6M), target (..., 3).

Whatever dtype raw has, the loss is of its values in float32, as mixed precision wants it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contracts import Loss
from .compiling import compiled

EPS = 1e-20  # what the naive form adds inside its logarithms


def parts(raw: Tensor, M: int) -> tuple[Tensor, ...]:
    """Pen, component logits, means, log deviations and correlations, in float32."""
    return torch.split(raw.float(), [1, M, M, M, M, M, M], -1)


def careful(raw: Tensor, target: Tensor, M: int) -> Tensor:
    """In the log domain throughout, as good implementations have it."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = parts(raw, M)
    x, y, end = target.split(1, -1)
    rho = torch.tanh(r)
    u_x, u_y = (x - mu_x) * torch.exp(-s_x), (y - mu_y) * torch.exp(-s_y)
    q = 1 - rho * rho
    z = (u_x * u_x + u_y * u_y - 2 * rho * u_x * u_y) / q
    log_density = -math.log(2 * math.pi) - s_x - s_y - 0.5 * torch.log(q) - 0.5 * z
    offset = torch.logsumexp(torch.log_softmax(pi, -1) + log_density, -1)
    return F.binary_cross_entropy_with_logits(eos, end, reduction="none")[..., 0] - offset


def naive(raw: Tensor, target: Tensor, M: int) -> Tensor:
    """Density first and logarithm last, as most repositories have it."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = parts(raw, M)
    x, y, end = target.split(1, -1)
    pi, s_x, s_y, rho, p = torch.softmax(pi, -1), torch.exp(s_x), torch.exp(s_y), torch.tanh(r), torch.sigmoid(eos)
    z = ((x - mu_x) / s_x) ** 2 + ((y - mu_y) / s_y) ** 2 - 2 * rho * (x - mu_x) * (y - mu_y) / (s_x * s_y)
    density = torch.exp(-z / (2 * (1 - rho**2))) / (2 * math.pi * s_x * s_y * torch.sqrt(1 - rho**2))
    pen = end * p + (1 - end) * (1 - p)
    return -torch.log((pi * density).sum(-1) + EPS) - torch.log(pen + EPS)[..., 0]


def eager_mean(M: int) -> Loss:
    """Mean of `careful`."""
    return lambda raw, target: careful(raw, target, M).mean()


def naive_mean(M: int) -> Loss:
    """Mean of `naive`."""
    return lambda raw, target: naive(raw, target, M).mean()


def compiled_mean(M: int) -> Loss:
    """Mean of `careful`, by torch.compile."""
    return compiled(eager_mean(M), fullgraph=True)


def mean_over(weights: Tensor | None, M: int) -> Loss:
    """Mean of `careful` over the rows that count: weights (T, B) are one over their number, None where all do."""
    if weights is None:
        return eager_mean(M)
    return lambda raw, target: (careful(raw, target, M) * weights).sum()
