"""The fused plan of the whole network's loss in the simulator: values, gradients, training, promises to torch.

Memory that torch hands out uninitialised holds NaN where values are compared, so that what nobody has written shows.
"""

import contextlib
import math
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import reference, training_plans, triton
from torch.library import opcheck
from torch.overrides import TorchFunctionMode

from fusedmdn import FusedLSTMMDN

from ..accuracy import assert_accurate
from ..conftest import Compiling, Idle, launching, simulated
from .problems import double, poisoned
from .test_library import REGISTRATION, op
from .test_lstm_mdn_nll import EVERYTHING, LENGTHS, OUTPUTS, Network, both_ways
from .test_triton import tf32

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LAUNCHES = ["forward", "backward"]


@contextlib.contextmanager
def running(plan="fused", **simulator):
    """A GPU that is large enough; fast: one program after the other, as far as they do not wait."""
    with simulated(**{"processors": 64, "race": False, "policy": "serial"} | simulator) as it, ops.plan(plan):
        yield it


def launches(simulator):
    return [kernel for kernel, _ in simulator.statistics]


class TF32(TorchFunctionMode):
    """All matrix products with operands that are cut off to tf32, in the reference."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        first = {"matmul": 0, "__matmul__": 0, "mm": 0, "addmm": 1, "addmm_": 1}.get(function.__name__)
        if first is not None:
            cut = [(v.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) for v in args[first:]]
            args = (*args[:first], *cut)
        return function(*args, **(kwargs or {}))


# Values


def given(dtype, L, sizes, ragged=False, **options):
    """A network, gradients of its outputs, and the same in float64. What nothing may read is NaN."""
    T, B, H, *_ = sizes
    lengths = torch.randint(0, T + 1, (B,)) if ragged else None
    network, exact = (Network(L, d, sizes=sizes, lengths=lengths, **options) for d in (dtype, torch.float64))
    network.weights[-2:] = [w / 8 for w in network.weights[-2:]]  # as in test_lstm_mdn_nll.py
    network.target[..., :2] /= 4
    grads = [torch.randn(T, B), *(torch.randn(L, B, H) for _ in range(2))]
    if ragged:
        lengths[0], lengths[-1] = T, 0
        live = reference.alive(T, lengths)
        network.x = torch.where(live, network.x, 0)
        network.target, grads[0] = torch.where(live, network.target, math.nan), grads[0].where(live[..., 0], math.nan)
    for key in ("x", "target", "weights", "h0", "c0"):
        setattr(exact, key, double(getattr(network, key)))
    return network, exact, grads


def check(make, forward="fused", backward="fused", repeats=3, rounded=contextlib.nullcontext):
    """The accuracy rule for everything that either direction gives, of as many networks."""
    results = {}
    for _ in range(repeats):
        network, exact, grads = make()
        with poisoned():
            got = by_plans(network, grads, forward, backward)
        with rounded():
            same = both_ways(reference, network, grads)
        truth = both_ways(reference, exact, double(grads))
        for values in (got, same, truth) if network.lengths is not None else ():
            live = reference.alive(len(network.x), network.lengths)
            values["raw"] = torch.where(live, values["raw"], 0)  # it may hold anything
        for key, value in got.items():
            for kept, v in zip(results.setdefault(key, ([], [], [])), (value, same[key], truth[key]), strict=True):
                kept.append(v.flatten())
    for key, values in results.items():
        assert_accurate(key, *map(torch.cat, values))


class Directions:
    """The operators, each direction by its own plan."""

    def __init__(self, forward, backward):
        self.plans = {"lstm_mdn_nll": forward, "lstm_mdn_nll_backward": backward}

    def __getattr__(self, name):
        def run(*arguments):
            with running(self.plans[name]) as simulator:
                result = getattr(triton, name)(*arguments)
            assert (len(launches(simulator)) == 1) == (self.plans[name] != "composed")
            return result

        return run


def by_plans(network, grads, forward="fused", backward="fused"):
    return both_ways(Directions(forward, backward), network, grads)


# Sizes T, B, H, M, I; H is no multiple of 8 units, the head's outputs none of 16, B none of 16 sequences
CASES = {
    "one layer": (F32, 1, (4, 19, 9, 2, 3), {}),
    "one layer, ragged, peepholes": (F32, 1, (4, 19, 20, 3, 3), {"ragged": True, "peephole": True}),
    "two layers": (F32, 2, (4, 5, 17, 3, 3), {"means": "sigmoid", "peephole": True}),
    "two layers, everything": (F32, 2, (5, 18, 9, 2, 5), {"ragged": True, **EVERYTHING}),
    "two layers, clips": (F32, 2, (5, 18, 9, 2, 3), {"clip_gates": 0.02, "clip_output": 0.05}),
    "three layers, clips": (F32, 3, (4, 6, 9, 3, 3), {"skip": True, "clip_gates": 0.02, "clip_output": 0.05}),
    "three layers, ragged": (F32, 3, (4, 17, 7, 2, 5), {"ragged": True, "pen": "categorical"}),
    "bfloat16, three layers": (BF16, 3, (3, 18, 7, 2, 3), {"skip": True}),
    "fourteen inputs": (F32, 2, (4, 6, 9, 2, 14), {"skip": True, "ragged": True}),
    "sixty-four components": (F32, 1, (3, 4, 9, 64, 5), {"pen": "categorical"}),
    "bfloat16": (BF16, 2, (4, 18, 9, 3, 3), {}),
    "bfloat16, everything": (BF16, 3, (4, 18, 9, 2, 5), {"ragged": True, **EVERYTHING, "clip_gates": 0.02}),
    "float16, everything": (F16, 2, (4, 18, 9, 2, 5), {"ragged": True, **EVERYTHING, "clip_output": 0.05}),
}


@pytest.mark.parametrize("case", CASES)
def test_accuracy(case):
    dtype, L, sizes, options = CASES[case]
    check(lambda: given(dtype, L, sizes, **options))


def test_accuracy_in_tf32_where_torch_allows_it():
    def make():
        return given(F32, 2, (4, 18, 33, 2, 3), skip=True, ragged=True)

    with tf32():
        check(make, rounded=TF32)
        with pytest.raises(AssertionError, match="over the bound"):  # and it is not float32
            check(make, repeats=1)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("forward", "backward"), [("fused", "composed"), ("composed", "fused"), ("composed",) * 2])
def test_what_is_kept_for_backward_is_the_same_by_either_plan(forward, backward, dtype):
    """And the composition gives the same numbers, to rounding."""
    check(lambda: given(dtype, 2, (4, 18, 9, 2, 5), ragged=True, **EVERYTHING), forward, backward)


@pytest.mark.parametrize(("T", "B"), [(1, 1), (2, 16), (3, 33)])
def test_smallest_and_sequences_without_steps(T, B):
    network, _, grads = given(F32, 2, (T, B, 5, 1, 3), skip=True)
    network.lengths = torch.zeros(B, dtype=torch.int64) if T > 1 else None
    if T > 1:
        network.target[:] = grads[0][:] = math.nan
    with poisoned():
        got = by_plans(network, grads)
    for key, want in both_ways(reference, network, grads).items():
        if key != "raw" or T == 1:
            torch.testing.assert_close(got[key], want, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_is_launched_for_nothing(T, B):
    network = Network(2, F32, sizes=(T, B, 5, 2, 3), skip=True)
    inputs = network.differentiable()
    with running() as simulator:
        nll, h_T, c_T = network.run()
        gradients = torch.autograd.grad(nll.sum() + (h_T + c_T).sum(), inputs)
    assert not launches(simulator)
    assert nll.shape == (T, B)
    assert all(g.shape == v.shape and g.isfinite().all() for g, v in zip(gradients, inputs, strict=True))


def test_weights_may_lie_anyhow():
    """Every one of them with gaps between its elements."""
    network, _, grads = given(F32, 2, (3, 5, 9, 2, 5), **EVERYTHING)
    dense = by_plans(network, grads)
    network.weights = [torch.stack([w, torch.full_like(w, math.nan)], -1)[..., 0] for w in network.weights]
    assert not any(w.is_contiguous() for w in network.weights)
    strided = by_plans(network, grads)
    assert all(torch.equal(value, strided[key]) for key, value in dense.items())


def test_lengths_that_nobody_has_looked_at_are_clamped():
    """A GPU's; so large, too, that they are negative as 32-bit integers."""
    network, _, grads = given(F32, 2, (3, 5, 9, 2, 5), **EVERYTHING)
    network.lengths = torch.tensor([2**32 + 2, -5, 9, -(2**31), 2**63 - 1])
    got = by_plans(network, grads)
    network.lengths = torch.tensor([3, 0, 3, 0, 3])
    expected, live = by_plans(network, grads), reference.alive(3, network.lengths)
    assert all(torch.equal(value, expected[key]) for key, value in got.items() if key != "raw")
    assert torch.equal(torch.where(live, got["raw"], 0), torch.where(live, expected["raw"], 0))


@pytest.mark.parametrize("ragged", [False, True])
def test_the_same_bits_without_what_is_kept(ragged):
    """h is then a ring of L + 1 steps, fewer than there are."""
    network, _, _ = given(F32, 2, (6, 18, 9, 2, 5), **EVERYTHING, ragged=ragged)
    with running(), poisoned():
        saved, bare = (triton.lstm_mdn_nll(*network.arguments(save)) for save in (True, False))
    for a, b in zip(saved[:3], bare[:3], strict=True):
        assert torch.equal(a, b)
    assert [v.numel() for v in bare[3:]] == [0] * 4
    assert [v.dtype for v in bare] == [v.dtype for v in saved]


def test_the_same_bits_every_time_and_whatever_the_schedule():
    """And the number of groups; with the race detector."""
    network, _, grads = given(F32, 2, (3, 20, 12, 2, 5), ragged=True, **EVERYTHING)
    first = by_plans(network, grads)
    with running() as simulator:
        two = [training_plans.choose(d, 2, 12, 15, 20, F32, simulator.device) for d in LAUNCHES]
    assert [plan.groups for plan in two] == [2, 2]
    with running(seed=1, policy="priority", race=True):
        scheduled = both_ways(triton, network, grads)
    for again in (by_plans(network, grads), scheduled, by_plans(network, grads, *(p._replace(groups=1) for p in two))):
        for key, value in first.items():
            assert torch.equal(again[key], value), key


def test_what_masked_steps_hold_does_not_matter():
    """NaN in inputs, targets, gradients and the state of a sequence without steps."""
    network = Network(2, F32, lengths=LENGTHS, **EVERYTHING)
    inputs = network.differentiable()
    masked, results = ~reference.alive(len(network.x), LENGTHS), []
    with torch.no_grad():
        network.h0[:, 1] = network.c0[:, 1] = math.nan
    for hole in (0.0, math.nan):
        with running() as simulator:
            nll, h_T, c_T = network.run(*(torch.where(masked, hole, v) for v in (network.x, network.target)))
            outputs, incoming = [nll, h_T[:, LENGTHS > 0], c_T[:, LENGTHS > 0]], torch.ones_like(nll)
            incoming = [torch.where(masked[..., 0], math.nan, incoming), *map(torch.ones_like, outputs[1:])]
            results.append((*outputs, *torch.autograd.grad(outputs, inputs, incoming)))
        assert launches(simulator) == LAUNCHES
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    assert not results[0][0][masked[..., 0]].any()


# Training


def losses(plan, steps):
    """Of a small network, step by step; so slowly that rounding does not grow, as it does between any two backends."""
    torch.manual_seed(0)
    model = FusedLSTMMDN(3, 12, 2, 3, skip=True, peephole=True, clip_gates=10.0, clip_output=100.0)
    strokes, lengths = torch.randn(8, 8, 3), torch.tensor([8, 3, 5, 8, 1, 7, 2, 6])
    strokes[..., 2] = (strokes[..., 2] > 1).float()
    optimiser, curve = torch.optim.Adam(model.parameters(), lr=0.0005), []
    for _ in range(steps):
        with running(plan) as simulator:
            loss = model.nll(strokes, lengths)
            optimiser.zero_grad()
            loss.backward()
        assert (launches(simulator) == LAUNCHES) == (plan == "fused")
        optimiser.step()
        curve.append(loss.detach())
    return torch.stack(curve)


@pytest.mark.parametrize("steps", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_training_goes_the_same_way_by_either_plan(steps):
    fused, composed = losses("fused", steps), losses("composed", steps)
    assert fused[-1] < fused[0]
    torch.testing.assert_close(fused, composed, rtol=1e-4, atol=0)


# Promises to torch


def test_opcheck():
    network = Network(2, F32, sizes=(2, 3, 6, 2, 5), lengths=LENGTHS[1:].clamp(max=2), **EVERYTHING)
    inputs = network.differentiable()
    with running() as simulator:
        opcheck(op("lstm_mdn_nll"), network.arguments(), test_utils=[*REGISTRATION, "test_aot_dispatch_dynamic"])
        for v in inputs:
            v.requires_grad_(False)
        opcheck(op("lstm_mdn_nll"), network.arguments(save=False))
        nll, h_T, c_T, *saved = op("lstm_mdn_nll")(*network.arguments())
        whole, options = network.arguments()[:6], network.arguments()[6:-1]
        for want in (False, True):
            opcheck(op("lstm_mdn_nll_backward"), (nll, h_T, c_T, *whole, *saved, *options, want, want))
    assert set(launches(simulator)) == {"forward", "backward"}


def test_autocast_runs_matrix_products_in_bfloat16():
    """What leaves the module is as its parts promise it; values are those of a network in bfloat16."""
    model = FusedLSTMMDN(3, 12, 2, 2, skip=True, peephole=True)
    x = torch.rand(4, 3, 3)
    with running() as simulator:
        with torch.autocast("cpu", torch.bfloat16):
            nll, (h, c) = model(x, target=x)
        gradients = torch.autograd.grad(nll.sum(), list(model.parameters()))
    assert launches(simulator) == LAUNCHES
    assert (nll.dtype, h.dtype, c.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    weights = model._weights()
    for k in (2, 7):  # the biases, before they are rounded
        weights[k : k + 2] = weights[k] + weights[k + 1], torch.zeros_like(weights[k])
    weights = [w if w.shape[0] == 3 else w.bfloat16() for w in weights]  # all but the peepholes
    options = {"num_mixtures": 2, "skip": True, "peephole": True}
    with running(), torch.no_grad():
        by_hand, _ = ops.lstm_mdn_nll(x.bfloat16(), x, weights, **options)
    assert torch.equal(nll, by_hand)


@pytest.fixture
def model():
    return FusedLSTMMDN(3, 8, 2, 2, skip=True, peephole=True)


def test_compiled_training_step_is_one_graph(model):
    x, lengths = torch.rand(4, 3, 3), torch.tensor([4, 0, 2])
    compiled = torch.compile(model.nll, fullgraph=True, backend="aot_eager")
    with running() as simulator:
        expected, loss = model.nll(x, lengths), compiled(x, lengths)
        torch.testing.assert_close(loss, expected)
        for got, want in zip(*(torch.autograd.grad(v, model.parameters()) for v in (loss, expected)), strict=True):
            torch.testing.assert_close(got, want)
    assert launches(simulator) == ["forward"] * 2 + ["backward"] * 2


def test_export_keeps_the_operator_whole(model):
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, target, lengths):
            return self.model(x, lengths=lengths, target=target)

    x, lengths, time = torch.randn(6, 4, 3), torch.tensor([6, 2, 0, 5]), torch.export.Dim("T", min=2, max=50)
    with torch.no_grad(), running() as simulator:
        program = torch.export.export(Loss(), (x, x, lengths), dynamic_shapes=({0: time}, {0: time}, None))
        assert "fusedmdn.lstm_mdn_nll.default" in {str(node.target) for node in program.graph.nodes}
        longer = torch.randn(9, 4, 3)
        torch.testing.assert_close(program.module()(longer, longer, lengths), Loss()(longer, longer, lengths))
    assert launches(simulator) == ["forward"] * 2


def test_nothing_looks_at_values_or_waits():
    """So that a call can be captured in a CUDA graph: no .item(), .cpu(), .tolist(), bool() or synchronize()."""

    def refuse(*_, **__):
        raise AssertionError("a value was looked at")

    class Large(Idle):
        device = Idle.device._replace(processors=64)

    network, _, grads = given(F32, 2, (3, 5, 8, 2, 5), ragged=True, **EVERYTHING)
    names = ["item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(launching(Large()))
        stack.enter_context(ops.plan("fused"))
        for method in names:
            stack.enter_context(mock.patch.object(torch.Tensor, method, refuse))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", refuse))
        stack.enter_context(mock.patch.object(torch.cuda.Stream, "synchronize", refuse))
        assert set(both_ways(triton, network, grads)) >= set(OUTPUTS)
        with pytest.raises(AssertionError, match="looked at"):
            torch.zeros(1).item()


def test_one_compilation_serves_every_length_batch_and_depth(pretended_gpu):
    """Counted over T and B that are 1, multiples of 16, and neither, and L from 2 on. Inputs are slices."""

    class Large(Compiling):
        device = Idle.device._replace(processors=108)

    with launching(Large()) as compiling, ops.plan("fused"):
        for T, B, L in ((1, 1, 2), (16, 1, 3), (1, 16, 2), (5, 3, 3), (16, 32, 2), (7, 70, 3)):
            network = Network(L, BF16, sizes=(T + 1, B, 8, 1, 3), lengths=torch.ones(B + 1, dtype=torch.int64)[1:])
            network.x, network.target = network.x[1:], network.target[1:]
            both_ways(triton, network, [torch.randn(T + 1, B)[1:], *torch.randn(2, L, B, 8)])
    assert [len(kernel.device_caches[pretended_gpu][0]) for kernel in compiling.kernels] == [1, 1]
