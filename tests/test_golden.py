"""Real pre-trained weights: the states, mixtures and samples that other software computed from the same files."""

import re

import fusedmdn.ops as ops
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fusedmdn import FusedLSTMMDN, foreign
from fusedmdn.cli import app
from fusedmdn.dataset import StrokeSet
from fusedmdn.strokes import Strokes

BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])  # in float32


@pytest.fixture(scope="module")
def weights_js(test_data):
    """hardmaru/rnn-tutorial (MIT): LSTM(500) + 20 bivariate normals."""
    return test_data / "rnn_tutorial" / "weights.js"


@pytest.fixture(scope="module")
def flowchart_js(test_data):
    """hardmaru/sketch-rnn-flowchart: LSTM(512) + 20 bivariate normals and three pen states."""
    return test_data / "sketch_rnn" / "flowchart.gen.js"


@pytest.fixture(scope="module")
def impsy_h5(test_data):
    """IMPSY (MIT): two Keras LSTM(64), and a mixture of five diagonal normals in four dimensions."""
    return test_data / "keras" / "musicMDRNN-dim4-layers2-units64-mixtures5-scale10.h5"


@pytest.fixture
def rnn_tutorial(weights_js):
    """The network in float64, and 64 teacher-forced steps, computed in float64."""
    golden = dict(np.load(weights_js.parent / "rnn_tutorial_teacher_forced.npz"))
    golden["x"][:, :2] /= golden["scale_factor"]  # the page's units to the model's
    return foreign.read(weights_js).double(), golden


@torch.no_grad()
def steps(model, x):
    """The top layer's h and c after each input (T, H), and the mixture."""
    state, states = None, []
    for row in torch.from_numpy(x.astype("f4")):
        _, state = model(row[None, None], state)
        states.append([v[-1, 0].numpy() for v in state])
    mixture, last = model(torch.from_numpy(x.astype("f4")))
    np.testing.assert_allclose(last[0][-1], states[-1][0], atol=1e-6)
    return np.array(states).swapaxes(0, 1), mixture


def assert_mixture(mixture, golden):
    q = mixture.parameters
    got = {
        "pi": q.log_weight.exp(),
        "mu1": q.mu_x,
        "mu2": q.mu_y,
        "s1": q.log_sigma_x.exp(),
        "s2": q.log_sigma_y.exp(),
        "rho": torch.tanh(q.r),
        ("eos" if mixture.pen == "bernoulli" else "pen"): mixture.pen_probs,
    }
    for name, value in got.items():
        np.testing.assert_allclose(value, golden[name], rtol=1e-5, atol=1e-5, err_msg=name)


@BACKENDS
@pytest.mark.parametrize("name", ["rnn_tutorial", "sketch_rnn_flowchart"])
def test_teacher_forced_states_and_mixtures(weights_js, flowchart_js, name, backend):
    path = weights_js if name == "rnn_tutorial" else flowchart_js
    golden = dict(np.load(path.parent / f"{name}_teacher_forced.npz"))
    x = golden["x"]
    x[:, :2] /= golden["scale_factor"]
    with ops.backend(backend):
        (h, c), mixture = steps(foreign.read(path), x)
    assert_mixture(mixture, golden)
    np.testing.assert_allclose(h, golden["h"], atol=1e-5)
    np.testing.assert_allclose(c, golden["c"], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*holds weights alone")
@BACKENDS
def test_keras_states_and_mixtures(impsy_h5, backend):
    """The stack in this package's layers, and IMPSY's own heads, which this package has not, on top of it."""
    golden = dict(np.load(impsy_h5.parent / "impsy_dim4_keras.npz"))
    model = FusedLSTMMDN.from_modules(foreign.keras.lstm(impsy_h5), torch.nn.Linear(64, 7))
    with ops.backend(backend):
        (h, _), _ = steps(model, golden["x"][0])
    sigmas = h @ golden["sig_w"] + golden["sig_b"]
    sigmas = np.where(sigmas > 0, sigmas, np.expm1(np.minimum(sigmas, 0))) + 1 + 1e-7
    y = np.concatenate([h @ golden["mus_w"] + golden["mus_b"], sigmas, h @ golden["pi_w"] + golden["pi_b"]], 1)
    np.testing.assert_allclose(y, golden["y"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*holds weights alone")
def test_keras_head_that_is_not_ours(impsy_h5):
    with pytest.raises(
        foreign.ForeignFileError, match=r"scale10.h5: expected one Dense layer.*keras\.lstm\(path\) gives"
    ):
        foreign.read(impsy_h5)


class JavaScript:
    """The uniforms that Math.random gave, and the original pages' normals made of them (polar Box-Muller)."""

    def __init__(self, uniforms):
        self.uniforms, self.kept = iter(uniforms.tolist()), None

    def uniform(self):
        return next(self.uniforms)

    def normal(self):
        if self.kept is not None:
            kept, self.kept = self.kept, None
            return kept
        while True:
            u, v = 2 * self.uniform() - 1, 2 * self.uniform() - 1
            r = u * u + v * v
            if 0 < r <= 1:
                break
        factor = np.sqrt(-2 * np.log(r) / r)
        self.kept = v * factor
        return u * factor

    def choice(self, log_probs, temperature):
        probs = np.exp((log_probs - log_probs.max()) / temperature)
        u = self.uniform()
        return next(k for k, total in enumerate(np.cumsum(probs / probs.sum())) if total >= u)


@torch.no_grad()
def draw_as_the_page(model, uniforms, temperature, rows):
    """Rows in the model's units from this package's steps, by the original's rule."""
    page, dtype, state = JavaScript(uniforms), model.head.weight.dtype, None
    x, drawn = torch.zeros(1, 1, model.input_size, dtype=dtype), []
    for _ in range(rows):
        mixture, state = model(x, state)
        pen, *rest = (v[0, 0].double().numpy() for v in mixture.parameters)
        log_weight, mu_x, mu_y, log_sigma_x, log_sigma_y, r = rest
        if model.pen == "bernoulli":
            k = page.choice(log_weight, temperature)
            pen, spread = [float(page.uniform() < 1 / (1 + np.exp(-pen[0])))], temperature
        else:
            k = page.choice(log_weight, 0.5 + 0.5 * temperature)
            pen, spread = np.eye(3)[page.choice(pen, 0.5 + 0.5 * temperature)], np.sqrt(temperature)
        rho = np.tanh(r[k])
        n1, n2 = page.normal(), page.normal()
        dx = mu_x[k] + np.exp(log_sigma_x[k]) * spread * (np.sqrt(1 - rho**2) * n1 + rho * n2)
        drawn.append([dx, mu_y[k] + np.exp(log_sigma_y[k]) * spread * n2, *pen])
        x = torch.tensor(drawn[-1], dtype=dtype)[None, None]
    assert next(page.uniforms, None) is None  # all of them were used
    return np.array(drawn)


@pytest.mark.parametrize(("backend", "dtype"), [("reference", "float64"), ("cpu", "float32")])
@pytest.mark.parametrize("name", ["rnn_tutorial", "sketch_rnn_flowchart"])
def test_samples_are_the_pages(weights_js, flowchart_js, name, backend, dtype):
    """All rows at every temperature: components and pens chosen alike, coordinates to what feedback makes of rounding.

    float64 differs by the rounding of the weights to float32 alone.
    """
    path, unit = (weights_js, 10) if name == "rnn_tutorial" else (flowchart_js, 60)
    within = {"rnn_tutorial": (1e-5, 1e-4), "sketch_rnn_flowchart": (5e-5, 1e-3)}[name][dtype == "float32"]
    golden = dict(np.load(path.parent / f"{name}_samples.npz"))
    model = foreign.read(path).to(getattr(torch, dtype))
    runs = [key.removeprefix("xs_") for key in golden if key.startswith("xs_")]
    assert len(runs) >= 3
    for run in runs:
        expected = golden[f"xs_{run}"]
        with ops.backend(backend):
            rows = draw_as_the_page(model, golden[f"u_{run}"], float(run.split("_")[0][1:]), len(expected))
        np.testing.assert_array_equal(rows[:, 2:], expected[:, 2:], err_msg=run)
        np.testing.assert_allclose(rows[:, :2], expected[:, :2] / unit, rtol=0, atol=within, err_msg=run)


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


def call(*words):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_convert_evaluate_and_sample(weights_js, test_data, tmp_path):
    """The handwriting network on real lines by other hands: better than on the same lines mirrored."""
    z = np.load(test_data / "unipen" / "unipen_mini_lines.npz")
    ends = z["offsets"][1:21]
    eos = np.unpackbits(z["eos"])[: ends[-1]]
    lines = np.split(np.column_stack([z["dx"][: ends[-1]], z["dy"][: ends[-1]], eos]).astype("f4"), ends[:-1])
    nats = []
    for name, way in (("lines", [1, 1, 1]), ("mirrored", [-1, 1, 1])):
        StrokeSet.of([Strokes(line * np.float32(way)) for line in lines], 1.0).save(tmp_path / f"{name}.npz")
        if name == "lines":  # its points lie closer than those that the network was trained on
            assert "unit of the network is 20 of" in call("convert", weights_js, "--out", tmp_path / "m", "--scale", 20)
        told = call("eval", tmp_path / "m", tmp_path / f"{name}.npz", "--part", "all", "--device", "cpu")
        nats.append(float(re.search(r"nats per point \(row\)\D+(-?[0-9.]+)", told)[1]))
    assert -0.5 < nats[0] < 0.5
    assert nats[1] > nats[0] + 0.15
    drawn = call("sample", tmp_path / "m", "-n", 4, "--max-steps", 300, "--out", tmp_path / "x.npz", "--device", "cpu")
    assert "4 sequences, 1,200 points" in drawn


def test_flowcharts_end_by_themselves(flowchart_js, tmp_path):
    assert "pen categorical" in call("convert", flowchart_js, "--out", tmp_path / "m")
    drawn = call(
        "sample", tmp_path / "m", "-n", 8, "--out", tmp_path / "x.svg", "--temperature", 0.4, "--device", "cpu"
    )
    assert int(re.search(r"; (\d) of them ended", drawn)[1]) >= 5
