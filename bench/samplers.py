"""How a sampler's numbers are checked before it is timed, and our own."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor

from fusedmdn import FusedLSTMMDN, StrokeBatch, ops

from .cell import Cannot
from .contracts import Sampler
from .precision import elements

SEED = 0
# of `largest` and `our_error`, whose reference has the weights unrounded; rounded weights and states deviate more
TOLERANCES = {"float32": 5e-5, "tf32": 5e-3, "bf16": 2e-2, "fp16": 5e-3}


def exact_raw(model: FusedLSTMMDN, x: Tensor) -> Tensor:
    """Raw outputs of the float64 reference over given rows (T, B, 3)."""
    return exact(model, x)[0]


def exact(model: FusedLSTMMDN, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same, and the last state."""
    with ops.backend("reference"), torch.no_grad():
        mixture, state = copy.deepcopy(model).double()(x.double())
    return mixture.raw, state


def check_draws(sampler: Sampler, model: FusedLSTMMDN, count: int) -> None:
    """Raise ValueError where the moments of `count` draws from one mixture lie six standard errors off the mixture's.

    The mixture is a trained network's in kind: components apart, correlated, of unequal weight.
    """
    M = model.num_mixtures
    raw = torch.randn(1 + 6 * M, generator=torch.Generator().manual_seed(3))
    given = raw.to(model.head.weight.device).expand(count, -1).contiguous()
    rows = sampler.draw(given).cpu().double()
    q = ops.reference.components(raw.double(), "bernoulli", M, "linear")
    weight, rho = q.log_weight.exp(), torch.tanh(q.r)
    s_x, s_y = q.log_sigma_x.exp(), q.log_sigma_y.exp()
    x, y, eos = rows.unbind(-1)
    moments = {
        "dx": (x, (weight * q.mu_x).sum()),
        "dy": (y, (weight * q.mu_y).sum()),
        "dx^2": (x * x, (weight * (q.mu_x**2 + s_x**2)).sum()),
        "dy^2": (y * y, (weight * (q.mu_y**2 + s_y**2)).sum()),
        "dx dy": (x * y, (weight * (q.mu_x * q.mu_y + rho * s_x * s_y)).sum()),
        "eos": (eos, torch.sigmoid(q.pen).squeeze()),
    }
    for name, (drawn, expected) in moments.items():
        mean, standard_error = drawn.mean(), drawn.std() / count**0.5
        if not (mean - expected).abs() <= 6 * standard_error:
            raise ValueError(
                f"wrong draws: mean of {name} is {mean:.4f} ± {standard_error:.4f}, the mixture's {expected:.4f}"
            )


def our_error(model: FusedLSTMMDN, dtype: str, batch: int, steps: int, plan: str | None = None) -> float:
    """The largest deviation of our sampler from the float64 reference run over the rows that it drew.

    Compared are its last state, and its rows with those that the reference draws by the same random stream. A rounded
    weight may carry a uniform over the edge between two components: the largest deviations, one and one in fifty, are
    not looked at.
    """
    drawn = run_ours(model, dtype, batch, steps, plan)
    rows = drawn.points.transpose(0, 1).float()
    raw, (h, c) = exact(model, torch.cat([torch.zeros_like(rows[:1]), rows[:-1]]))
    q = ops.reference.components(raw, "bernoulli", model.num_mixtures, model.means)
    zero, one = rows.new_zeros(steps, batch), rows.new_ones(steps, batch)
    uniforms = ops.uniforms(SEED, 0, batch, steps).transpose(0, 1).to(rows.device)
    expected = ops.reference.draw(q, uniforms, zero, one, "bernoulli")
    off = (rows - expected).abs().amax(-1).flatten().sort().values
    row_error = off[-2 - len(off) // 50].item()
    return max(row_error, largest(drawn.state.h, h), largest(drawn.state.c, c))


def run_ours(model: FusedLSTMMDN, dtype: str, batch: int, steps: int, plan: str | None = None) -> StrokeBatch:
    """Sample with our own operator, its weights in a precision; plan: what `ops.plan` takes.

    Raises:
        Cannot: TF32 or fp16 on a CPU.
    """
    if dtype in ("tf32", "fp16") and model.head.weight.device.type == "cpu":
        raise Cannot("our C++ kernels compute in float32 and bfloat16")
    with contextlib.nullcontext() if plan is None else ops.plan(plan):
        return model.generate(batch, steps, seed=SEED, dtype=elements(dtype))


def largest(value: Tensor, exact: Tensor) -> float:
    """The largest deviation; infinite where it is no number."""
    if value.shape != exact.shape:
        raise ValueError(f"expected shape {tuple(exact.shape)}, got {tuple(value.shape)}")
    error = (value.double() - exact).abs().max().item()
    return error if error == error else float("inf")
