"""StrokeMixture against torch.distributions, SciPy and its own samples."""

import math

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from scipy import integrate

from fusedmdn import StrokeMixture

from ..python.test_mdn_nll import PENS, by_torch_distributions, raw_output, rows


@pytest.mark.parametrize("means", ["linear", "sigmoid"])
@pytest.mark.parametrize(("pen", "P", "width"), PENS)
def test_log_prob(pen, P, width, means):
    raw, value = raw_output(P, 3, 4, 5), rows(pen, 4, 5)
    mixture = StrokeMixture(raw, 3, pen, means)
    assert (mixture.batch_shape, mixture.event_shape) == ((4, 5), (width,))
    torch.testing.assert_close(mixture.log_prob(value), -by_torch_distributions(raw, value, pen, P, 3, means))
    wide = mixture.expand((6, 4, 5))
    assert wide.batch_shape == (6, 4, 5)
    assert torch.equal(wide.log_prob(value), mixture.log_prob(value).expand(6, 4, 5))
    one = rows(pen, 1)[0]
    torch.testing.assert_close(mixture.log_prob(one), mixture.log_prob(one.expand(4, 5, width)))
    assert mixture.log_prob(rows(pen, 7, 4, 5)).shape == (7, 4, 5)


@pytest.mark.parametrize(("pen", "P", "width"), PENS)
def test_moments_are_those_of_its_samples(pen, P, width):
    mixture = StrokeMixture(raw_output(P, 3, 4), 3, pen)
    n = 200_000
    samples = mixture.sample((n,))
    assert samples.shape == (n, 4, width)
    if pen == "categorical":  # the offsets' moments are given that there is a point
        assert (samples[..., 2:].sum(-1) == 1).all()
        point = samples[..., 4:] == 0
        assert not samples[..., :2][(~point).expand(-1, -1, 2)].any()
        count = point.sum(0)
        mean = (samples[..., :2] * point).sum(0) / count
        variance = ((samples[..., :2] - mean).square() * point).sum(0) / count
        mean = torch.cat([mean, samples[..., 2:].mean(0)], -1)
        variance = torch.cat([variance, samples[..., 2:].var(0)], -1)
    else:
        mean, variance = samples.mean(0), samples.var(0)
    error = 6 * (mixture.variance / n).sqrt() * 1.7  # the rarest pen state leaves a third of the points
    assert ((mean - mixture.mean).abs() < error).all()
    torch.testing.assert_close(variance, mixture.variance, rtol=0.05, atol=0.01)


def test_bias_and_temperature_of_samples():
    raw = raw_output(1, 1, 1)
    mixture = StrokeMixture(raw, 1)
    plain = mixture.variance[0, :2]
    biased, warm = mixture.sample((50_000,), bias=1.0), mixture.sample((50_000,), temperature=2.0)
    torch.testing.assert_close(biased.var(0)[0, :2] / plain, torch.full((2,), math.exp(-2)).double(), rtol=0.05, atol=0)
    torch.testing.assert_close(warm.var(0)[0, :2] / plain, torch.full((2,), 4.0).double(), rtol=0.05, atol=0)


def test_density_integrates_to_one_and_equals_log_prob():
    mixture = StrokeMixture(raw_output(1, 3, 2, 2) / 2, 3)
    axis = torch.linspace(-30, 30, 601, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    density = mixture.density(grid)
    assert density.shape == (601, 601, 2, 2)
    total = integrate.simpson(integrate.simpson(density.numpy(), x=axis.numpy(), axis=1), x=axis.numpy(), axis=0)
    np.testing.assert_allclose(total, 1, atol=2e-3)
    row = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    pen = mixture.pen_probs[..., 0].log()
    torch.testing.assert_close(mixture.density(row[:2]).log() + pen, mixture.log_prob(row))


def test_gradients_reach_the_raw_output():
    raw = raw_output(3, 2, 4).requires_grad_()
    mixture = StrokeMixture(raw, 2, "categorical")
    (gradient,) = torch.autograd.grad(mixture.log_prob(rows("categorical", 4)).sum(), raw)
    assert gradient.any()


def test_is_a_pytree():
    mixture = StrokeMixture(raw_output(3, 2, 4), 2, "categorical", "sigmoid")
    leaves, spec = pytree.tree_flatten(mixture)
    again = pytree.tree_unflatten(leaves, spec)
    assert torch.equal(again.raw, mixture.raw)
    assert repr(again) == repr(mixture)
    doubled = pytree.tree_map(lambda v: v * 2, mixture)
    assert torch.equal(doubled.raw, mixture.raw * 2)
    torch.testing.assert_close(again.mean, mixture.mean)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"raw: expected shape \(..., 13\), got \(4, 12\)"):
        StrokeMixture(torch.zeros(4, 12), 2)
    with pytest.raises(ValueError, match=r"value: expected shape \(..., 3\), got \(4, 5\)"):
        StrokeMixture(torch.zeros(4, 13), 2).log_prob(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"grid: expected shape \(..., 2\), got \(4, 3\)"):
        StrokeMixture(torch.zeros(4, 13), 2).density(torch.zeros(4, 3))
