"""Sampling: the laws of the draws by SciPy, the choice at ties, state, priming, ends."""

import math

import fusedmdn.ops as ops
import numpy as np
import pytest
import torch
from fusedmdn.ops import reference
from scipy import stats

N = 1_000_000


def weights(I, H, D, L=1, skip=False, peephole=False, dtype=torch.float32, device="cpu"):
    """Random plain weights in the operator's order."""
    out = []
    for n in range(L):
        below = I if n == 0 else H + I * skip
        out += [torch.randn(4 * H, below), torch.randn(4 * H, H), torch.randn(4 * H), torch.randn(4 * H)]
        out += [torch.randn(3, H)] * peephole
    out += [torch.randn(D, H * (L if skip else 1)), torch.randn(D)]
    return [0.4 * w.to(device, dtype) for w in out]


def start(B, I, H, L=1, seed=0, first_index=0, device="cpu", dtype=torch.float32):
    zeros = torch.zeros(L, B, H, dtype=dtype, device=device)
    return ops.GenerateState(
        zeros,
        zeros.clone(),
        torch.zeros(B, I, dtype=dtype, device=device),
        torch.zeros(B, dtype=torch.int64, device=device),
        torch.zeros(B, dtype=torch.bool, device=device),
        torch.tensor(seed),
        torch.tensor(first_index),
    )


def draws(raw, pen, M, n=N, **options):
    """n draws from one fixed raw output: a network whose weights are zero but for the head's bias."""
    I = 3 if pen == "bernoulli" else 5
    zero = [torch.zeros(4, I), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4), torch.zeros(len(raw), 1)]
    B = 1000 if pen == "bernoulli" else n
    steps = n // B  # a categorical sequence may end at once: one draw of each
    points, lengths, state = ops.generate(
        [*zero, torch.tensor(raw, dtype=torch.float32)],
        start(B, I, 1, seed=5),
        steps,
        num_mixtures=M,
        pen=pen,
        **options,
    )
    return points.flatten(0, 1).double().numpy(), lengths, state


def raw_of(pen_logits, pi, mu_x, mu_y, log_sx, log_sy, r):
    return [*pen_logits, *pi, *mu_x, *mu_y, *log_sx, *log_sy, *r]


MIXTURE = {
    "pi": [0.3, -1.0, 1.0],
    "mu_x": [-2.0, 0.5, 3.0],
    "mu_y": [1.0, -1.0, 0.0],
    "log_sx": [-0.5, 0.2, -1.0],
    "log_sy": [0.0, -0.7, 0.4],
    "r": [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize(("bias", "temperature"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.5), (0.4, 1.6)])
def test_law_of_the_mixture(bias, temperature):
    """Marginals of x and y are the mixture's, with Graves's bias and the temperature applied to weights and spread."""
    points, _, _ = draws(raw_of([0.4], **MIXTURE), "bernoulli", 3, bias=bias, temperature=temperature)
    logits = np.array(MIXTURE["pi"]) * (1 + bias) / temperature
    pi = np.exp(logits) / np.exp(logits).sum()
    for axis, mu, log_s in ((0, "mu_x", "log_sx"), (1, "mu_y", "log_sy")):
        sigma = np.exp(np.array(MIXTURE[log_s]) - bias) * temperature

        def cdf(v, mu=MIXTURE[mu], sigma=sigma, pi=pi):
            return (pi * stats.norm.cdf((v[:, None] - np.array(mu)) / sigma)).sum(1)

        assert stats.kstest(points[:, axis], cdf).pvalue > 1e-4


def test_law_of_the_component_choice():
    """Twenty well separated components come up as often as their weights say."""
    M = 20
    logits = np.linspace(-2, 2, M)
    zeros, means = [0.0] * M, np.arange(M) * 10.0
    points, _, _ = draws(raw_of([0.0], logits, means, zeros, [-3.0] * M, [-3.0] * M, zeros), "bernoulli", M)
    counts = np.bincount(np.rint(points[:, 0] / 10).astype(int), minlength=M)
    expected = np.exp(logits) / np.exp(logits).sum() * N
    assert stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("r", [-2.0, 0.0, 0.8, 4.0])
def test_law_of_the_correlated_normal(r):
    """Whitened by Cholesky, dx and dy are two independent standard normals."""
    points, _, _ = draws(raw_of([0.0], [0.0], [1.5], [-0.5], [0.3], [-0.6], [r]), "bernoulli", 1)
    n1 = (points[:, 0] - 1.5) / math.exp(0.3)
    n2 = ((points[:, 1] + 0.5) / math.exp(-0.6) - math.tanh(r) * n1) * math.cosh(r)
    for n in (n1, n2):
        assert stats.kstest(n, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(n1, n2)[0, 1]) < 5 / math.sqrt(N)
    assert abs(np.corrcoef(n1**2, n2**2)[0, 1]) < 5 / math.sqrt(N)


@pytest.mark.parametrize("options", [{}, {"bias": 2.0, "temperature": 0.3}])
def test_law_of_the_pen(options):
    """Pen states follow their logits, whatever bias and temperature are, and independently of the offsets."""
    points, _, _ = draws(raw_of([0.4], **MIXTURE), "bernoulli", 3, **options)
    p = 1 / (1 + math.exp(-0.4))
    assert stats.binomtest(int(points[:, 2].sum()), N, p).pvalue > 1e-4
    assert abs(np.corrcoef(points[:, 0], points[:, 2])[0, 1]) < 5 / math.sqrt(N)
    logits = np.array([0.5, -0.3, -1.0])
    points, lengths, state = draws(raw_of(logits, **MIXTURE), "categorical", 3, **options)
    counts = points[:, 2:].sum(0)
    assert stats.chisquare(counts, np.exp(logits) / np.exp(logits).sum() * N).pvalue > 1e-4
    assert int(state.done.sum()) == counts[2]
    assert int(lengths.sum()) == N - counts[2]


@pytest.mark.parametrize(
    ("w", "u", "expected"),
    [
        ([0.25, 0.25, 0.5], 0.25, 0),  # the smallest j whose sum is >= u: equality counts
        ([0.25, 0.25, 0.5], 0.2500001, 1),
        ([0.0, 0.5, 0.5], 1e-7, 1),  # weight zero is never chosen
        ([0.5, 0.5 - 1e-6, 0.0], 0.9999999, 1),  # the sum falls short of u: the last with any weight
        ([0.5, 0.4999, 1e-9], 0.9999999, 2),
        ([1.0], 0.9999999, 0),
    ],
)
def test_choice(w, u, expected):
    assert reference.choose(torch.tensor([w]), torch.tensor([[u]])).item() == expected


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_which_word_draws_what(pen):
    """By hand in NumPy: word 0 the component, 1 the pen, 2 and 3 the normals; clamp, then bias and temperature."""
    random, M, b, tau, n = np.random.default_rng(0), 4, 0.3, 0.7, 500
    P = 1 if pen == "bernoulli" else 3
    raw, u = 2 * random.normal(size=(n, P + 6 * M)), random.uniform(size=(n, 4))
    raw[:50, -M:], raw[50:100, P + 3 * M : P + 5 * M] = 40, 20  # beyond the clamps
    q = reference.components(torch.from_numpy(raw), pen, M, "linear")
    bias, temperature = (torch.full((n,), v, dtype=torch.float64) for v in (b, tau))
    rows = reference.draw(q, torch.from_numpy(u), bias, temperature, pen)

    def first(w, v):
        return int(np.argmax(np.cumsum(w / w.sum()) >= v))

    for row, (v0, v1, v2, v3), got in zip(raw, u, rows.tolist(), strict=True):
        p, (a, mx, my, sx, sy, r) = row[:P], row[P:].reshape(6, M)
        j = first(np.exp((a - a.max()) * (1 + b) / tau), v0)
        sigma_x, sigma_y = (tau * math.exp(np.clip(s[j], -12, 12) - b) for s in (sx, sy))
        angle = np.clip(r[j], -15, 15)
        n1, n2 = (math.sqrt(-2 * math.log(v2)) * f(2 * math.pi * v3) for f in (math.cos, math.sin))
        xy = [mx[j] + sigma_x * n1, my[j] + sigma_y * (math.tanh(angle) * n1 + n2 / math.cosh(angle))]
        if pen == "bernoulli":
            expected = [*xy, float(v1 < 1 / (1 + math.exp(-p[0])))]
        else:
            k = first(np.exp(p), v1)
            expected = [*(xy if k < 2 else (0, 0)), *np.eye(3)[k]]
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_uniforms_fetched_piece_by_piece_are_the_same(backend, monkeypatch, pen):
    """Long jobs fetch their random numbers in blocks; where the blocks end changes nothing, ended sequences or not."""
    I, P = (3, 1) if pen == "bernoulli" else (5, 3)
    w = weights(I, 8, P + 12, device=backend)
    w[-1][:P] = torch.tensor([0.0] if P == 1 else [1.0, 0.0, -1.0])
    options = {"num_mixtures": 2, "pen": pen}
    begin = ops.generate(w, start(6, I, 8, seed=3, device=backend), 5, **options)[2]
    whole = ops.generate(w, begin, 20, **options)
    monkeypatch.setattr(reference, "UNIFORM_BLOCKS", 6 * 3)
    pieces = ops.generate(w, begin, 20, **options)
    assert torch.equal(pieces[0], whole[0])
    assert all(torch.equal(a, b) for a, b in zip(pieces[2], whole[2], strict=True))


def test_all_64_bits_of_seed_and_index_count():
    w = weights(3, 8, 13)
    drawn = set()
    for seed in (0, 1, 1 << 32, -1):
        for index in (0, 5, 1 << 32, (1 << 40) + 5, -1):
            state = start(1, 3, 8, seed=seed, first_index=index)
            points = ops.generate(w, state, 3, num_mixtures=2)[0]
            u = ops.uniforms(seed, index, 1, 3)[0]
            assert torch.equal(points[:, 0, 2] == 1, u[:, 1] < torch.sigmoid(eos_logits(w, points)))
            drawn.add(tuple(points.flatten().tolist()))
    assert len(drawn) == 20


def eos_logits(w, points):
    x = torch.cat([torch.zeros_like(points[:1]), points[:-1]])
    h, _ = ops.lstm(torch.nn.functional.linear(x, w[0], w[2] + w[3]), w[1])
    return torch.nn.functional.linear(h, w[-2], w[-1])[:, 0, 0]


def test_autocast_and_gradients_stay_outside(backend):
    w = [v.requires_grad_() for v in weights(3, 8, 13, device=backend)]
    state, prime = start(4, 3, 8, device=backend), torch.randn(4, 3, 3, device=backend)
    points, _, after = ops.generate(w, state, 6, num_mixtures=2, prime=prime)
    assert not points.requires_grad
    with torch.autocast(backend, torch.bfloat16):
        again, _, after_again = ops.generate(w, state, 6, num_mixtures=2, prime=prime)
    assert torch.equal(again, points)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(after, after_again, strict=True))


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
@pytest.mark.parametrize(("skip", "peephole", "L"), [(False, False, 1), (True, True, 3)])
def test_equals_teacher_forcing_on_its_own_output(backend, pen, skip, peephole, L):
    """Row t is the draw from the network's output for rows before t, by the same uniforms."""
    M, H, B, T = 4, 8, 5, 12
    I, P = (3, 1) if pen == "bernoulli" else (5, 3)
    w = weights(I, H, P + 6 * M, L, skip, peephole, backend.dtype, backend)
    state = start(B, I, H, L, seed=9, first_index=100, device=backend, dtype=backend.dtype)
    options = {"num_mixtures": M, "pen": pen, "skip": skip, "peephole": peephole}
    points, lengths, _ = ops.generate(w, state, T, **options)
    x = torch.cat([torch.zeros_like(points[:1]), points[:-1]])
    below, outputs = x, []
    per = 5 if peephole else 4
    for n in range(L):
        w_ih, w_hh, b_ih, b_hh, *p = w[n * per : (n + 1) * per]
        xw = torch.nn.functional.linear(below, w_ih, b_ih + b_hh)
        outputs.append(ops.lstm(xw, w_hh, peephole=p[0] if p else None)[0])
        below = torch.cat([x, outputs[-1]], -1) if skip else outputs[-1]
    raw = torch.nn.functional.linear(torch.cat(outputs, -1) if skip else outputs[-1], w[-2], w[-1])
    u = ops.uniforms(9, 100, B, T).transpose(0, 1).to(backend)
    ones = torch.ones(T, B, device=backend)
    expected = reference.draw(reference.components(raw, pen, M, "linear"), u, 0 * ones, ones, pen)
    for b in range(B):
        n = int(lengths[b]) + (pen == "categorical")  # with its end row
        torch.testing.assert_close(points[:n, b], expected[:n, b])
        assert not points[n:, b].any()


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
@pytest.mark.parametrize("cut", [0, 1, 7, 20])
def test_stopping_and_going_on_changes_nothing(backend, pen, cut):
    M, H, B, T = 3, 8, 6, 20
    I, P = (3, 1) if pen == "bernoulli" else (5, 3)
    w = weights(I, H, P + 6 * M, device=backend)
    w[-1][:P] = torch.tensor([0.0] if P == 1 else [1.0, 0.0, -1.0])
    options = {"num_mixtures": M, "pen": pen, "bias": 0.3, "temperature": 1.2}
    whole = ops.generate(w, start(B, I, H, seed=3, device=backend), T, **options)
    first = ops.generate(w, start(B, I, H, seed=3, device=backend), cut, **options)
    second = ops.generate(w, first[2], T - cut, **options)
    assert torch.equal(torch.cat([first[0], second[0]]), whole[0])
    assert torch.equal(first[1] + second[1], whole[1])
    for a, b in zip(second[2], whole[2], strict=True):
        assert torch.equal(a, b)


def test_inputs_are_left_alone(backend):
    w, state = weights(3, 8, 13, device=backend), start(4, 3, 8, device=backend)
    before = [v.clone() for v in (*w, *state)]
    ops.generate(w, state, 5, num_mixtures=2)
    assert all(torch.equal(a, b) for a, b in zip(before, (*w, *state), strict=True))


def test_a_sequence_depends_on_its_index_alone(backend):
    """float64, since the reference's matrix products may round otherwise for another batch."""
    w = weights(3, 8, 13, dtype=backend.dtype, device=backend)
    options = {"num_mixtures": 2}
    begin = {"I": 3, "H": 8, "device": backend, "dtype": backend.dtype, "seed": -1}
    many, _, _ = ops.generate(w, start(9, first_index=40, **begin), 15, **options)
    few, _, _ = ops.generate(w, start(2, first_index=44, **begin), 15, **options)
    torch.testing.assert_close(few, many[:, 4:6])


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
def test_a_prime_is_read_and_not_written(backend, lengths):
    """Priming gives the state that feeding the prime by hand gives; its padding may hold anything."""
    M, H, B = 2, 8, 3
    w = weights(3, H, 13, 2, True, True, backend.dtype, backend)
    prime = torch.randn(B, 4, 3, dtype=backend.dtype, device=backend)
    options = {"num_mixtures": M, "skip": True, "peephole": True}
    begin = {"I": 3, "H": H, "L": 2, "seed": 4, "device": backend, "dtype": backend.dtype}
    given = None if lengths is None else torch.tensor(lengths, device=backend)
    for b, n in enumerate(lengths or []):
        prime[b, n:] = math.nan
    points, _, state = ops.generate(w, start(B, **begin), 6, prime=prime, prime_lengths=given, **options)
    assert (state.drawn == 6).all()
    for b in range(B):
        n = 4 if lengths is None else lengths[b]
        h, c, row = [], [], torch.zeros(1, 3, dtype=backend.dtype, device=backend)
        x = torch.cat([row, prime[b, :n]])[:-1, None] if n else torch.zeros(0, 1, 3, dtype=row.dtype, device=backend)
        below = x
        for layer in range(2):
            w_ih, w_hh, b_ih, b_hh, p = w[layer * 5 : layer * 5 + 5]
            xw = torch.nn.functional.linear(below, w_ih, b_ih + b_hh)
            out, (h_n, c_n) = ops.lstm(xw, w_hh, peephole=p)
            h.append(h_n)
            c.append(c_n)
            below = torch.cat([x, out], -1)
        row = prime[b, n - 1 : n] if n else row
        by_hand = start(1, first_index=b, **begin)._replace(h=torch.stack(h), c=torch.stack(c), row=row)
        torch.testing.assert_close(ops.generate(w, by_hand, 6, **options)[0][:, 0], points[:, b])


def test_after_the_end_nothing_moves(backend):
    w = weights(5, 8, 15, device=backend)
    w[-1][:3] = torch.tensor([0.0, 0.0, 1.0])
    points, lengths, state = ops.generate(w, start(50, 5, 8, device=backend), 40, num_mixtures=2, pen="categorical")
    assert state.done.all()
    assert torch.equal(state.drawn, lengths + 1)
    assert torch.equal(state.row, torch.eye(5, device=backend)[4].expand(50, 5))
    for b in range(50):
        n = int(lengths[b])
        assert points[n, b].tolist() == [0, 0, 0, 0, 1]
        assert not points[n + 1 :, b].any()
        assert (points[:n, b, 2:4].sum(-1) == 1).all()
    for prime in (None, torch.randn(50, 4, 5, device=backend)):
        again, more, after = ops.generate(w, state, 5, num_mixtures=2, pen="categorical", prime=prime)
        assert not again.any()
        assert not more.any()
        assert all(torch.equal(a, b) for a, b in zip(after, state, strict=True))


def test_ended_sequences_stand_still_while_others_go_on(backend):
    """The state of each is that of its own last step, as if it had been sampled alone."""
    w = weights(5, 8, 15, dtype=backend.dtype, device=backend)
    w[-1][:3] = torch.tensor([1.0, 0.0, 0.0])
    begin = {"I": 5, "H": 8, "seed": 2, "device": backend, "dtype": backend.dtype}
    _, lengths, state = ops.generate(w, start(12, **begin), 6, num_mixtures=2, pen="categorical")
    assert 0 < int(state.done.sum()) < 12
    for b in range(12):
        steps = int(lengths[b]) + 1 if state.done[b] else 6
        alone = ops.generate(w, start(1, first_index=b, **begin), steps, num_mixtures=2, pen="categorical")[2]
        for name in ("h", "c", "row", "drawn", "done"):
            one, many = getattr(alone, name), getattr(state, name)
            torch.testing.assert_close(
                one[:, 0] if one.dim() == 3 else one[0], many[:, b] if one.dim() == 3 else many[b]
            )


def test_float32_weights_in_other_dtypes(float64_backend):
    w = weights(3, 8, 13, device=float64_backend)
    for dtype, points_dtype in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        points, _, state = ops.generate(
            [v.to(dtype) for v in w], start(4, 3, 8, device=float64_backend), 5, num_mixtures=2
        )
        assert (points.dtype, state.h.dtype, state.c.dtype) == (points_dtype, dtype, points_dtype)
        assert points.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(32, 4)}, r"weights\[0\] \(weight_ih\): expected shape \(32, 3\), got \(32, 4\)"),
        ({3: torch.zeros(8)}, r"weights\[3\] \(bias_hh\): expected shape \(32,\), got \(8,\)"),
        ({4: torch.zeros(13, 9)}, r"weights\[4\] \(head weight\): expected shape \(13, 8\), got \(13, 9\)"),
        ({5: torch.zeros(13, dtype=torch.float64)}, r"weights\[5\] \(head bias\): expected torch.float32 on cpu"),
    ],
)
def test_bad_weights(change, message):
    w = weights(3, 8, 13)
    for k, v in change.items():
        w[k] = v
    with pytest.raises(ValueError, match=message):
        ops.generate(w, start(2, 3, 8), 1, num_mixtures=2)
    with pytest.raises(ValueError, match="expected 10 weights for 2 layers, got 6"):
        ops.generate(weights(3, 8, 13), start(2, 3, 8, L=2), 1, num_mixtures=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be >= 0, got -1"),
        ({"bias": -0.5}, "bias must be finite and >= 0, got -0.5"),
        ({"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": math.inf}, "temperature must be finite"),
        ({"bias": [0.0, 1.0, 2.0]}, r"bias: expected shape \(2,\), got \(3,\)"),
        ({"bias": torch.zeros(3)}, r"bias: expected shape \(2,\), got \(3,\)"),
        ({"prime": torch.zeros(2, 4, 5)}, r"prime: expected shape \(2, 4, 3\), got \(2, 4, 5\)"),
        ({"prime_lengths": torch.tensor([1, 2])}, "prime_lengths was given without prime"),
        ({"prime": torch.zeros(2, 4, 3), "prime_lengths": torch.tensor([1, 5])}, r"values in \[0, 4\], got 1 to 5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ops.generate(weights(3, 8, 13), start(2, 3, 8), **{"steps": 1, "num_mixtures": 2, **options})
