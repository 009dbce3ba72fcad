"""The mixture's likelihood against torch.distributions, finite differences, and the extremes of its inputs."""

import math

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as D
from torch.autograd import gradcheck

PENS = [("bernoulli", 1, 3), ("categorical", 3, 5)]
EXTREMES = [0.0, 1.0, -1.0, 12.0, -12.0, 15.0, -15.0, 1e-6, 88.0, -104.0, 1e3, -1e3, 1e6, -1e6]
value = st.one_of(st.sampled_from(EXTREMES), st.floats(-20, 20), st.floats(-1e6, 1e6))


def rows(pen, *shape, device="cpu", dtype=None):
    """Random targets with pen states that are one-hot, end rows among them; in the dtype of the device, or float64."""
    dtype = dtype or getattr(device, "dtype", torch.float64)
    xy = torch.randn(*shape, 2, dtype=dtype)
    if pen == "bernoulli":
        state = (torch.rand(*shape, 1) < 0.4).to(dtype)
    else:
        state = torch.nn.functional.one_hot(torch.randint(3, shape), 3).to(dtype)
    return torch.cat([xy, state], -1).to(device)


def raw_output(P, M, *shape, device="cpu", dtype=None):
    dtype = dtype or getattr(device, "dtype", torch.float64)
    return torch.randn(*shape, P + 6 * M, dtype=dtype).to(device)


def by_torch_distributions(raw, target, pen, P, M, means):
    """-log p, from torch's own mixture of multivariate normals and pen distributions."""
    p, a, mx, my, sx, sy, r = raw.split([P] + [M] * 6, -1)
    if means == "sigmoid":
        mx, my = torch.sigmoid(mx), torch.sigmoid(my)
    sx, sy, rho = sx.exp(), sy.exp(), torch.tanh(r)
    covariance = torch.stack([sx * sx, rho * sx * sy, rho * sx * sy, sy * sy], -1).unflatten(-1, (2, 2))
    normals = D.MultivariateNormal(torch.stack([mx, my], -1), covariance)
    log_p = D.MixtureSameFamily(D.Categorical(logits=a), normals).log_prob(target[..., :2])
    if pen == "bernoulli":
        return -log_p - D.Bernoulli(logits=p[..., 0]).log_prob(target[..., 2])
    return -torch.where(target[..., 4] == 1, 0, log_p) - D.OneHotCategorical(logits=p).log_prob(target[..., 2:])


@pytest.mark.parametrize("means", ["linear", "sigmoid"])
@pytest.mark.parametrize(("pen", "P", "width"), PENS)
@pytest.mark.parametrize("M", [1, 2, 20])
def test_equals_torch_distributions(backend, pen, P, width, M, means):
    raw = raw_output(P, M, 7, 5, device=backend).requires_grad_()
    target = rows(pen, 7, 5, device=backend)
    ours = ops.mdn_nll(raw, target, num_mixtures=M, pen=pen, means=means)
    theirs = by_torch_distributions(raw.double(), target.double(), pen, P, M, means).to(ours.dtype)
    tolerance = {} if backend.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours, theirs, **tolerance)
    weight = torch.randn_like(theirs)
    for got, expected in zip(
        torch.autograd.grad((ours * weight).sum(), raw),
        torch.autograd.grad((theirs * weight).sum(), raw),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("means", ["linear", "sigmoid"])
@pytest.mark.parametrize(("pen", "P", "width"), PENS)
def test_gradcheck(float64_backend, pen, P, width, means):
    raw = raw_output(P, 3, 4, 3, device=float64_backend).requires_grad_()
    target = rows(pen, 4, 3, device=float64_backend).requires_grad_()
    lengths = torch.tensor([4, 0, 2], device=float64_backend)
    options = {"num_mixtures": 3, "pen": pen, "means": means}
    assert gradcheck(lambda r, t: ops.mdn_nll(r, t, lengths, **options), (raw, target))


@settings(max_examples=2500)
@given(st.sampled_from(PENS), st.sampled_from(["linear", "sigmoid"]), st.booleans(), st.data())
def test_finite_wherever_inputs_are_within_a_million(pen_model, means, bf16, data):
    """Loss and gradients of every row are finite; masked rows, NaN throughout, give zero."""
    pen, P, width = pen_model
    M = data.draw(st.integers(1, 3))
    D = P + 6 * M
    raw = torch.tensor(data.draw(st.lists(value, min_size=2 * D, max_size=2 * D))).reshape(2, 1, D)
    target = torch.tensor(data.draw(st.lists(value, min_size=2 * width, max_size=2 * width))).reshape(2, 1, width)
    raw, target = (torch.cat([v, torch.full_like(v[:1], math.nan)]) for v in (raw, target))
    raw = raw.to(torch.bfloat16 if bf16 else torch.float32).requires_grad_()
    target.requires_grad_()
    nll = ops.mdn_nll(raw, target, torch.tensor([2]), num_mixtures=M, pen=pen, means=means)
    gradient, target_gradient = torch.autograd.grad(nll.sum(), (raw, target))
    assert nll.dtype == torch.float32
    assert gradient.dtype == raw.dtype
    for v in (nll, gradient, target_gradient):
        assert v.isfinite().all()
        assert not v[2].any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("raw_sigma", "passes_when_rising", "passes_when_falling"),
    [(0.0, True, True), (11.5, True, True), (12.5, False, True), (20.0, False, True), (-20.0, True, False)],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_clamped_deviation_learns_only_inward(backend, raw_sigma, passes_when_rising, passes_when_falling, axis, sign):
    """Outside ±12 the gradient is there when a descent step on the loss that is back-propagated leads back inside."""
    raw = torch.zeros(1, 2, 7, dtype=backend.dtype, device=backend)
    raw[..., 4 + axis] = raw_sigma
    raw[:, 1, 2 + axis] = 3 * math.exp(max(-12, min(12, raw_sigma)))  # a far mean: this row wants a larger deviation
    raw.requires_grad_()
    target = torch.zeros(1, 2, 3, dtype=backend.dtype, device=backend)
    gradient = torch.autograd.grad(sign * ops.mdn_nll(raw, target, num_mixtures=1).sum(), raw)[0][0, :, 4 + axis]
    falling, rising = (gradient[0], gradient[1]) if sign > 0 else (gradient[1], gradient[0])
    assert (falling > 0) == passes_when_falling
    assert (rising < 0) == passes_when_rising


def test_where_the_clamps_are(backend):
    """One component at its target: log N is known, and so is where each clamp holds it."""
    target = torch.zeros(1, 1, 3, dtype=backend.dtype, device=backend)
    for column, value, held in ((4, 20, 12), (5, 20, 12), (4, -20, -12), (5, 11, 11), (6, 20, 15), (6, -14, -14)):
        raw = torch.zeros(1, 1, 7, dtype=backend.dtype, device=backend)
        raw[..., column] = value
        log_scale = held if column < 6 else -math.log(math.cosh(held))
        expected = math.log(2 * math.pi) + log_scale + math.log(2)  # and the pen's log 2
        assert ops.mdn_nll(raw, target, num_mixtures=1).item() == pytest.approx(
            expected, rel=1e-12 if backend.dtype == torch.float64 else 1e-6
        )


@pytest.mark.parametrize("raw_rho", [40.0, -40.0, 15.5])
def test_clamped_correlation_learns_only_inward(backend, raw_rho):
    raw = torch.zeros(1, 2, 7, dtype=backend.dtype, device=backend)
    raw[..., 6] = raw_rho
    raw.requires_grad_()
    target = torch.zeros(1, 2, 3, dtype=backend.dtype, device=backend)
    target[0, 0, 0], target[0, 0, 1] = 1, -math.copysign(1, raw_rho)  # against the correlation: wants it gone
    gradient = torch.autograd.grad(ops.mdn_nll(raw, target, num_mixtures=1).sum(), raw)[0][0, :, 6]
    assert gradient[0] * raw_rho > 0  # descent leads inward
    assert gradient[1] == 0  # the other row would have it grow


def test_correlation_learns_either_way_inside_its_clamp(backend):
    raw = torch.zeros(1, 2, 7, dtype=backend.dtype, device=backend)
    raw[..., 6] = 14.0
    raw.requires_grad_()
    target = torch.zeros(1, 2, 3, dtype=backend.dtype, device=backend)
    target[0, 0, 0], target[0, 0, 1] = 1, -1
    gradient = torch.autograd.grad(ops.mdn_nll(raw, target, num_mixtures=1).sum(), raw)[0][0, :, 6]
    assert gradient[0] > 0 > gradient[1]


@pytest.mark.parametrize(("pen", "P", "width"), PENS)
def test_clip_is_of_the_gradient_that_arrives(backend, pen, P, width):
    raw, target = raw_output(P, 4, 5, 3, device=backend), rows(pen, 5, 3, device=backend)
    raw = (3 * raw).requires_grad_()
    incoming = torch.randn(5, 3, dtype=backend.dtype, device=backend)
    plain = torch.autograd.grad(ops.mdn_nll(raw, target, num_mixtures=4, pen=pen), raw, incoming)[0]
    clipped = torch.autograd.grad(ops.mdn_nll(raw, target, num_mixtures=4, pen=pen, clip=0.05), raw, incoming)[0]
    assert plain.abs().max() > 0.05
    torch.testing.assert_close(clipped, plain.clamp(-0.05, 0.05))


def test_end_row_ignores_its_offsets(backend):
    raw = raw_output(3, 2, 1, 1, device=backend).requires_grad_()
    end = torch.tensor([[[math.nan, 1e30, 0, 0, 1]]], dtype=backend.dtype, device=backend)
    nll = ops.mdn_nll(raw, end, num_mixtures=2, pen="categorical")
    torch.testing.assert_close(nll[0, 0], -raw[0, 0, :3].log_softmax(-1)[2])
    gradient = torch.autograd.grad(nll.sum(), raw)[0]
    assert gradient[..., :3].any()
    assert not gradient[..., 3:].any()


def test_low_precision_input_high_precision_loss(backend):
    raw = raw_output(1, 20, 50, 8, device=backend, dtype=torch.bfloat16)
    target = rows("bernoulli", 50, 8, device=backend, dtype=torch.float32)
    with ops.backend("reference"):
        exact = ops.mdn_nll(raw.double(), target.double(), num_mixtures=20)
    nll = ops.mdn_nll(raw, target, num_mixtures=20)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0)])
def test_empty(backend, T, B):
    raw = raw_output(1, 2, T, B, device=backend).requires_grad_()
    nll = ops.mdn_nll(raw, torch.zeros(T, B, 3, device=backend), num_mixtures=2)
    assert nll.shape == (T, B)
    assert torch.autograd.grad(nll.sum(), raw)[0].shape == raw.shape


def test_non_contiguous_inputs(backend):
    raw = raw_output(1, 3, 4, 6, device=backend)
    target = rows("bernoulli", 4, 6, device=backend)
    expected = ops.mdn_nll(raw, target, num_mixtures=3)
    strided = raw.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(ops.mdn_nll(strided, target[:, ::1], num_mixtures=3), expected)
    torch.testing.assert_close(ops.mdn_nll(raw[::2], target[::2], num_mixtures=3), expected[::2])


@pytest.mark.parametrize(
    ("raw", "target", "options", "message"),
    [
        ((3, 2, 12), (3, 2, 3), {}, r"raw: expected shape \(3, 2, 13\), got \(3, 2, 12\)"),
        ((3, 13), (3, 2, 3), {}, r"raw: expected shape \(T, B, 13\), got \(3, 13\)"),
        ((3, 2, 13), (3, 2, 5), {}, r"target: expected shape \(3, 2, 3\), got \(3, 2, 5\)"),
        ((3, 2, 13), (3, 2, 3), {"pen": "quill"}, "pen must be .* got 'quill'"),
        ((3, 2, 13), (3, 2, 3), {"means": "cubic"}, "means must be .* got 'cubic'"),
        ((3, 2, 13), (3, 2, 3), {"num_mixtures": 0}, "num_mixtures must be >= 1, got 0"),
        ((3, 2, 13), (3, 2, 3), {"clip": -1.0}, "clip must be > 0 or None, got -1.0"),
    ],
)
def test_bad_arguments(raw, target, options, message):
    with pytest.raises(ValueError, match=message):
        ops.mdn_nll(torch.zeros(raw), torch.zeros(target), **{"num_mixtures": 2, **options})


def test_log_one_minus_rho2_keeps_its_digits():
    r = torch.tensor([0.0, 1e-4, 0.5, 5.0, 15.0, -15.0])
    exact = torch.log(1 / torch.cosh(r.double()) ** 2)
    torch.testing.assert_close(reference.log_one_minus_rho2(r).double(), exact, rtol=1e-6, atol=1e-7)
