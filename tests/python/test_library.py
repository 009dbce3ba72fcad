"""The operators as PyTorch sees them: registration, compilation, export, autocast, second derivatives."""

import fusedmdn.ops as ops
import pytest
import torch
from torch import nn
from torch.library import opcheck

from fusedmdn import FusedLSTMMDN, StrokeMixture

from .test_generate import start, weights
from .test_lstm import arguments

T, B, H, M = 5, 4, 6, 2
LENGTHS = torch.tensor([5, 0, 2, 4])
# In bfloat16 a compiled step rounds less often than eager PyTorch does, so values are compared in higher precision.
REGISTRATION = ["test_schema", "test_autograd_registration", "test_faketensor"]


def op(name):
    return getattr(torch.ops.fusedmdn, name).default


def permuted(v):
    """The same values in another dense layout."""
    return v.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(v.requires_grad)


@pytest.mark.parametrize("layout", [lambda v: v, permuted])
@pytest.mark.parametrize("lengths", [None, LENGTHS, torch.zeros(B, dtype=torch.int64)])
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_lstm(dtype, peephole, lengths, layout):
    utils = REGISTRATION if dtype == torch.bfloat16 else [*REGISTRATION, "test_aot_dispatch_dynamic"]
    *inputs, p = [layout(v) for v in arguments(T, B, H, dtype)]
    p = p if peephole else None
    opcheck(op("lstm"), (*inputs, p, lengths, 1.0, True), test_utils=utils)
    xw, weight_hh, h0, c0 = (v.detach() for v in inputs)
    p = None if p is None else p.detach()
    opcheck(op("lstm"), (xw, weight_hh, h0, c0, p, lengths, None, False))
    h, h_T, c_T, gates, cells = op("lstm")(xw, weight_hh, h0, c0, p, lengths, None, True)
    opcheck(op("lstm_backward"), (h, h_T, c_T, weight_hh, c0, p, lengths, gates, cells, 1.0))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_lstm_layer(dtype, lengths):
    xw, weight_hh, h0, c0, p = arguments(T, B, H, dtype)
    x, weight_ih, bias = (torch.randn(s, dtype=dtype).requires_grad_() for s in ((T, B, 3), (4 * H, 3), (4 * H,)))
    utils = [*REGISTRATION, "test_aot_dispatch_dynamic"]
    opcheck(op("lstm_layer"), (x, weight_ih, bias, weight_hh, h0, c0, p, lengths, 1.0), test_utils=utils)
    xw, weight_hh, h0, c0, p = (v.detach() for v in (xw, weight_hh, h0, c0, p))
    h, _, _, _, cells = op("lstm")(xw, weight_hh, h0, c0, p, lengths, None, True)
    opcheck(op("lstm_gates"), (xw, weight_hh, h0, c0, p, lengths, h, cells))


@pytest.mark.parametrize("layout", [lambda v: v, permuted])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(("pen", "P", "width"), [("bernoulli", 1, 3), ("categorical", 3, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_opcheck_mdn_nll(dtype, pen, P, width, lengths, layout):
    raw = layout(torch.randn(T, B, P + 6 * M, dtype=dtype).requires_grad_())
    target = layout(torch.randn(T, B, width, dtype=dtype).requires_grad_())
    utils = REGISTRATION if dtype == torch.bfloat16 else [*REGISTRATION, "test_aot_dispatch_dynamic"]
    opcheck(op("mdn_nll"), (raw, target, lengths, pen, M, "linear", 1.0), test_utils=utils)
    grad = torch.randn(T, B, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for want_target in (False, True):
        arguments = (grad, raw.detach(), target.detach(), lengths, pen, M, "sigmoid", None, want_target)
        opcheck(op("mdn_nll_backward"), arguments)


@pytest.mark.parametrize("prime", [False, True])
@pytest.mark.parametrize(("pen", "P", "width"), [("bernoulli", 1, 3), ("categorical", 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_generate(dtype, pen, P, width, prime):
    w = weights(width, H, P + 6 * M, 2, True, True, dtype)
    state = start(B, width, H, 2)
    given = (torch.randn(B, 5, width), LENGTHS) if prime else (None, None)
    ones = torch.ones(B)
    state = state._replace(h=permuted(state.h), c=permuted(state.c))
    seed = torch.stack([state.seed, state.first_index])
    opcheck(op("generate"), (w, *state[:5], seed, 4, ones, ones, *given, M, pen, "linear", True, True))


@pytest.fixture
def model():
    return FusedLSTMMDN(3, 8, 2, 3, skip=True, peephole=True)


def test_compiled_training_step_is_one_graph(model):
    x = torch.randn(7, 4, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for T in (7, 5, 6):
        expected, _ = model(x[:T], target=x[:T])
        gradients = torch.autograd.grad(expected.sum(), model.parameters())
        nll, _ = compiled(x[:T], target=x[:T])
        torch.testing.assert_close(nll, expected)
        for got, want in zip(torch.autograd.grad(nll.sum(), model.parameters()), gradients, strict=True):
            torch.testing.assert_close(got, want)


def test_compiled_by_inductor(model):
    """The default compiler, with ragged lengths and the loss's reduction inside the graph."""
    x, lengths = torch.randn(6, 4, 3), torch.tensor([6, 2, 0, 5])
    loss = torch.compile(lambda x, n: model.nll(x, n), fullgraph=True)(x, lengths)
    torch.testing.assert_close(loss, model.nll(x, lengths))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, model.parameters()))


def test_compiled_module_gives_a_mixture(model):
    x = torch.randn(6, 4, 3)
    mixture, (h, _) = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert isinstance(mixture, StrokeMixture)
    expected, (h_expected, _) = model(x)
    torch.testing.assert_close((mixture.raw, h), (expected.raw, h_expected))
    torch.testing.assert_close(mixture.log_prob(x), expected.log_prob(x))


def test_compiled_sampling_does_not_freeze_its_options(model):
    """Another seed, bias or temperature is the same graph."""
    w = [v.detach() for v in model._weights()]
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def sample(state, bias, temperature):
        return ops.generate(w, state, 6, num_mixtures=3, skip=True, peephole=True, bias=bias, temperature=temperature)

    compiled = torch.compile(sample, fullgraph=True, backend=count)
    for seed, bias, temperature in ((1, 0.0, 1.0), (2, 0.5, 0.7), (-3, 1.0, 2.0)):
        arguments = start(4, 3, 8, 2, seed=seed), torch.tensor(bias), torch.tensor(temperature)
        assert torch.equal(compiled(*arguments)[0], sample(*arguments)[0])
    assert len(graphs) == 1


def test_export_keeps_the_operators(model):
    x, lengths = torch.randn(6, 4, 3), torch.tensor([6, 2, 0, 5])
    time = torch.export.Dim("T", min=2, max=50)
    with torch.no_grad():
        program = torch.export.export(model, (x, None, lengths), dynamic_shapes=({0: time}, None, None))
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert "fusedmdn.lstm.default" in names
        longer = torch.randn(9, 4, 3)
        mixture, state = program.module()(longer, None, lengths)
        expected, expected_state = model(longer, None, lengths)
    assert isinstance(mixture, StrokeMixture)
    torch.testing.assert_close(mixture.raw, expected.raw)
    torch.testing.assert_close(state, expected_state)


def test_autocast_runs_matrix_products_in_bfloat16():
    xw, weight_hh, h0, c0, p = arguments(T, B, 16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        h, (h_T, c_T) = ops.lstm(xw, weight_hh, (h0, c0), peephole=p)
        nll = ops.mdn_nll(torch.randn(T, B, 13).bfloat16(), torch.randn(T, B, 3), num_mixtures=2)
    assert (h.dtype, h_T.dtype, c_T.dtype, nll.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)
    by_hand, _ = ops.lstm(xw.bfloat16(), weight_hh.bfloat16(), (h0.bfloat16(), c0), peephole=p)
    assert torch.equal(h, by_hand)
    gradients = torch.autograd.grad(h.float().sum(), [xw, weight_hh, h0, c0, p])
    assert all(g.dtype == torch.float32 for g in gradients)


def test_autocast_leaves_float64_alone():
    xw, weight_hh, *_ = arguments(T, B, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.lstm(xw, weight_hh)[0].dtype == torch.float64


def test_second_derivative_is_refused_by_name():
    xw, weight_hh, *_ = arguments(T, B, H)
    (gradient,) = torch.autograd.grad(ops.lstm(xw, weight_hh)[0].sum(), xw, create_graph=True)
    with pytest.raises(RuntimeError, match="lstm_backward .* second derivatives"):
        gradient.sum().backward()
    raw = torch.randn(T, B, 13, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        ops.mdn_nll(raw, torch.randn(T, B, 3), num_mixtures=2).sum(), raw, create_graph=True
    )
    with pytest.raises(RuntimeError, match="mdn_nll_backward .* second derivatives"):
        gradient.sum().backward()


def test_backward_without_saved_tensors_is_refused():
    xw, weight_hh, h0, c0, _ = arguments(T, B, H)
    h, *_ = op("lstm")(xw, weight_hh, h0, c0, None, None, None, False)
    with pytest.raises(RuntimeError, match="save=False"):
        h.sum().backward()


def test_backward_under_autocast_keeps_its_precision():
    """A float32 operator back-propagated inside an autocast region is back-propagated in float32."""
    xw, weight_hh = inputs = arguments(T, B, H, torch.float32)[:2]
    h, _ = ops.lstm(xw, weight_hh)
    expected = torch.autograd.grad(h.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(torch.autograd.grad(h.sum(), inputs), expected, strict=True):
            assert torch.equal(got, want)


def test_dtypes_that_autocast_cannot_unify_are_named():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="weight_hh: expected the dtype of xw"):
        ops.lstm(torch.zeros(3, 2, 8), torch.zeros(8, 2, dtype=torch.float64))


def test_meta_tensors_give_shapes():
    model = FusedLSTMMDN(3, 8, 2, 2, device="meta")
    x = torch.zeros(4, 2, 3, device="meta")
    assert model(x)[0].raw.shape == (4, 2, 13)
    assert model.nll(x).shape == ()


def test_stays_differentiable_inside_functional_calls():
    """nn.Module surgery that people use: functional_call with other weights."""
    model = FusedLSTMMDN(3, 4, 1, 2)
    other = {name: v.detach().clone().requires_grad_() for name, v in model.named_parameters()}
    x = torch.randn(5, 2, 3)
    nll, _ = torch.func.functional_call(model, other, (x,), {"target": x})
    assert all(g.any() for g in torch.autograd.grad(nll.sum(), list(other.values())))
    assert isinstance(model.head, nn.Linear)
