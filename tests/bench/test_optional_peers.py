"""The peers of the extra [bench] are right in every dtype; these tests need that extra as `python -m bench` does."""

import pytest
import torch

from bench import peers
from bench.cell import Cannot
from bench.models import build
from bench.problems import Answer, deviation, problem, reference, strokes
from bench.samplers import check_draws, exact_raw, largest
from fusedmdn import ops

EXTRA = "needs the extra [bench]: pip install 'fusedmdn[bench]'"
jax = pytest.importorskip("jax", reason=EXTRA)
pytest.importorskip("onnx", reason=EXTRA)
pytest.importorskip("onnxruntime", reason=EXTRA)

HIDDEN = 12
M = 20
CLOSE = {"float32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
CLOSE_RAW = {"float32": 1e-5, "bf16": 5e-3, "fp16": 1e-3}
ROUNDED = 1e-5  # what a reduced precision deviates at least


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", ["B", "C"])
def test_jax_trains(name, dtype):
    model, given = build(name, HIDDEN), problem(12, 4)
    trainer = peers.training("cpu")["JAX"](model, given, dtype)
    assert list(trainer.phases) == ["forward + backward"]
    trainer.phases["forward + backward"]()
    answer = trainer.answer()
    assert all(gradient.dtype == torch.float32 for gradient in answer.gradients.values())
    assert deviation(answer, reference(model, given)) < CLOSE[dtype]
    assert dtype == "float32" or deviation(answer, reference(model, given)) > ROUNDED
    other = problem(12, 4)
    assert deviation(answer, reference(model, type(other)(other.x, other.target.flip(0)))) > CLOSE[dtype]


@pytest.mark.parametrize(
    ("peer", "name", "dtype"),
    [("JAX scan", "B", "float32"), ("JAX scan", "C", "bf16"), ("JAX scan", "B", "fp16")]
    + [("ONNX Runtime", name, "float32") for name in "ABCD"],
)
def test_samplers(peer, name, dtype):
    model, x = build(name, HIDDEN), strokes(5, 3)
    sampler = peers.sampling("cpu")[peer](model, dtype, 1)
    raw = sampler.raw(x)
    assert raw.dtype == torch.float32
    assert largest(raw, exact_raw(model, x)) < CLOSE_RAW[dtype]
    assert dtype == "float32" or largest(raw, exact_raw(model, x)) > ROUNDED
    check_draws(sampler, model, 4000)
    rows = torch.tensor(jax.device_get(sampler.sample(3, 5)))
    assert rows.shape == (5, 3, 3)
    assert rows.dtype == torch.float32
    assert rows.isfinite().all()
    assert (rows[1:] != rows[:-1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_jax(dtype):
    raw = torch.randn(6, 4, 1 + 6 * M, generator=torch.Generator().manual_seed(0)).to(dtype)
    target, mean = strokes(6, 4), peers.losses("cpu")["JAX"](M)
    with ops.backend("reference"):
        exact = graded(lambda *rows: ops.mdn_nll(*rows, num_mixtures=M).mean(), raw.double(), target.double())
    answer = graded(mean, raw, target)
    assert answer.gradients["raw"].dtype == dtype
    assert answer.loss == pytest.approx(exact.loss, rel=1e-5)  # in float32 throughout; the gradient is rounded once
    assert deviation(answer, exact) < (1e-4 if dtype == torch.float32 else 2**-8)
    doubled = graded(lambda *rows: 2 * mean(*rows), raw, target)
    assert torch.equal(doubled.gradients["raw"], 2 * answer.gradients["raw"])
    assert deviation(graded(mean, raw, target.flip(0)), exact) > 5e-2


def graded(mean, raw, target):
    leaf = raw.detach().requires_grad_()
    value = mean(leaf, target)
    value.backward()
    return Answer(value.item(), {"raw": leaf.grad})


def test_what_they_cannot():
    model, given = build("B", HIDDEN), problem(12, 4)
    with pytest.raises(Cannot, match="a scan has no lengths"):
        peers.training("cpu")["JAX"](model, problem(12, 4, ragged=True), "float32")
    with pytest.raises(Cannot, match="TF32 is a format of GPUs"):
        peers.training("cpu")["JAX"](model, given, "tf32")
    with pytest.raises(Cannot, match="TF32 is a format of GPUs"):
        peers.sampling("cpu")["JAX scan"](model, "tf32", 1)
    for dtype in ("tf32", "bf16", "fp16"):
        with pytest.raises(Cannot, match=f"ONNX Runtime's LSTM has no {dtype}, only float32"):
            peers.sampling("cpu")["ONNX Runtime"](model, dtype, 1)


def test_jax_without_a_gpu():
    from bench.peers.jax_peer import jax_device

    assert jax_device(torch.device("cpu")).platform == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(Cannot, match="JAX sees no cuda device"):
            jax_device(torch.device("cuda", 0))
