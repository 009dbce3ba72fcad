"""The whole network's loss against its parts under autograd, and as PyTorch sees it."""

import contextlib
import math

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import _backend, composed, cpu, reference, triton
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from fusedmdn import FusedLSTMMDN

from ..accuracy import assert_accurate
from ..conftest import simulated
from .problems import double, poisoned
from .test_generate import weights
from .test_library import REGISTRATION, op
from .test_lstm import assert_gradients_match
from .test_mdn_nll import rows

T, B, H, M, I = 5, 4, 6, 2, 3
LENGTHS = torch.tensor([5, 0, 2, 4])
LOGITS = {"bernoulli": 1, "categorical": 3}


class Network:
    """Random inputs and weights that require gradients; `options` are those of the operator."""

    def __init__(self, L=2, dtype=torch.float64, device="cpu", sizes=(T, B, H, M, I), lengths=None, **options):
        T, B, H, M, I = sizes
        self.options = {"pen": "bernoulli", "means": "linear", "skip": False, "peephole": False} | options
        self.options = {"num_mixtures": M, "clip_gates": None, "clip_output": None} | self.options
        pen, peephole = self.options["pen"], self.options["peephole"]
        self.lengths = None if lengths is None else lengths.to(device)
        self.x = torch.randn(T, B, I).to(device, dtype)
        self.target = rows(pen, T, B, dtype=torch.float64 if dtype == torch.float64 else torch.float32).to(device)
        self.weights = weights(I, H, LOGITS[pen] + 6 * M, L, self.options["skip"], peephole, dtype, device)
        self.h0 = torch.randn(L, B, H).to(device, dtype)
        self.c0 = torch.randn(L, B, H).to(device, reference.accumulate(dtype))

    def differentiable(self):
        """All that has a gradient."""
        return [v.requires_grad_() for v in (self.x, self.target, self.h0, self.c0, *self.weights)]

    def arguments(self, save=True):
        """Of the operator without checks."""
        o = self.options
        return (self.x, self.target, self.weights, self.h0, self.c0, self.lengths, o["num_mixtures"], o["pen"],
                o["means"], o["skip"], o["peephole"], o["clip_gates"], o["clip_output"], save)  # fmt: skip

    def run(self, x=None, target=None):
        x, target = (self.x if x is None else x), (self.target if target is None else target)
        nll, state = ops.lstm_mdn_nll(x, target, self.weights, (self.h0, self.c0), lengths=self.lengths, **self.options)
        return nll, *state

    def parts(self):
        """The same by the operators that it is composed of."""
        o, each = self.options, 4 + self.options["peephole"]
        outputs, last = [], []
        for n in range(len(self.h0)):
            weight_ih, weight_hh, bias_ih, bias_hh, *peephole = self.weights[n * each : n * each + each]
            below = self.x if n == 0 else torch.cat([self.x, outputs[-1]], -1) if o["skip"] else outputs[-1]
            xw = torch.nn.functional.linear(below, weight_ih, bias_ih + bias_hh)
            more = {"peephole": peephole[0] if peephole else None, "clip": o["clip_gates"]}
            h, state = ops.lstm(xw, weight_hh, (self.h0[n], self.c0[n]), lengths=self.lengths, **more)
            outputs.append(h)
            last.append(state)
        top = torch.cat(outputs, -1) if o["skip"] else outputs[-1]
        raw = torch.nn.functional.linear(top, *self.weights[-2:])
        options = {k: o[k] for k in ("num_mixtures", "pen", "means")}
        nll = ops.mdn_nll(raw, self.target, self.lengths, **options, clip=o["clip_output"])
        return nll, *(torch.stack(v) for v in zip(*last, strict=True))


EVERYTHING = {"pen": "categorical", "means": "sigmoid", "skip": True, "peephole": True}
VARIANTS = [
    {"L": 1},
    {"L": 2, "lengths": LENGTHS},
    {"L": 3, "skip": True, "clip_gates": 0.02, "clip_output": 0.05},
    {"L": 2, "lengths": LENGTHS, **EVERYTHING, "clip_gates": 0.02, "clip_output": 0.05},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_its_parts(backend, variant):
    """Outputs and every gradient, clips that bite among them."""
    network = Network(dtype=backend.dtype, device=backend, **variant)
    inputs = network.differentiable()
    assert_gradients_match(network.run(), network.parts(), inputs, **_tolerance(backend))


def _tolerance(backend):
    return {} if backend.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("variant", VARIANTS[:2] + VARIANTS[3:])
def test_gradcheck(float64_backend, variant):
    variant = {k: v for k, v in variant.items() if not k.startswith("clip")}
    network = Network(device=float64_backend, sizes=(3, 3, 2, 2, 3), **variant | {"lengths": torch.tensor([3, 0, 2])})
    inputs = network.differentiable()

    def run(x, target, h0, c0, *w):
        state = {"lengths": network.lengths, **network.options}
        nll, (h_T, c_T) = ops.lstm_mdn_nll(x, target, w, (h0, c0), **state)
        return nll, h_T, c_T

    assert gradcheck(run, inputs)


OUTPUTS = ["nll", "h_T", "c_T", "h", "gates", "cells", "raw"]


@contextlib.contextmanager
def _kernels(name):
    if name == "cpu":
        yield cpu
    elif name == "simulated":
        with simulated():
            yield triton
    else:
        yield reference


def both_ways(module, network, grads):
    """All outputs of the forward and the backward operator of a module, with their names."""
    outputs = module.lstm_mdn_nll(*network.arguments())
    saved, (inputs, options) = outputs[3:], (network.arguments()[:6], network.arguments()[6:-1])
    dx, dtarget, dweights, dh0, dc0 = module.lstm_mdn_nll_backward(*grads, *inputs, *saved, *options, True, True)
    names = [f"weights[{k}]" for k in range(len(dweights))]
    return dict(zip(OUTPUTS, outputs, strict=True)) | dict(
        zip(["dx", "dtarget", *names, "dh0", "dc0"], [dx, dtarget, *dweights, dh0, dc0], strict=True)
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cpu", torch.float32),
        ("cpu", torch.bfloat16),
        ("simulated", torch.float32),
        ("simulated", torch.bfloat16),
        ("simulated", torch.float16),
    ],
)
@pytest.mark.parametrize("variant", [VARIANTS[1], VARIANTS[2], VARIANTS[3]])
def test_accuracy(name, dtype, variant):
    """The accuracy rule for everything that either direction gives.

    Output and targets are small: a narrow component, or a far target, makes the largest error a matter of one rounding.
    """
    B, results = 16, {}
    if "lengths" in variant:
        variant = variant | {"lengths": LENGTHS.repeat(4)}
    for _ in range(5):
        network, exact = (Network(dtype=d, sizes=(T, B, 9, M, I), **variant) for d in (dtype, torch.float64))
        network.weights[-2:] = [w / 8 for w in network.weights[-2:]]
        network.target[..., :2] /= 4
        for key in ("x", "target", "weights", "h0", "c0"):
            setattr(exact, key, double(getattr(network, key)))
        grads = [torch.randn(T, B), *(torch.randn(network.c0.shape) for _ in range(2))]
        with _kernels(name) as module, poisoned():
            got = both_ways(module, network, grads)
        same, truth = both_ways(reference, network, grads), both_ways(reference, exact, double(grads))
        for values in (got, same, truth) if network.lengths is not None else ():
            values["raw"] = torch.where(reference.alive(T, network.lengths), values["raw"], 0)  # it may hold anything
        for key, value in got.items():
            for kept, v in zip(results.setdefault(key, ([], [], [])), (value, same[key], truth[key]), strict=True):
                kept.append(v.flatten())
    for key, values in results.items():
        assert_accurate(key, *map(torch.cat, values))


def test_what_masked_steps_hold_does_not_matter(backend):
    network = Network(dtype=backend.dtype, device=backend, lengths=LENGTHS, **EVERYTHING)
    inputs = network.differentiable()
    masked = ~reference.alive(T, network.lengths)
    with torch.no_grad():
        network.h0[:, 1] = network.c0[:, 1] = math.nan  # of the sequence without steps
    results = []
    for hole in (0.0, math.nan):
        nll, h_T, c_T = network.run(*(torch.where(masked, hole, v) for v in (network.x, network.target)))
        incoming = [torch.where(masked[..., 0], math.nan, torch.ones_like(nll)), *map(torch.ones_like, (h_T, c_T))]
        results.append((nll, *torch.autograd.grad([nll, h_T, c_T], inputs, incoming)))
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    assert not results[0][0][masked[..., 0]].any()
    assert not results[0][1][masked[..., 0]].any()


@pytest.mark.parametrize("options", [{}, {**EVERYTHING, "clip_gates": 0.02}])
def test_packed_rows_equal_padded_ones(backend, options):
    lengths = torch.tensor([5, 4, 2, 0])
    network = Network(dtype=backend.dtype, device=backend, lengths=lengths, **options)
    inputs = network.differentiable()
    live = reference.alive(T, network.lengths)[..., 0]
    nll, *state = network.run()
    packed, *its_state = network.run(network.x[live], network.target[live])
    assert_gradients_match((packed, *its_state), (nll[live], *state), inputs, **_tolerance(backend))


def test_any_one_output_and_any_one_input(backend):
    """Gradients that are not there are zero, and what needs none gets none."""
    network = Network(dtype=backend.dtype, device=backend, skip=True)
    inputs = network.differentiable()
    everything = network.run()
    for k in range(3):
        weight = torch.randn_like(everything[k])
        total = torch.autograd.grad((everything[k] * weight).sum(), inputs, retain_graph=True)
        for j in (0, 1, 2, 4):
            for v in inputs:
                v.requires_grad_(v is inputs[j])
            if k and j == 1:
                continue  # the target has no part in the state
            assert torch.equal(torch.autograd.grad((network.run()[k] * weight).sum(), inputs[j])[0], total[j])
        for v in inputs:
            v.requires_grad_()


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_empty(backend, T, B):
    network = Network(dtype=backend.dtype, device=backend, sizes=(T, B, H, M, I), **EVERYTHING)
    inputs = network.differentiable()
    nll, h_T, c_T = network.run()
    assert nll.shape == (T, B)
    if T == 0:
        torch.testing.assert_close((h_T, c_T), (network.h0, network.c0))
    gradients = torch.autograd.grad(nll.sum() + (h_T + c_T).sum(), inputs)
    assert all(g.shape == v.shape for g, v in zip(gradients, inputs, strict=True))
    assert all(g.isfinite().all() for g in gradients)


def test_inputs_of_any_width_and_no_given_state(backend):
    """Inputs too wide to be multiplied together with the bias."""
    for I in (1, 40):
        network = Network(dtype=backend.dtype, device=backend, sizes=(T, B, H, M, I), skip=True)
        inputs = network.differentiable()
        assert_gradients_match(network.run(), network.parts(), inputs, **_tolerance(backend))
        with torch.no_grad():
            nll, _ = ops.lstm_mdn_nll(network.x, network.target, network.weights, **network.options)
            network.h0, network.c0 = torch.zeros_like(network.h0), torch.zeros_like(network.c0)
            assert torch.equal(nll, network.run()[0])


def test_repeatable_bit_for_bit(backend):
    network = Network(dtype=torch.float32, device=backend, lengths=LENGTHS, **EVERYTHING)
    inputs = network.differentiable()
    results = [network.run() for _ in range(2)]
    gradients = [torch.autograd.grad(sum(v.sum() for v in r), inputs) for r in results]
    for a, b in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        assert torch.equal(a, b)


def test_blocks_of_steps_change_nothing(monkeypatch):
    """The reference looks at a few steps at a time; with one, several and all of them the results are the same."""
    network = Network(lengths=LENGTHS, **EVERYTHING)
    grads = [torch.randn(T, B).double(), *(torch.randn_like(network.c0) for _ in range(2))]
    results = []
    for at_once in (1, 2 * B, None):
        monkeypatch.setattr(reference, "KERNELS", reference.KERNELS._replace(rows_at_once=at_once))
        results.append(both_ways(reference, network, grads))
    for other in results[1:]:
        for key, value in results[0].items():
            torch.testing.assert_close(value, other[key])


class Sizes(TorchDispatchMode):
    """The most elements that an operation gave, but for views."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for v in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(v, torch.Tensor) and not function.is_view:
                self.most = max(self.most, v.numel())
        return out


@pytest.mark.parametrize("save", [False, True])
def test_nothing_of_the_mixture_s_size_is_made(monkeypatch, save):
    """Of steps, sequences and components: blocks of steps alone, in both directions; raw is kept for backward."""
    T, B, H, M = 64, 4, 2, 50
    monkeypatch.setattr(reference, "KERNELS", reference.KERNELS._replace(rows_at_once=16))
    network = Network(L=1, dtype=torch.float32, sizes=(T, B, H, M, I))
    D, block = 1 + 6 * M, 16 * (1 + 6 * M)
    raw = T * B * D

    def largest(run):
        with Sizes() as sizes:
            result = run()
        return sizes.most, result

    most, outputs = largest(lambda: reference.lstm_mdn_nll(*network.arguments(save)))
    assert most == (raw if save else block)
    assert largest(lambda: cpu.lstm_mdn_nll(*network.arguments(save)))[0] == raw
    if save:
        grads = torch.randn(T, B), *(torch.randn(network.c0.shape) for _ in range(2))
        inputs, options = network.arguments()[:6], network.arguments()[6:-1]
        seen = []
        real = reference.mdn_nll_backward

        def watched(*arguments):
            most, result = largest(lambda: real(*arguments))
            seen.append(most)
            return result

        monkeypatch.setattr(reference, "KERNELS", reference.KERNELS._replace(mdn_nll_backward=watched))
        most, _ = largest(
            lambda: reference.lstm_mdn_nll_backward(*grads, *inputs, *outputs[3:], *options, False, False)
        )
        assert len(seen) == T * B // 16
        assert max(seen) == block
        assert most == raw  # the gradient of raw


def test_layers_write_into_one_block():
    """Nothing that backward needs is copied: the projection becomes the gates where it lies."""
    seen = []

    def lstm(xw, *arguments, out):
        h, gates, _ = out
        seen.append((xw.data_ptr() == gates.data_ptr(), h.is_contiguous(), gates.is_contiguous()))
        return reference.lstm(xw, *arguments, out=out)

    network = Network(L=3, skip=True)
    results = composed.forward(reference.KERNELS._replace(lstm=lstm), *network.arguments())
    assert seen == [(True, True, True)] * 3
    for got, expected in zip(results, reference.lstm_mdn_nll(*network.arguments()), strict=True):
        assert torch.equal(got, expected)


def test_layers_that_begin_anywhere_in_memory():
    """Slices that are no multiple of 16 bytes apart, which Triton kernels cannot write into."""
    network = Network(L=3, dtype=torch.bfloat16, sizes=(3, 3, 3, M, I), skip=True, peephole=True)
    with simulated():
        got = triton.lstm_mdn_nll(*network.arguments())
        assert any(v.data_ptr() % 16 for v in got[3])
    for name, a, b in zip(OUTPUTS, got, reference.lstm_mdn_nll(*network.arguments()), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02, msg=name)


# As PyTorch sees it


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("options", [{}, {**EVERYTHING, "clip_gates": 1.0, "clip_output": 1.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype, options, lengths):
    utils = REGISTRATION if dtype == torch.bfloat16 else [*REGISTRATION, "test_aot_dispatch_dynamic"]
    network = Network(dtype=dtype, lengths=lengths, **options)
    network.differentiable()
    opcheck(op("lstm_mdn_nll"), network.arguments(), test_utils=utils)
    for v in network.differentiable():
        v.requires_grad_(False)
    opcheck(op("lstm_mdn_nll"), network.arguments(save=False))
    nll, h_T, c_T, *saved = op("lstm_mdn_nll")(*network.arguments())
    inputs, given = network.arguments()[:6], network.arguments()[6:-1]
    for want in (False, True):
        opcheck(op("lstm_mdn_nll_backward"), (nll, h_T, c_T, *inputs, *saved, *given, want, want))


def test_compiled_forward_and_backward_is_one_graph():
    network = Network(dtype=torch.float32, lengths=LENGTHS, **EVERYTHING)
    inputs = network.differentiable()

    def loss(x, target):
        nll, h_T, c_T = network.run(x, target)
        return nll.sum() + h_T.sum() + c_T.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, got = (f(network.x, network.target) for f in (loss, compiled))
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(v, inputs) for v in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_export_keeps_the_operator_whole():
    model = FusedLSTMMDN(3, 8, 2, 3, skip=True, peephole=True)

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, target, lengths):
            return self.model(x, lengths=lengths, target=target)

    x, lengths = torch.randn(6, 4, 3), torch.tensor([6, 2, 0, 5])
    time = torch.export.Dim("T", min=2, max=50)
    with torch.no_grad():
        program = torch.export.export(Loss(), (x, x, lengths), dynamic_shapes=({0: time}, {0: time}, None))
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert "fusedmdn.lstm_mdn_nll.default" in names
        assert "fusedmdn.lstm.default" not in names
        longer = torch.randn(9, 4, 3)
        torch.testing.assert_close(program.module()(longer, longer, lengths), Loss()(longer, longer, lengths))


def test_autocast_runs_matrix_products_in_bfloat16():
    network = Network(dtype=torch.float32, **EVERYTHING)
    inputs = network.differentiable()
    with torch.autocast("cpu", torch.bfloat16):
        nll, h_T, c_T = network.run()
    assert (nll.dtype, h_T.dtype, c_T.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    gradients = torch.autograd.grad(nll.sum(), inputs, allow_unused=True)
    assert all(g.dtype == v.dtype for g, v in zip(gradients, inputs, strict=True))
    by_hand = Network(dtype=torch.bfloat16, **EVERYTHING)
    by_hand.target, by_hand.c0 = network.target, network.c0
    by_hand.x, by_hand.h0 = network.x.bfloat16(), network.h0.bfloat16()
    peepholes = (4, 9)
    summed = list(network.weights)
    for k in (2, 7):  # the biases, before they are rounded
        summed[k : k + 2] = summed[k] + summed[k + 1], torch.zeros_like(summed[k])
    by_hand.weights = [w if k in peepholes else w.bfloat16() for k, w in enumerate(summed)]
    assert torch.equal(nll, by_hand.run()[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert Network().run()[0].dtype == torch.float64
        with pytest.raises(ValueError, match="h0: expected the dtype of x, torch.float32, got torch.float64"):
            network.h0 = network.h0.double()
            network.run()


def test_second_derivative_is_refused_by_name():
    network = Network()
    x = network.differentiable()[0]
    (gradient,) = torch.autograd.grad(network.run()[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="lstm_mdn_nll_backward .* second derivatives"):
        gradient.sum().backward()


def test_backward_without_saved_tensors_is_refused():
    network = Network()
    network.differentiable()
    nll, *_ = op("lstm_mdn_nll")(*network.arguments(save=False))
    with pytest.raises(RuntimeError, match="lstm_mdn_nll was called with save=False"):
        nll.sum().backward()


def test_nothing_is_saved_without_gradients(monkeypatch):
    network, seen = Network(), []
    inputs = network.differentiable()
    real = composed.forward

    def forward(kernels, *arguments):
        seen.append(arguments[-1])
        return real(kernels, *arguments)

    monkeypatch.setattr(composed, "forward", forward)
    expected = network.run()[0]
    with torch.no_grad():
        torch.testing.assert_close(network.run()[0], expected)
    for v in inputs:
        v.requires_grad_(False)
    network.run()
    assert seen == [True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5)}, r"x: expected shape \(T, B, I\), or \(rows, I\) packed, got \(5,\)"),
        ({"x": torch.zeros(3, 2, 4)}, r"weights\[0\] \(weight_ih\): expected shape \(8, 4\), got \(8, 3\)"),
        ({"target": torch.zeros(3, 2, 5)}, r"target: expected shape \(3, 2, 3\), got \(3, 2, 5\)"),
        ({"x": torch.zeros(3, 2, 3).int()}, r"x: expected floating point, got \(3, 2, 3\) of torch.int32"),
        ({"target": torch.zeros(3, 2, 3, device="meta")}, "target: expected the device of x, cpu, got meta"),
        ({"weights": []}, "weights: expected 4 for each layer and 2, got 0"),
        ({"skip": True}, r"weights\[4\] \(weight_ih\): expected shape \(8, 5\), got \(8, 2\)"),
        ({"peephole": True}, "weights: expected 5 for each layer and 2, got 10"),
        ({"num_mixtures": 3}, r"weights\[8\] \(head weight\): expected shape \(19, 2\), got \(13, 2\)"),
        ({"state": (torch.zeros(1, 2, 2), torch.zeros(2, 2, 2))}, r"h0: expected shape \(2, 2, 2\), got \(1, 2, 2\)"),
        ({"state": (torch.zeros(2, 2, 2), torch.zeros(2, 2, 3))}, r"c0: expected shape \(2, 2, 2\), got \(2, 2, 3\)"),
        (
            {"state": (torch.zeros(2, 2, 2).double(), torch.zeros(2, 2, 2))},
            "h0: expected the dtype of x, torch.float32, got torch.float64",
        ),
        ({"x": torch.zeros(3, 2, 3).double()}, "weights: expected the dtype of x, torch.float64, got torch.float32"),
        ({"lengths": torch.tensor([4, 1])}, r"lengths: expected values in \[0, 3\], got 1 to 4"),
        ({"x": torch.zeros(4, 3), "target": torch.zeros(4, 3)}, "lengths: 4 packed rows need the lengths"),
        ({"pen": "quill"}, "pen must be .* got 'quill'"),
        ({"means": "cubic"}, "means must be .* got 'cubic'"),
        ({"num_mixtures": 0}, "num_mixtures must be >= 1, got 0"),
        ({"clip_gates": 0.0}, "clip_gates must be > 0 or None, got 0.0"),
        ({"clip_output": -1.0}, "clip_output must be > 0 or None, got -1.0"),
    ],
)
def test_errors_name_what_is_wrong(change, message):
    given = {"x": torch.zeros(3, 2, 3), "target": torch.zeros(3, 2, 3), "weights": weights(3, 2, 13, 2)}
    with pytest.raises(ValueError, match=message):
        ops.lstm_mdn_nll(**given | {"num_mixtures": 2} | change)


def test_weights_of_other_dtypes_are_named():
    w = weights(3, 2, 13, 2)
    w[5] = w[5].double()
    message = r"weights\[5\] \(weight_hh\): expected torch.float32 on cpu, got torch.float64"
    with pytest.raises(ValueError, match=message):
        ops.lstm_mdn_nll(torch.zeros(3, 2, 3), torch.zeros(3, 2, 3), w, num_mixtures=2)


# Through the module


def counted(monkeypatch, name):
    """How often an operator of `ops` is called."""
    calls, real = [], getattr(ops, name)

    def call(*arguments, **options):
        calls.append(name)
        return real(*arguments, **options)

    monkeypatch.setattr(ops, name, call)
    return calls


def test_a_hook_of_all_modules_sees_the_head():
    model, seen = FusedLSTMMDN(3, 8, 1, 2), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    with contextlib.ExitStack() as stack:
        stack.callback(handle.remove)
        model.nll(torch.randn(T, B, 3))
        model(torch.randn(T, B, 3), target=torch.randn(T, B, 3))
    assert seen.count(model.head) == 2


def test_what_trains_only_its_head_does_not_go_back_through_the_stack(monkeypatch):
    model, calls = FusedLSTMMDN(3, 8, 2, 2), []
    real = reference.lstm_backward
    with ops.backend("reference"), monkeypatch.context() as patch:
        for name in ("lstm_backward", "lstm_mdn_nll_backward"):
            patch.setitem(_backend._table[name], "reference", lambda *a, name=name: calls.append(name) or real(*a))
        model.requires_grad_(False)
        model.head.requires_grad_(True)
        model.nll(torch.randn(T, B, 3)).backward()
    assert not calls
    assert model.head.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_rows_too(backend, dtype):
    model = FusedLSTMMDN(3, 8, 1, 2).to(backend)
    rows = torch.randint(0, 2, (T, B, 3), device=backend).to(dtype)
    torch.testing.assert_close(model.nll(rows), model.nll(rows.float()))
    torch.testing.assert_close(model(rows.float(), target=rows)[0], model(rows.float(), target=rows.float())[0])


@pytest.mark.parametrize(
    ("prepare", "whole"),
    [
        (lambda m: None, True),
        (lambda m: setattr(m, "dropout", 0.5), False),
        (lambda m: (setattr(m, "dropout", 0.5), m.eval()), True),
        (lambda m: setattr(m, "recompute", True), False),
        (lambda m: m.head.register_forward_hook(lambda *_: None), False),
        (lambda m: m.head.register_forward_pre_hook(lambda *_: None), False),
        (lambda m: m.head.register_full_backward_hook(lambda *_: None), False),
        (lambda m: m.head.register_full_backward_pre_hook(lambda *_: None), False),
        (lambda m: setattr(m.head, "forward", m.head.forward), False),  # as wrappers do
        (lambda m: setattr(m.head, "bias", None), False),
        (lambda m: m.weight_hh_l0.requires_grad_(False), False),  # what is frozen costs no backward pass
        (lambda m: (m.requires_grad_(False), m.head.requires_grad_(True)), False),
        (lambda m: setattr(m, "head", torch.nn.Sequential(m.head)), None),
        (lambda m: torch.nn.utils.parametrizations.weight_norm(m.head), False),
    ],
)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_the_module_calls_it_unless_it_needs_the_layers_one_by_one(monkeypatch, prepare, whole, lengths):
    model = FusedLSTMMDN(3, 8, 2, 2, skip=True)
    prepare(model)
    if whole is None:  # another head, that is like the first
        model.head.weight, model.head.bias, whole = model.head[0].weight, model.head[0].bias, False
    calls, parts = counted(monkeypatch, "lstm_mdn_nll"), counted(monkeypatch, "mdn_nll")
    x = torch.randn(T, B, 3)
    nll, _ = model(x, lengths=lengths, target=x)
    assert (len(calls), len(parts)) == ((1, 0) if whole else (0, 1))
    nll.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    if model.recompute:
        with torch.no_grad():
            model(x, target=x)
        assert len(calls) == 1
