"""FusedLSTMMDN as a drop-in: against nn.LSTM + nn.Linear, its layouts, reductions, state and errors."""

import math
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fusedmdn import FusedLSTMMDN, Scale, StrokeMixture, Strokes

PACKED, OTHER = (pack_padded_sequence(torch.zeros(2, 2, 3), torch.tensor(n)) for n in ([2, 1], [2, 2]))


def strokes(T, B, pen="bernoulli", dtype=torch.float32):
    xy = torch.randn(T, B, 2, dtype=dtype)
    if pen == "bernoulli":
        return torch.cat([xy, (torch.rand(T, B, 1) < 0.3).to(dtype)], -1)
    return torch.cat([xy, nn.functional.one_hot(torch.randint(2, (T, B)), 3).to(dtype)], -1)


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("L", [1, 3])
def test_equals_nn_lstm_and_linear(backend, pen, batch_first, L):
    I, D = (3, 1 + 12) if pen == "bernoulli" else (5, 3 + 12)
    lstm = nn.LSTM(I, 8, L, batch_first=batch_first, device=backend)
    head = nn.Linear(8, D, device=backend)
    model = FusedLSTMMDN.from_modules(lstm, head)
    assert (model.pen, model.num_mixtures) == (pen, 2)
    x = torch.randn(4, 6, I, device=backend)
    B = 4 if batch_first else 6
    state = tuple(torch.randn(L, B, 8, device=backend) for _ in range(2))
    for given in (None, state):
        h, expected_state = lstm(x, given)
        mixture, new_state = model(x, given)
        assert isinstance(mixture, StrokeMixture)
        torch.testing.assert_close(mixture.raw, head(h))
        torch.testing.assert_close(new_state, expected_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back_is_exact(dtype):
    lstm, head = nn.LSTM(3, 8, 2, dropout=0.25, batch_first=True, dtype=dtype), nn.Linear(8, 13, dtype=dtype)
    model = FusedLSTMMDN.from_modules(lstm.eval(), head, clip_gates=10.0)
    assert not model.training
    assert model.clip_gates == 10.0
    again, head_again = model.to_modules()
    for a, b in ((lstm, again), (head, head_again)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert (again.batch_first, again.dropout, again.training) == (True, 0.25, False)
    again.weight_ih_l0.data.zero_()
    assert model.weight_ih_l0.any()  # a copy


def test_loads_the_state_dict_of_nn_lstm():
    lstm, model = nn.LSTM(3, 8, 2), FusedLSTMMDN(3, 8, 2, 4)
    missing, unexpected = model.load_state_dict(lstm.state_dict(), strict=False)
    assert (missing, unexpected) == (["head.weight", "head.bias"], [])
    assert torch.equal(model.weight_hh_l1, lstm.weight_hh_l1)


def test_from_modules_refuses_what_it_cannot_do():
    head = nn.Linear(8, 13)
    for options, message in (
        ({"bidirectional": True}, "bidirectional=True"),
        ({"proj_size": 4}, "proj_size=4"),
        ({"bias": False}, "bias=False"),
    ):
        with pytest.raises(ValueError, match=message):
            FusedLSTMMDN.from_modules(nn.LSTM(3, 8, **options), head)
    with pytest.raises(ValueError, match="got 14"):
        FusedLSTMMDN.from_modules(nn.LSTM(3, 8), nn.Linear(8, 14))
    with pytest.raises(ValueError, match=r"expected nn.Linear\(8, P \+ 6M\)"):
        FusedLSTMMDN.from_modules(nn.LSTM(3, 8), nn.Linear(9, 13))
    with pytest.raises(ValueError, match=r"one dtype and device, got torch.float64 on cpu and torch.float32"):
        FusedLSTMMDN.from_modules(nn.LSTM(3, 8, dtype=torch.float64), head)
    with pytest.raises(ValueError, match="skip=True nor peephole=False"):
        FusedLSTMMDN(3, 8, skip=True).to_modules()


def test_skip_connections_are_graves_equations(backend):
    """Each layer reads [x ; h below], the head reads every layer: built by hand of nn.LSTMs."""
    model = FusedLSTMMDN(3, 8, 3, 2, skip=True, device=backend)
    x = torch.randn(6, 4, 3, device=backend)
    outputs = []
    for n in range(3):
        lstm = nn.LSTM(3 if n == 0 else 11, 8, device=backend)
        for name, _ in lstm.named_parameters():
            getattr(lstm, name).data.copy_(getattr(model, name.replace("l0", f"l{n}")))
        outputs.append(lstm(x if n == 0 else torch.cat([x, outputs[-1]], -1))[0])
    torch.testing.assert_close(model(x)[0].raw, model.head(torch.cat(outputs, -1)))


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_nll_reductions(backend, reduction, batch_first):
    model = FusedLSTMMDN(3, 8, 1, 2, batch_first=batch_first, device=backend)
    x = strokes(7, 4).to(backend)
    lengths = torch.tensor([7, 3, 0, 1], device=backend)
    inputs = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    per_row = torch.stack([-model.eval()(inputs.transpose(0, 1) if batch_first else inputs)[0].log_prob(
        x.transpose(0, 1) if batch_first else x)])[0]  # fmt: skip
    per_row = per_row.t() if batch_first else per_row
    alive = torch.arange(7, device=backend)[:, None] < lengths
    expected = {
        "none": torch.where(alive, per_row, 0),
        "sum": per_row[alive].sum(),
        "mean": per_row[alive].mean(),
        "batchmean": per_row[alive].sum() / 4,
    }[reduction]
    loss = model.nll(x.transpose(0, 1) if batch_first else x, lengths, reduction=reduction)
    if reduction == "none" and batch_first:
        loss = loss.t()
    torch.testing.assert_close(loss, expected)


def test_masked_steps_may_hold_anything(backend):
    model = FusedLSTMMDN(3, 8, 2, 2, skip=True, peephole=True, device=backend)
    x, lengths = strokes(6, 3).to(backend), torch.tensor([6, 2, 0], device=backend)
    clean = torch.autograd.grad(model.nll(x, lengths), model.parameters())
    for b, n in enumerate(lengths):
        x[n:, b] = math.nan
    loss = model.nll(x, lengths)
    assert loss.isfinite()
    for got, expected in zip(torch.autograd.grad(loss, model.parameters()), clean, strict=True):
        torch.testing.assert_close(got, expected)


def test_sums_accumulate_in_float64(monkeypatch):
    """Huge rows do not swallow the many small ones between them."""
    per_row = torch.cat([torch.tensor([3e8]), torch.ones(1000), torch.tensor([-3e8])])[:, None]
    assert per_row.sum() != 1000
    monkeypatch.setattr(ops, "lstm_mdn_nll", lambda *args, **options: (per_row, ()))
    model = FusedLSTMMDN(3, 4, 1, 1)
    for reduction, expected in (("sum", 1000), ("mean", 1000 / 1002), ("batchmean", 1000)):
        loss = model.nll(torch.zeros(1002, 1, 3), reduction=reduction)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.item(), float(expected))


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_truncated_backpropagation(backend, pen):
    """Pieces with the state carried over equal the whole, gradients through the state included."""
    I = 3 if pen == "bernoulli" else 5
    model = FusedLSTMMDN(I, 8, 2, 3, pen=pen, skip=True, peephole=True, device=backend, dtype=backend.dtype)
    x, lengths = strokes(9, 3, pen, backend.dtype).to(backend), torch.tensor([9, 5, 2], device=backend)
    whole, end = model.nll(x, lengths, reduction="sum", return_state=True)
    total, state = 0, None
    for k in (0, 4, 7):
        piece = x[k : {0: 4, 4: 7, 7: 9}[k]]
        part, state = model.nll(piece, (lengths - k).clamp(0, len(piece)), state, reduction="sum", return_state=True)
        total = total + part
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(state, end)
    for got, expected in zip(
        torch.autograd.grad(total, model.parameters()), torch.autograd.grad(whole, model.parameters()), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_gradients_reach_the_given_state_and_come_from_the_last():
    model = FusedLSTMMDN(3, 8, 2, 3).double()
    x = strokes(4, 2, dtype=torch.float64)
    state = tuple(torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    nll, (h, c) = model(x, state, target=x)
    for gradient in torch.autograd.grad(nll.sum() + h.sum() + c.sum(), state):
        assert gradient.abs().min() > 0


def test_packed_sequence(backend):
    lstm, head = nn.LSTM(3, 8, 2, device=backend), nn.Linear(8, 13, device=backend)
    model = FusedLSTMMDN.from_modules(lstm, head)
    x, lengths = strokes(7, 4).to(backend), torch.tensor([2, 7, 1, 5])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    out, expected_state = lstm(packed)
    assert isinstance(out, PackedSequence)
    mixture, state = model(packed)
    torch.testing.assert_close(state, expected_state)
    expected = head(pad_packed_sequence(out)[0])
    torch.testing.assert_close(mixture.raw, expected)
    nll, _ = model(packed, target=packed)
    torch.testing.assert_close(nll, model(x, lengths=lengths.to(backend), target=x)[0])
    with pytest.raises(ValueError, match="PackedSequence input has its own"):
        model(packed, lengths=lengths)


def test_unbatched_input(backend):
    model = FusedLSTMMDN(3, 8, 2, 2, device=backend)
    x = strokes(6, 1).to(backend)
    state = tuple(torch.randn(2, 1, 8, device=backend) for _ in range(2))
    mixture, (h, c) = model(x[:, 0], tuple(v[:, 0] for v in state))
    expected, (h_expected, c_expected) = model(x, state)
    torch.testing.assert_close(mixture.raw, expected.raw[:, 0])
    torch.testing.assert_close((h, c), (h_expected[:, 0], c_expected[:, 0]))
    assert model(x[:, 0], target=x[:, 0])[0].shape == (6,)
    loss, carried = model.nll(x[:3, 0], return_state=True, reduction="sum")
    rest = model.nll(x[3:, 0], state=carried, reduction="sum")
    torch.testing.assert_close(loss + rest, model.nll(x, reduction="sum"))


def test_dropout_is_between_layers_and_only_in_training():
    model = FusedLSTMMDN(3, 64, 2, 2, dropout=0.5)
    x = torch.randn(5, 4, 3)
    torch.manual_seed(3)
    a = model(x)[0].raw
    torch.manual_seed(3)
    assert torch.equal(model(x)[0].raw, a)
    assert not torch.equal(model(x)[0].raw, a)
    model.eval()
    assert torch.equal(model(x)[0].raw, model(x)[0].raw)
    one = FusedLSTMMDN(3, 64, 1, 2, dropout=0.5)
    assert torch.equal(one(x)[0].raw, one(x)[0].raw)


def test_dropout_equals_nn_lstm():
    lstm, head = nn.LSTM(3, 8, 2, dropout=1.0), nn.Linear(8, 13)
    x = torch.randn(5, 4, 3)
    torch.testing.assert_close(FusedLSTMMDN.from_modules(lstm, head)(x)[0].raw, head(lstm(x)[0]))


def test_clipping_options_reach_the_backward_pass():
    torch.manual_seed(0)
    x = 50 * strokes(30, 2)
    free = FusedLSTMMDN(3, 8, 1, 2)
    bound = FusedLSTMMDN(3, 8, 1, 2, clip_output=1e-3, clip_gates=1e-4)
    bound.load_state_dict(free.state_dict())
    gates = FusedLSTMMDN(3, 8, 1, 2, clip_gates=1e-4)
    gates.load_state_dict(free.state_dict())
    gradients = {}
    for name, model in (("free", free), ("bound", bound), ("gates", gates)):
        model.nll(x, reduction="batchmean").backward()
        gradients[name] = {k: p.grad.abs().max() for k, p in model.named_parameters()}
    assert gradients["free"]["head.bias"] > 1
    assert gradients["bound"]["head.bias"] <= 60 * 1e-3
    assert gradients["gates"]["head.bias"] == gradients["free"]["head.bias"]
    assert gradients["free"]["bias_hh_l0"] > 1
    assert 0 < gradients["gates"]["bias_hh_l0"] <= 60 * 1e-4


def test_autocast_trains():
    model = FusedLSTMMDN(3, 32, 2, 4)
    x = strokes(12, 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.nll(x)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model.nll(x), rtol=0.02, atol=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_generate(backend, pen):
    I = 3 if pen == "bernoulli" else 5
    model = FusedLSTMMDN(I, 16, 2, 3, pen=pen, skip=True, device=backend)
    model.scale = Scale((1.0, 2.0), (3.0, 4.0))
    batch = model.generate(4, 12, seed=1)
    assert batch.points.shape == (4, 12, I)
    assert len(batch) == 4
    for i, s in enumerate(batch):
        assert isinstance(s, Strokes)
        assert len(s) == batch.lengths[i]
        expected = batch.points[i, : len(s), :2].cpu() * torch.tensor([3.0, 4.0]) + torch.tensor([1.0, 2.0])
        torch.testing.assert_close(torch.from_numpy(s.points[:, :2]), expected)
    first = model.generate(4, 5, seed=1)
    second = model.generate(4, 7, state=first.state)
    assert torch.equal(torch.cat([first.points, second.points], 1), batch.points)
    assert not torch.equal(model.generate(4, 12, seed=2).points, batch.points)
    assert not torch.equal(model.generate(4, 12, seed=1, first_index=4).points, batch.points)


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_generate_to_the_cpu_and_in_chunks_changes_nothing(backend, pen):
    model = FusedLSTMMDN(3 if pen == "bernoulli" else 5, 16, 2, 3, pen=pen, device=backend)
    whole = model.generate(4, 12, seed=1)
    for how in ({"to": "cpu"}, {"to": "cpu", "chunk": 5}, {"to": model.head.weight.device, "chunk": 1}):
        batch = model.generate(4, 12, seed=1, **how)
        assert batch.points.device.type == batch.lengths.device.type == torch.device(how["to"]).type
        assert batch.state.row.device == model.head.weight.device
        assert torch.equal(batch.points.cpu(), whole.points.cpu())
        assert torch.equal(batch.lengths.cpu(), whole.lengths.cpu())
        assert all(torch.equal(a, b) for a, b in zip(batch.state, whole.state, strict=True))


def test_generate_default_seed_is_torch_s():
    model = FusedLSTMMDN(3, 8, 1, 2)
    a, b = (model.generate(2, 5) for _ in range(2))
    assert not torch.equal(a.points, b.points)
    torch.manual_seed(7)
    c = model.generate(2, 5)
    torch.manual_seed(7)
    assert torch.equal(model.generate(2, 5).points, c.points)


def test_generate_accepts_any_64_bit_seed():
    model = FusedLSTMMDN(3, 8, 1, 2)
    high, low = model.generate(1, 4, seed=(1 << 64) - 1), model.generate(1, 4, seed=-1)
    assert torch.equal(high.points, low.points)
    with pytest.raises(ValueError, match="seed must fit in 64 bits, got 18446744073709551616"):
        model.generate(1, 4, seed=1 << 64)


def test_generate_goes_on_from_what_nll_and_forward_give():
    """Priming by `prime`, by nll's state, and by forward's state with the last row as prime are one thing."""
    model = FusedLSTMMDN(3, 8, 2, 2).double()
    x = strokes(6, 3, dtype=torch.float64)
    primed = model.generate(3, 5, seed=1, prime=x.transpose(0, 1))
    _, state = model.nll(x, return_state=True)
    torch.testing.assert_close(model.generate(3, 5, seed=1, state=state).points, primed.points)
    _, state = model(torch.cat([torch.zeros_like(x[:1]), x[:-1]]))
    # forward's state is that after its inputs; the zero row that a fresh start reads would be one row too many
    going_on = model.generate(3, 5, seed=1, state=(*state, x[-1]))
    torch.testing.assert_close(going_on.points, primed.points)
    one = model.generate(3, 5, seed=1, prime=x[:, 0])
    torch.testing.assert_close(one.points[0], primed.points[0])


def test_generate_bias_and_temperature_per_sequence():
    model = FusedLSTMMDN(3, 8, 1, 2).double()
    bias, tau = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 0.5, 2.0])
    batch = model.generate(3, 6, seed=1, bias=bias, temperature=tau)
    for i in range(3):
        alone = model.generate(1, 6, seed=1, first_index=i, bias=float(bias[i]), temperature=float(tau[i]))
        torch.testing.assert_close(alone.points[0], batch.points[i])


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_every_option_reaches_the_operators(backend, pen):
    I = 3 if pen == "bernoulli" else 5
    options = {"pen": pen, "means": "sigmoid", "skip": True, "peephole": True}
    model = FusedLSTMMDN(I, 8, 2, 3, **options, device=backend, dtype=backend.dtype)
    x, lengths = strokes(5, 4, pen, backend.dtype).to(backend), torch.tensor([5, 0, 2, 3], device=backend)
    bias, tau = torch.tensor([0.0, 0.5, 1.0, 2.0]), torch.tensor([1.0, 0.5, 2.0, 0.7])
    prime = x.transpose(0, 1)
    drawn = model.generate(
        4, 6, seed=-3, first_index=(1 << 40) + 5, bias=bias, temperature=tau, prime=prime, prime_lengths=lengths.cpu()
    )
    zeros = torch.zeros(2, 4, 8, dtype=backend.dtype, device=backend)
    state = ops.GenerateState(
        zeros,
        zeros,
        torch.zeros(4, I, dtype=backend.dtype, device=backend),
        torch.zeros(4, dtype=torch.int64, device=backend),
        torch.zeros(4, dtype=torch.bool, device=backend),
        torch.tensor(-3),
        torch.tensor((1 << 40) + 5),
    )
    points, _, _ = ops.generate(
        model._weights(), state, 6, num_mixtures=3, **options, bias=bias.tolist(), temperature=tau.tolist(),
        prime=prime, prime_lengths=lengths,
    )  # fmt: skip
    assert torch.equal(drawn.points, points.transpose(0, 1))

    mixture, _ = model(x, lengths=lengths)
    nll, _ = model(x, lengths=lengths, target=x)
    expected = ops.mdn_nll(mixture.raw, x, lengths, num_mixtures=3, pen=pen, means="sigmoid")
    torch.testing.assert_close(nll, expected)
    alive = torch.arange(5, device=backend)[:, None] < lengths
    torch.testing.assert_close(-mixture.log_prob(x)[alive], expected[alive])
    assert not torch.allclose(expected, ops.mdn_nll(mixture.raw, x, lengths, num_mixtures=3, pen=pen))


def test_seed_and_first_index_are_kept_as_twos_complement():
    state = FusedLSTMMDN(3, 8, 1, 2).generate(1, 1, seed=(1 << 64) - 2, first_index=(1 << 63) + 1).state
    assert (state.seed.item(), state.first_index.item()) == (-2, 1 - (1 << 63))


def test_dropout_does_not_touch_the_skip_connection():
    """With every hidden unit dropped, the second layer still sees the input."""
    model = FusedLSTMMDN(3, 8, 2, 2, skip=True, dropout=1.0)
    x = torch.randn(5, 4, 3)
    lstm = nn.LSTM(11, 8)
    for name, _ in lstm.named_parameters():
        getattr(lstm, name).data.copy_(getattr(model, name.replace("l0", "l1")))
    first = nn.LSTM(3, 8)
    first.load_state_dict({name: getattr(model, name).data for name, _ in first.named_parameters()})
    second = lstm(torch.cat([x, torch.zeros(5, 4, 8)], -1))[0]
    torch.testing.assert_close(model(x)[0].raw, model.head(torch.cat([first(x)[0], second], -1)))


def test_low_precision_weights_take_full_precision_strokes():
    """The input is cast to the weights; the target keeps its digits."""
    model = FusedLSTMMDN(3, 8, 2, 2).bfloat16()
    x = strokes(6, 3) + 1 / 3
    nll, state = model(x, target=x)
    raw = model(x)[0].raw
    assert torch.equal(nll, ops.mdn_nll(raw, x, num_mixtures=2))
    assert not torch.equal(nll, ops.mdn_nll(raw, x.bfloat16(), num_mixtures=2))
    assert model(x, tuple(v.float() for v in state))[0].raw.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        _, carried = FusedLSTMMDN(3, 8, 2, 2)(x)
    assert FusedLSTMMDN(3, 8, 2, 2).nll(x, state=carried).isfinite()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(4, 2, 5)), r"input: expected 3 features in the last dimension, got \(4, 2, 5\)"),
        (lambda m: m(torch.zeros(4)), r"input: expected 2 \(unbatched\) or 3 dimensions, got shape \(4,\)"),
        (lambda m: m(torch.zeros(4, 2, 3), (torch.zeros(1, 2, 8),) * 2), r"state h: expected shape \(2, 2, 8\)"),
        (lambda m: m(torch.zeros(4, 2, 3), target=torch.zeros(3, 2, 3)), r"target: expected shape \(4, 2, 3\)"),
        (lambda m: m(torch.zeros(4, 2, 3), lengths=torch.tensor([5, 1])), r"values in \[0, 4\], got 1 to 5"),
        (lambda m: m.nll(torch.zeros(4, 2, 3), reduction="median"), "reduction must be .* got 'median'"),
        (lambda m: m.nll(torch.zeros(4, 2, 5)), r"strokes: expected rows of 3 columns, got \(4, 2, 5\)"),
        (lambda m: m.generate(-1, 5), "n must be >= 0, got -1"),
        (
            lambda m: m.generate(3, 5, seed=1, state=m.generate(3, 2).state),
            "seed: a GenerateState has its own, so",
        ),
        (
            lambda m: m.generate(3, 5, first_index=7, state=m.generate(3, 2).state),
            "first_index: a GenerateState has its",
        ),
        (lambda m: m.generate(1, 5, seed=torch.zeros(2)), r"seed must be one integer, got \(2,\) of torch.float32"),
        (lambda m: m(torch.zeros(2, 1, 3), target=PACKED), "target: a PackedSequence needs a PackedSequence as input"),
        (lambda m: m(PACKED, target=OTHER), r"target: expected the input's lengths \[2, 1\], got \[2, 2\]"),
        (
            lambda m: m.generate(2, 5, state=m.generate(3, 2).state),
            r"state h: expected shape \(2, 2, 8\), got \(2, 3, 8\)",
        ),
        (lambda m: m.generate(2, 5, to="meta"), "to must be 'cpu' or the device where the model is, .* got 'meta'"),
        (lambda m: m.generate(2, 5, chunk=0), "chunk must be >= 1, got 0"),
        (lambda m: m.generate(2, 5, state=(torch.zeros(2, 3, 8),) * 2), r"state h: expected shape \(2, 2, 8\)"),
        (lambda m: FusedLSTMMDN(hidden_size=0), "hidden_size must be >= 1, got 0"),
        (lambda m: FusedLSTMMDN(dropout=1.5), r"dropout must be in \[0, 1\], got 1.5"),
        (lambda m: FusedLSTMMDN(clip_gates=0.0), "clip_gates must be > 0 and finite, or None; got 0.0"),
        (lambda m: FusedLSTMMDN(clip_output=math.inf), "clip_output must be > 0 and finite, or None; got inf"),
        (lambda m: FusedLSTMMDN(4, 8).nll(torch.zeros(4, 2, 4)), "needs input_size=3, not 4"),
        (lambda m: FusedLSTMMDN(3, 8, pen="categorical").generate(1, 1), "needs input_size=5, not 3"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(FusedLSTMMDN(3, 8, 2, 2))


def test_conditioning_features_may_join_the_input():
    model = FusedLSTMMDN(10, 8, 1, 2)
    nll, _ = model(torch.randn(5, 2, 10), target=strokes(5, 2))
    assert nll.shape == (5, 2)


def test_repr_and_config_rebuild_the_module():
    model = FusedLSTMMDN(5, 8, 2, 4, pen="categorical", skip=True, clip_gates=10.0)
    assert "FusedLSTMMDN(\n  5, 8, 2, 4, pen='categorical', skip=True, means='linear', clip_gates=10.0" in repr(model)
    again = FusedLSTMMDN(**model.config())
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_weights_reach_the_operators_as_they_are():
    """After an in-place write through .data, the next call sees the new values."""
    model = FusedLSTMMDN(3, 8, 1, 2)
    before = model.generate(1, 5, seed=1).points
    model.head.bias.data.add_(1)
    assert not torch.equal(model.generate(1, 5, seed=1).points, before)
    assert isinstance(model.generate(1, 5, seed=1).state, ops.GenerateState)


def test_a_state_that_was_saved_goes_on_bit_for_bit(tmp_path):
    model = FusedLSTMMDN(3, 8, 2, 2)
    whole = model.generate(2, 9, seed=1)
    torch.save(model.generate(2, 4, seed=1).state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(model.generate(2, 5, state=state.to("cpu")).points, whole.points[:, 4:])
    with pytest.raises(ValueError, match=r"state: expected \(h, c\), .* or a GenerateState, got 7 tensors"):
        model.generate(2, 5, state=tuple(state))
    with pytest.raises(ValueError, match=r"state h: expected shape \(2, 2, 9\), got \(2, 2, 8\)"):
        FusedLSTMMDN(3, 9, 2, 2).generate(2, 5, state=state)


def test_a_seed_that_is_written_over_does_not_change_the_state():
    """As one does between replays of a CUDA graph."""
    model, seed = FusedLSTMMDN(3, 8, 1, 2), torch.tensor(1)
    state = model.generate(2, 2, seed=seed).state
    seed.fill_(9)
    assert int(state.seed) == 1


def test_what_does_not_fit_says_which_number_to_lower():
    model = FusedLSTMMDN(3, 8, 1, 2)
    for sizes, message in (
        ((1 << 31, 5), "n must be < 2.31, got 2147483648; lower it"),
        ((1, 1 << 31), "max_steps must be < 2.31, got 2147483648; lower it"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(*sizes)
    with pytest.raises(TypeError, match=r"n must be an integer, got 2\.0"):
        model.generate(2.0, 3)
    full = mock.patch.object(torch.Tensor, "new_zeros", side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    for sizes, options, lower in (
        ((1000, 1), {}, "n"),
        ((3, 10000), {}, "max_steps"),
        ((3, 10000), {"chunk": 9999}, "chunk"),
    ):
        with full, pytest.raises(torch.OutOfMemoryError, match=f"n={sizes[0]} sequences .* lower {lower}: a job"):
            model.generate(*sizes, **options)
