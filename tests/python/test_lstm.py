"""The recurrence against nn.LSTM, a scalar loop, autograd with hooks, and finite differences."""

import copy
import math

import fusedmdn.ops as ops
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..accuracy import assert_accurate


def arguments(T, B, H, dtype=None, device="cpu"):
    """xw, weight_hh, h0, c0, peephole, all requiring gradients; in the dtype of the device, or float64."""
    dtype = dtype or getattr(device, "dtype", torch.float64)
    shapes = (T, B, 4 * H), (4 * H, H), (B, H), (B, H), (3, H)
    return [torch.randn(s, dtype=dtype, device=device).requires_grad_() for s in shapes]


def run(xw, weight_hh, h0, c0, peephole=None, lengths=None, clip=None):
    h, state = ops.lstm(xw, weight_hh, (h0, c0), peephole=peephole, lengths=lengths, clip=clip)
    return h, *state


def assert_gradients_match(ours, theirs, inputs, **tolerance):
    torch.manual_seed(1)
    weights = [torch.randn_like(v) for v in theirs]
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, **tolerance)
    for got, expected in zip(
        torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, ours, strict=True)), inputs),
        torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, theirs, strict=True)), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 3, 5), (20, 4, 33)])
def test_equals_nn_lstm(backend, sizes):
    """In float64; in float32, where both round, as near to nn.LSTM in float64 as nn.LSTM in float32 is."""
    (T, B, H), dtype = sizes, backend.dtype
    lstm = nn.LSTM(6, H, dtype=dtype, device=backend)
    x = torch.randn(T, B, 6, dtype=dtype, device=backend, requires_grad=True)
    h0, c0 = (torch.randn(B, H, dtype=dtype, device=backend, requires_grad=True) for _ in range(2))
    xw = nn.functional.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    expected, (h_T, c_T) = lstm(x, (h0[None], c0[None]))
    leaves, ours, theirs = (
        [x, h0, c0, *lstm.parameters()],
        run(xw, lstm.weight_hh_l0, h0, c0),
        (expected, h_T[0], c_T[0]),
    )
    if dtype == torch.float64:
        assert_gradients_match(ours, theirs, leaves)
        return
    double = copy.deepcopy(lstm).double()
    x64, h64, c64 = (v.detach().double().requires_grad_() for v in (x, h0, c0))
    expected, (h_T, c_T) = double(x64, (h64[None], c64[None]))
    exact, exact_leaves = (expected, h_T[0], c_T[0]), [x64, h64, c64, *double.parameters()]
    grads = [torch.randn_like(v) for v in theirs]
    results = [
        (*outputs, *torch.autograd.grad(outputs, inputs, [g.to(outputs[0].dtype) for g in grads]))
        for outputs, inputs in ((ours, leaves), (theirs, leaves), (exact, exact_leaves))
    ]
    for name, values in enumerate(zip(*results, strict=True)):
        assert_accurate(str(name), *(v.detach() for v in values))


def test_ragged_equals_packed_nn_lstm(backend):
    T, B, H, lengths = 9, 5, 4, torch.tensor([9, 1, 4, 9, 3])
    lstm = nn.LSTM(6, H, dtype=backend.dtype, device=backend)
    x = torch.randn(T, B, 6, dtype=backend.dtype, device=backend, requires_grad=True)
    h0, c0 = (torch.randn(B, H, dtype=backend.dtype, device=backend, requires_grad=True) for _ in range(2))
    packed, (h_T, c_T) = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False), (h0[None], c0[None]))
    expected, _ = pad_packed_sequence(packed, total_length=T)
    xw = nn.functional.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    ours = run(xw, lstm.weight_hh_l0, h0, c0, lengths=lengths.to(backend))
    assert_gradients_match(ours, (expected, h_T[0], c_T[0]), [x, h0, c0, *lstm.parameters()])


def test_peepholes_equal_a_scalar_loop(backend):
    T, B, H = 6, 2, 3
    xw, weight_hh, h0, c0, p = (v.detach() for v in arguments(T, B, H, device=backend))
    h, _, c_T = run(xw, weight_hh, h0, c0, p)
    rtol = 1e-12 if backend.dtype == torch.float64 else 1e-5
    z, w, p = xw.cpu().numpy(), weight_hh.cpu().numpy(), p.cpu().numpy()
    for b in range(B):
        h_b, c_b = list(h0[b].tolist()), list(c0[b].tolist())
        for t in range(T):
            pre = [z[t, b, k] + sum(w[k, j] * h_b[j] for j in range(H)) for k in range(4 * H)]
            for k in range(H):
                i = 1 / (1 + math.exp(-(pre[k] + p[0, k] * c_b[k])))
                f = 1 / (1 + math.exp(-(pre[H + k] + p[1, k] * c_b[k])))
                c_b[k] = f * c_b[k] + i * math.tanh(pre[2 * H + k])
                h_b[k] = math.tanh(c_b[k]) / (1 + math.exp(-(pre[3 * H + k] + p[2, k] * c_b[k])))
            np.testing.assert_allclose(h[t, b].cpu(), h_b, rtol=rtol)
        np.testing.assert_allclose(c_T[b].cpu(), c_b, rtol=rtol)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 0, 2, 4]])
def test_gradcheck(float64_backend, peephole, lengths):
    inputs = arguments(5, 4, 3, device=float64_backend)[: 5 if peephole else 4]
    lengths = None if lengths is None else torch.tensor(lengths, device=float64_backend)
    assert gradcheck(lambda *v: run(*v, lengths=lengths), inputs)


@pytest.mark.parametrize("lengths", [None, [5, 0, 2, 4]])
def test_layer_that_recomputes(backend, lengths):
    """The projection and the recurrence apart, gates kept: the same outputs and gradients; padded rows may hold NaN."""
    _, weight_hh, h0, c0, p = arguments(5, 4, 3, device=backend)
    shapes = (5, 4, 6), (12, 6), (12,)
    x, weight_ih, bias = (torch.randn(s, dtype=backend.dtype, device=backend).requires_grad_() for s in shapes)
    lengths = None if lengths is None else torch.tensor(lengths, device=backend)
    options = {"peephole": p, "lengths": lengths, "clip": 0.5}
    given = x
    if lengths is not None:
        given = torch.where(torch.arange(5, device=backend)[:, None, None] < lengths[:, None], x, math.nan)
    h, state = ops.lstm_layer(given, weight_ih, bias, weight_hh, (h0, c0), **options)
    xw = nn.functional.linear(x, weight_ih, bias)
    expected, expected_state = ops.lstm(xw, weight_hh, (h0, c0), **options)
    inputs = [x, weight_ih, bias, weight_hh, h0, c0, p]
    assert_gradients_match((h, *state), (expected, *expected_state), inputs)


def test_layer_refuses_by_name():
    x, weight_ih, bias, weight_hh = torch.zeros(4, 2, 3), torch.zeros(8, 3), torch.zeros(8), torch.zeros(8, 2)
    for place, value, message in (
        (0, x[0, 0], r"x: expected shape \(T, B, I\), or \(rows, I\) packed, got \(3,\)"),
        (1, bias, r"weight_ih: expected shape \(8, 3\), got \(8,\)"),
        (2, bias[1:], r"bias: expected shape \(8,\), got \(7,\)"),
        (3, weight_ih, r"weight_hh: expected shape \(12, 3\), got \(8, 3\)"),
        (3, weight_hh.double(), "weight_hh: expected the dtype of x, torch.float32, got torch.float64"),
    ):
        arguments = [x, weight_ih, bias, weight_hh]
        arguments[place] = value
        with pytest.raises(ValueError, match=message):
            ops.lstm_layer(*arguments)


def clipped_loop(xw, weight_hh, h, c, peephole, lengths, bound):
    """Per-step clipping as autograd does it: a hook on every step's pre-activations."""
    hs = []
    for t in range(xw.shape[0]):
        z = xw[t] + h @ weight_hh.t()
        zi, zf, zg, zo = z.chunk(4, dim=-1)
        if peephole is not None:
            zi, zf = zi + peephole[0] * c, zf + peephole[1] * c
        for v in (zi, zf, zg):
            v.register_hook(lambda gradient: gradient.clamp(-bound, bound))
        new_c = torch.sigmoid(zf) * c + torch.sigmoid(zi) * torch.tanh(zg)
        zo = zo + (0 if peephole is None else peephole[2] * new_c)
        zo.register_hook(lambda gradient: gradient.clamp(-bound, bound))
        new_h = torch.sigmoid(zo) * torch.tanh(new_c)
        live = (t < lengths)[:, None]
        h, c = torch.where(live, new_h, h), torch.where(live, new_c, c)
        hs.append(torch.where(live, new_h, 0))
    return torch.stack(hs), h, c


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("bound", [0.01, 0.3, 100.0])
def test_clipping_inside_backpropagation(backend, peephole, bound):
    *inputs, p = arguments(6, 4, 3, device=backend)
    p = p if peephole else None
    lengths = torch.tensor([6, 3, 0, 5], device=backend)
    ours, theirs = run(*inputs, p, lengths, bound), clipped_loop(*inputs, p, lengths, bound)
    assert_gradients_match(ours, theirs, [*inputs, p] if peephole else inputs)


def test_what_masked_steps_hold_does_not_matter(backend):
    xw, weight_hh, h0, c0, p = arguments(5, 3, 4, device=backend)
    lengths = torch.tensor([5, 2, 0], device=backend)
    with torch.no_grad():
        for b, n in enumerate(lengths):
            xw[n:, b] = math.nan
        c0[2] = h0[2] = math.nan
    h, h_T, c_T = run(xw, weight_hh, h0, c0, p, lengths)
    assert h.isfinite().all()
    assert not h[2:, 1].any()
    assert not h[:, 2].any()
    assert h_T[2].isnan().all()  # an empty sequence hands its state on, as it is
    torch.testing.assert_close(h_T[1], h[1, 1])
    incoming = torch.ones_like(h).masked_fill(
        torch.arange(5, device=backend)[:, None, None] >= lengths[:, None], math.nan
    )
    ends = [torch.ones_like(h_T), torch.ones_like(c_T)]
    gradients = torch.autograd.grad([h, h_T, c_T], [xw, weight_hh, h0, c0, p], [incoming, *ends])
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][2:, 1].any()
    assert not gradients[0][:, 2].any()


def test_any_one_output_and_any_one_input(backend):
    """Gradients that are not there are zero, and what needs none gets none."""
    inputs = arguments(4, 2, 3, device=backend)
    everything = run(*inputs)
    for k in range(3):
        weight = torch.randn_like(everything[k])
        total = torch.autograd.grad((everything[k] * weight).sum(), inputs, retain_graph=True, allow_unused=True)
        for j, v in enumerate(inputs):
            alone = [u if u is v else u.detach() for u in inputs]
            (got,) = torch.autograd.grad((run(*alone)[k] * weight).sum(), v)
            assert torch.equal(got, total[j])


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_empty(backend, T, B):
    inputs = arguments(T, B, 5, device=backend)
    h, h_T, c_T = run(*inputs)
    assert h.shape == (T, B, 5)
    torch.testing.assert_close((h_T, c_T), (inputs[2], inputs[3]) if T == 0 else (h_T, c_T))
    gradients = torch.autograd.grad(h.sum() + (h_T + c_T).sum(), inputs)
    assert all(g.shape == v.shape for g, v in zip(gradients, inputs, strict=True))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.booleans(), st.data())
def test_pieces_equal_the_whole(T, B, H, peephole, data):
    """Any cut in time, with the state carried over, gives the same outputs and gradients."""
    cut = data.draw(st.integers(0, T))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    xw, weight_hh, h0, c0, p = arguments(T, B, H)
    p = p if peephole else None
    whole = run(xw, weight_hh, h0, c0, p, lengths)
    h1, *state = run(xw[:cut], weight_hh, h0, c0, p, lengths.clamp(max=cut))
    h2, *state = run(xw[cut:], weight_hh, *state, p, (lengths - cut).clamp(min=0))
    assert_gradients_match((torch.cat([h1, h2]), *state), whole, [xw, weight_hh, h0, c0])


def test_bfloat16_keeps_the_cell_state_in_float32(backend):
    xw, weight_hh, *_ = arguments(9, 4, 16, torch.bfloat16, backend)
    h, (h_T, c_T) = ops.lstm(xw, weight_hh)
    assert (h.dtype, h_T.dtype, c_T.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    with ops.backend("reference"):
        exact, _ = ops.lstm(xw.double(), weight_hh.double())
    assert (h - exact).abs().max() < 0.05
    gradient = torch.autograd.grad(h.sum(), xw)[0]
    with ops.backend("reference"):
        exact_gradient = torch.autograd.grad(exact.sum(), xw)[0]
    assert gradient.dtype == torch.bfloat16
    assert (gradient - exact_gradient).abs().max() < 0.05


def test_repeatable_bit_for_bit(backend):
    inputs = arguments(12, 8, 32, torch.float32, backend)
    results = [run(*inputs) for _ in range(2)]
    gradients = [torch.autograd.grad(sum(v.sum() for v in r), inputs) for r in results]
    for a, b in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xw": (3, 2, 7)}, r"xw: expected shape \(T, B, 4H\), or .* packed, got \(3, 2, 7\)"),
        ({"weight_hh": (8, 3)}, r"weight_hh: expected shape \(8, 2\), got \(8, 3\)"),
        ({"h0": (2, 3)}, r"h0: expected shape \(2, 2\), got \(2, 3\)"),
        ({"c0": (1, 2)}, r"c0: expected shape \(2, 2\), got \(1, 2\)"),
        ({"peephole": (2, 2)}, r"peephole: expected shape \(3, 2\), got \(2, 2\)"),
    ],
)
def test_bad_shapes(change, message):
    shapes = {"xw": (3, 2, 8), "weight_hh": (8, 2), "h0": (2, 2), "c0": (2, 2), "peephole": (3, 2)} | change
    v = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        ops.lstm(v["xw"], v["weight_hh"], (v["h0"], v["c0"]), peephole=v["peephole"])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1, 4]), r"values in \[0, 3\], got 1 to 4"),
        (torch.tensor([-1, 2]), r"values in \[0, 3\], got -1 to 2"),
        (torch.tensor([1.0, 2.0]), "expected integers, got torch.float32"),
        (torch.tensor([1]), r"shape \(2,\), got \(1,\)"),
    ],
)
def test_bad_lengths(lengths, message):
    with pytest.raises(ValueError, match=message):
        ops.lstm(torch.zeros(3, 2, 8), torch.zeros(8, 2), lengths=lengths)


def test_bad_dtype_and_clip():
    with pytest.raises(ValueError, match=r"weight_hh: expected the dtype of xw, torch.float32, got torch.float64"):
        ops.lstm(torch.zeros(3, 2, 8), torch.zeros(8, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="clip must be > 0 or None, got 0"):
        ops.lstm(torch.zeros(3, 2, 8), torch.zeros(8, 2), clip=0.0)
