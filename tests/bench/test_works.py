"""The cells of each work, on a processor and on what is taken for a GPU: its kernels run in the simulator."""

import pytest
import torch
from fusedmdn.ops import launch
from fusedmdn.ops.triton import training as operators

from bench import peers, works
from bench.budget import Budget
from bench.cell import measure
from bench.machine import Cpu
from bench.peers.torch_training import LSTMTrainer
from bench.precision import products
from bench.settings import CLIPPED, EQUAL, PEEPHOLES, RAGGED, Part, Settings
from bench.works import training

from ..conftest import simulated

CEILINGS = {"multiply_adds": {"float32": 1e9, "bf16": 2e9}, "bandwidth": 1e9, "cache": 1, "reads": {}, "by": {}}
ONCE = Budget(1, 1)
OPTIONAL = "compile", "TorchScript", "JAX", "ONNX", "FlashRNN", "haste", "TorchRL"  # each has tests of its own


class Pretended(Cpu):
    """A GPU whose kernels are simulated, and which counts the times that it is asked."""

    def __init__(self):
        super().__init__(1)
        self.kind = "cuda"

    def peak(self, run, clear):
        return 2_000_000


def cells(part, machine, dtypes=("float32",)):
    settings = Settings("cpu", 1, "quick", (part,), dtypes, hidden=16)
    return list(works.cells(part, settings, machine, CEILINGS))


def by_name(found):
    return {(result["contender"], result["dtype"]): result for result in found["results"]}


@pytest.mark.parametrize("kind", [EQUAL, RAGGED, CLIPPED, PEEPHOLES])
def test_training(kind):
    part = Part("training", "B", ({"T": 5, "B": 3, "lengths": kind},))
    (cell,) = cells(part, Cpu(1), ("float32", "bf16"))
    found = measure(cell, Cpu(1), ONCE, OPTIONAL)
    results = by_name(found)
    assert found["setup"]["rows"] == (15 if kind != RAGGED else sum(training.problem(5, 3, ragged=True).lengths))
    assert found["floors"]["float32"]["time"] == 2 * found["floors"]["bf16"]["time"] > 0
    names = {
        EQUAL: ["nn.LSTM + eager loss", "nn.LSTMCell loop"],
        RAGGED: [],
        CLIPPED: ["written-out cell loop", "nn.LSTMCell loop, unclipped (stand-in)"],
        PEEPHOLES: ["written-out cell loop", "nn.LSTMCell loop, no peepholes (stand-in)"],
    }[kind]
    for name in ("ours", *names):
        for dtype in ("float32", "bf16"):
            assert results[name, dtype]["reason"] is None, name
            assert len(results[name, dtype]["values"]) == 1
    assert results["ours", "float32"]["error"] < 1e-5 < results["ours", "bf16"]["error"]
    assert (results["ours", "float32"]["role"], results["ours", "float32"]["plan"]) == ("ours", None)
    assert {results[name, "float32"]["role"] for name in names} <= {"peer", "stand-in"}


def test_clipping_is_checked_where_it_bites(monkeypatch):
    """A contender that does not clip is right on the problem that is timed, whose gradients are small, and wrong."""
    monkeypatch.setattr(peers, "written_out", lambda device: {"does not clip": LSTMTrainer})
    (cell,) = cells(Part("training", "B", ({"T": 5, "B": 3, "lengths": CLIPPED},)), Cpu(1))
    reason = by_name(measure(cell, Cpu(1), ONCE))["does not clip", "float32"]["reason"]
    assert reason.startswith("wrong: error ")


def test_sampling():
    part = Part("sampling", "C", ({"B": 1, "steps": 3}, {"B": 4, "steps": 2}))
    made = cells(part, Cpu(1), ("float32", "bf16"))
    for cell, (B, steps) in zip(made, ((1, 3), (4, 2)), strict=True):
        found = measure(cell, Cpu(1), ONCE, OPTIONAL)
        results = by_name(found)
        assert found["setup"] == {"B": B, "steps": steps}
        for key in (("ours", "float32"), ("ours", "bf16"), ("nn.LSTM loop", "float32"), ("nn.LSTMCell loop", "bf16")):
            assert results[key]["reason"] is None
        assert found["floors"].keys() == {"float32", "bf16"}
        assert all(contender.calls == steps for contender in cell.contenders)


def test_wrong_draws_are_not_timed(monkeypatch):
    make = peers.sampling("cpu")["nn.LSTM loop"]

    def wrong(*given):
        sampler = make(*given)
        draw = sampler.draw
        sampler.draw = lambda raw: draw(raw) + 0.5
        return sampler

    monkeypatch.setattr(peers, "sampling", lambda device: {"wrong": wrong})
    (cell,) = cells(Part("sampling", "C", ({"B": 1, "steps": 3},)), Cpu(1))
    result = by_name(measure(cell, Cpu(1), ONCE))["wrong", "float32"]
    assert result["reason"].startswith("ValueError: wrong draws: mean of")
    assert result["failed"]


def test_the_loss():
    (cell,) = cells(Part("loss", None, ({"T": 6, "B": 4},)), Cpu(1), ("float32", "tf32", "bf16"))
    found = measure(cell, Cpu(1), ONCE, OPTIONAL)
    results = by_name(found)
    assert found["setup"] == {"rows": 24, "columns": 121}
    assert {dtype for _, dtype in results} == {"float32", "bf16"}  # it has no products
    for name in ("ours", "eager", "naive eager"):
        assert results[name, "float32"]["reason"] is None
        assert [*results[name, "float32"]["phases"]] == ["forward", "backward"]
    assert found["floors"]["float32"]["bound"] == "memory"


@pytest.fixture
def gpu():
    with simulated(race=False):
        yield Pretended()


def test_training_by_every_plan(gpu):
    (cell,) = cells(Part("training", "C", ({"T": 2, "B": 3, "lengths": EQUAL},)), gpu)
    results = by_name(measure(cell, gpu, ONCE, ("compile", "TorchScript", "JAX", "ONNX")))
    assert [name for name, _ in results][:3] == ["ours", "ours, fused", "ours, composed"]
    for name in ("ours", "ours, fused", "ours, composed", "nn.LSTM + eager loss"):
        result = results[name, "float32"]
        assert result["reason"] is None
        assert result["error"] < 1e-5
        assert result["peak_memory"] == 2_000_000
    assert results["ours", "float32"]["plan"]["forward"]["name"] in ("fused", "composed")
    assert results["ours, fused", "float32"]["role"] == "variant"
    for name in ("FlashRNN", "haste", "TorchRL Triton"):
        assert results[name, "float32"]["reason"]
        assert not results[name, "float32"]["failed"]


def test_a_plan_that_does_not_fit_is_told(gpu):
    launch.simulator.device = launch.simulator.device._replace(processors=1)
    (cell,) = cells(Part("training", "C", ({"T": 2, "B": 3, "lengths": EQUAL},)), gpu)
    result = by_name(measure(cell, gpu, ONCE, OPTIONAL))["ours, fused", "float32"]
    assert "the fused plan does not fit" in result["reason"]
    assert not result["failed"]


def test_a_plan_that_is_wrong_is_not_timed(gpu, monkeypatch):
    backward = operators.fused.backward

    def wrong(*arguments):
        dx, dtarget, dweights, *states = backward(*arguments)
        return dx, dtarget, [dweights[0] * 1.01, *dweights[1:]], *states

    monkeypatch.setattr(operators.fused, "backward", wrong)
    (cell,) = cells(Part("training", "C", ({"T": 2, "B": 3, "lengths": EQUAL},)), gpu)
    result = by_name(measure(cell, gpu, ONCE, OPTIONAL))["ours, fused", "float32"]
    assert result["reason"].startswith("wrong: error 0.01")
    assert (result["failed"], result["values"]) == (True, [])


def test_sampling_by_every_plan(gpu, monkeypatch):
    monkeypatch.setattr(works.sampling, "CHECK_STEPS", 2)
    (cell,) = cells(Part("sampling", "C", ({"B": 3, "steps": 2},)), gpu)
    results = by_name(measure(cell, gpu, ONCE, (*OPTIONAL, "CUDA graph")))
    names = ["ours", "ours, resident", "ours, rows", "ours, graph"]
    assert [name for name, _ in results][:4] == names
    for name in (*names, "nn.LSTM loop"):
        assert results[name, "float32"]["reason"] is None
        assert results[name, "float32"]["error"] < 1e-4
    assert results["ours", "float32"]["plan"]["name"] in ("resident", "rows", "graph")


def test_float32_is_float32():
    """Products are told the precision of their contender, and the setting is put back."""
    for dtype, expected in (("tf32", "tf32"), ("float32", "ieee"), ("bf16", "ieee")):
        before = torch.backends.cuda.matmul.fp32_precision
        with products(dtype):
            assert torch.backends.cuda.matmul.fp32_precision == expected
        assert torch.backends.cuda.matmul.fp32_precision == before
