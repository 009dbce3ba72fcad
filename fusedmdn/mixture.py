"""`StrokeMixture`: the network's output as a distribution over the next pen row."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.distributions import Distribution, constraints

from .ops import checks, functional, reference, stream


class StrokeMixture(Distribution):
    """A mixture of bivariate normals over (dx, dy) and an independent pen state (Graves 2013, equations 15-25).

    Values are rows in the model's units, (..., 3) = (dx, dy, eos) for pen="bernoulli" and
    (..., 5) = (dx, dy, draw, lift, end) for pen="categorical", where an end row has no offsets: zero when drawn, not
    looked at by `log_prob`.

    Args:
        raw: (..., P + 6M), the head's output: pen logits, pi, mu_x, mu_y, log_sigma_x, log_sigma_y, rho.
        num_mixtures: M.
        pen: "bernoulli" (P = 1) or "categorical" (P = 3).
        means: "linear" or "sigmoid".
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the base class's annotation)
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, raw: Tensor, num_mixtures: int, pen: str = "bernoulli", means: str = "linear") -> None:
        checks.check_options(pen, means, num_mixtures)
        width = checks.PEN_LOGITS[pen] + 6 * num_mixtures
        if not raw.dim() or raw.shape[-1] != width:
            raise ValueError(f"raw: expected shape (..., {width}), got {tuple(raw.shape)}")
        self.raw, self.num_mixtures, self.pen, self.means = raw, num_mixtures, pen, means
        super().__init__(raw.shape[:-1], torch.Size([checks.ROW[pen]]), validate_args=False)

    def __repr__(self) -> str:
        """Short form, with shapes and options."""
        return f"StrokeMixture(batch_shape={tuple(self.batch_shape)}, num_mixtures={self.num_mixtures}, pen={self.pen})"

    @property
    def parameters(self) -> reference.Components:
        """Pen logits (..., P); log weights, means, log deviations and r = atanh(rho), (..., M) each; float32 or 64."""
        return reference.components(self.raw, self.pen, self.num_mixtures, self.means)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StrokeMixture:
        """The same distribution with a broadcast batch shape."""
        return StrokeMixture(self.raw.expand(*batch_shape, -1), self.num_mixtures, self.pen, self.means)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of rows (..., 3 or 5) in nats, (...); batch shapes are broadcast."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value: expected shape (..., {self.event_shape[0]}), got {tuple(value.shape)}")
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        raw = self.raw.expand(*shape, -1).reshape(-1, 1, self.raw.shape[-1])
        rows = value.expand(*shape, -1).reshape(-1, 1, value.shape[-1])
        nll = functional.mdn_nll(raw, rows, pen=self.pen, num_mixtures=self.num_mixtures, means=self.means)
        return -nll.reshape(shape)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Any = (),
        bias: float = 0.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Rows (*sample_shape, ..., 3 or 5), drawn with torch's generator.

        bias b sharpens (s - b, a (1 + b): Graves, equations 61-62), temperature tau softens (a / tau, sigma tau);
        neither touches the pen.
        """
        q, shape = self.parameters, self._extended_shape(torch.Size(sample_shape))[:-1]
        q = reference.Components(*[v.expand(*shape, -1) for v in q])
        words = torch.randint(0, 1 << 32, (*shape, 4), device=self.raw.device)
        b, tau = (torch.full(shape, v, dtype=q.pen.dtype, device=self.raw.device) for v in (bias, temperature))
        return reference.draw(q, stream.uniform(words), b, tau, self.pen)

    @property
    def pen_probs(self) -> Tensor:
        """P(eos) (..., 1), or P(draw, lift, end) (..., 3)."""
        logits = self.parameters.pen
        return torch.sigmoid(logits) if self.pen == "bernoulli" else torch.softmax(logits, -1)

    @property
    def mean(self) -> Tensor:
        """Expected row, (..., 3 or 5): of the mixture's offsets, given that there is a point, and of the pen state."""
        q = self.parameters
        weight = q.log_weight.exp()
        offsets = torch.stack([(weight * q.mu_x).sum(-1), (weight * q.mu_y).sum(-1)], -1)
        return torch.cat([offsets, self.pen_probs], -1)

    @property
    def variance(self) -> Tensor:
        """Variance of every column, (..., 3 or 5); the offsets' given that there is a point."""
        q, probs = self.parameters, self.pen_probs
        weight = q.log_weight.exp()
        columns = []
        for mu, log_sigma in ((q.mu_x, q.log_sigma_x), (q.mu_y, q.log_sigma_y)):
            centred = mu - (weight * mu).sum(-1, keepdim=True)
            columns.append((weight * ((2 * log_sigma).exp() + centred * centred)).sum(-1))
        return torch.cat([torch.stack(columns, -1), probs * (1 - probs)], -1)

    def density(self, grid: Tensor) -> Tensor:
        """Density of the offset at points (*G, 2), in 1 / unit^2: (*G, *batch_shape)."""
        if grid.shape[-1:] != (2,):
            raise ValueError(f"grid: expected shape (..., 2), got {tuple(grid.shape)}")
        q = self.parameters
        flat = grid.to(q.pen.dtype).reshape(-1, *([1] * len(self.batch_shape)), 2)
        log_density = q.log_weight + q.offset_log_density(flat[..., 0:1], flat[..., 1:2])
        return torch.logsumexp(log_density, -1).exp().reshape(*grid.shape[:-1], *self.batch_shape)


pytree.register_pytree_node(
    StrokeMixture,
    lambda m: ([m.raw], (m.num_mixtures, m.pen, m.means)),
    lambda children, options: _rebuild(next(iter(children)), options),
    serialized_type_name="fusedmdn.StrokeMixture",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
)


def _rebuild(raw: Any, options: tuple[int, str, str]) -> StrokeMixture:
    """A tree may hold anything in a leaf's place, so nothing is checked here."""
    mixture = object.__new__(StrokeMixture)
    mixture.raw, (mixture.num_mixtures, mixture.pen, mixture.means) = raw, options
    mixture._batch_shape = raw.shape[:-1] if isinstance(raw, Tensor) else torch.Size()
    mixture._event_shape = torch.Size([checks.ROW[options[1]]])
    mixture._validate_args = False
    return mixture
