"""Real pre-trained handwriting weights: the states and mixtures that the original JavaScript computed."""

import numpy as np
import pytest
import torch
from torch import nn

from fusedmdn import FusedLSTMMDN


@pytest.fixture
def rnn_tutorial(test_data):
    """hardmaru/rnn-tutorial (MIT): LSTM(500) + 20 bivariate normals, and 64 teacher-forced steps in float64."""
    folder = test_data / "rnn_tutorial"
    weights = np.load(folder / "rnn_tutorial_weights_torch_layout.npz")
    lstm, head = nn.LSTM(3, 500, dtype=torch.float64), nn.Linear(500, 121, dtype=torch.float64)
    lstm.load_state_dict({k: torch.from_numpy(weights[k]) for k, _ in lstm.named_parameters()})
    head.load_state_dict({k: torch.from_numpy(weights[f"linear_{k}"]) for k in ("weight", "bias")})
    golden = dict(np.load(folder / "rnn_tutorial_teacher_forced.npz"))
    golden["x"][:, :2] /= golden["scale_factor"]  # the page's units to the model's
    return FusedLSTMMDN.from_modules(lstm, head), golden


def test_teacher_forced_states_and_mixtures(rnn_tutorial):
    model, golden = rnn_tutorial
    x = torch.from_numpy(golden["x"])
    with torch.no_grad():
        mixture, (h, c) = model(x)
        q = mixture.parameters
        got = {
            "pi": q.log_weight.exp(),
            "mu1": q.mu_x,
            "mu2": q.mu_y,
            "s1": q.log_sigma_x.exp(),
            "s2": q.log_sigma_y.exp(),
            "rho": torch.tanh(q.r),
            "eos": mixture.pen_probs,
        }
    # the weights were dequantised to float32, which is what the differences are
    for name, value in got.items():
        np.testing.assert_allclose(value, golden[name], rtol=1e-5, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(h[0], golden["h"][-1], atol=1e-6)
    np.testing.assert_allclose(c[0], golden["c"][-1], rtol=1e-5, atol=1e-6)


def test_likelihood_by_the_textbook_formula(rnn_tutorial):
    """Equations 24-26 as printed, on the golden mixtures: probabilities, no logarithms but the last."""
    model, golden = rnn_tutorial
    x = golden["x"]
    target = x[1:]
    dx, dy = (target[:, k : k + 1] - golden[m][:-1] for k, m in ((0, "mu1"), (1, "mu2")))
    s1, s2, rho, pi = (golden[k][:-1] for k in ("s1", "s2", "rho", "pi"))
    z = (dx / s1) ** 2 + (dy / s2) ** 2 - 2 * rho * dx * dy / (s1 * s2)
    density = np.exp(-z / (2 * (1 - rho**2))) / (2 * np.pi * s1 * s2 * np.sqrt(1 - rho**2))
    eos = golden["eos"][:-1, 0]
    expected = -np.log((pi * density).sum(1)) - np.log(np.where(target[:, 2] == 1, eos, 1 - eos))
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        nll, _ = model(inputs[:-1], target=inputs[1:])
    np.testing.assert_allclose(nll, expected, rtol=1e-4, atol=1e-4)


def test_samples_stay_handwriting(rnn_tutorial):
    """Sampled as the original page does, the model keeps to small steps and lifts the pen now and then."""
    model, _ = rnn_tutorial
    batch = model.generate(20, 300, seed=0, temperature=0.65)
    steps = batch.points[..., :2].norm(dim=-1)
    assert 0.1 < steps.mean() < 1.5
    assert steps.max() < 30
    assert 0.01 < batch.points[..., 2].mean() < 0.2
    x = batch.points[..., 0].cumsum(1)[:, -1]
    assert (x > 20).float().mean() > 0.8  # English goes to the right
