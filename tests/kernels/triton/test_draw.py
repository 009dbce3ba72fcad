"""The random stream and the draw on their own: the same uniforms to the bit, and what the reference makes of them."""

import math

import fusedmdn.ops as ops
import pytest
import torch
import triton
import triton.language as tl
from fusedmdn.kernels import draw, random_stream
from fusedmdn.ops import reference, stream

from ...accuracy import assert_accurate
from ...python.problems import double
from ...simulator import run

WORDS = [0, 1, 1 << 32, -1, (1 << 40) + 5, 1 << 63]
FIRST, LAST = 2.0**-24, 1 - 2.0**-24  # of the uniforms
PENS = {"bernoulli": (3, 1), "categorical": (5, 3)}


@triton.jit
def fill(seed, step, out, N: tl.constexpr):
    n = tl.arange(0, N)
    u = random_stream.uniforms(tl.load(seed), tl.load(seed + 1) + n, tl.load(step + n))
    for k in tl.static_range(4):
        tl.store(out + 4 * n + k, u[k])


@triton.jit
def turn(v, cosine, sine, N: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    c, s = random_stream.cos_sin_turns(tl.load(v + n))
    tl.store(cosine + n, c)
    tl.store(sine + n, s)


@triton.jit
def box_muller(u, v, first, second, N: tl.constexpr):
    n = tl.arange(0, N)
    n_1, n_2 = random_stream.normals(tl.load(u + n), tl.load(v + n))
    tl.store(first + n, n_1)
    tl.store(second + n, n_2)


@triton.jit
def choose(weights, u, chosen, R: tl.constexpr, K: tl.constexpr):
    r, k = tl.arange(0, R), tl.arange(0, K)[None, :]
    tl.store(chosen + r, draw.choose(tl.load(weights + r[:, None] * K + k), k, tl.load(u + r)))


@triton.jit
def draw_rows(
    raw, live, seed, step, bias, temperature, rows, ended,
    R: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, I: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * R + tl.arange(0, R)
    noise = random_stream.noise_of(tl.load(seed), tl.load(seed + 1) + r, tl.load(step + r))
    x, ends = draw.draw(
        raw + r * (P + 6 * M), tl.load(live + r), noise, tl.load(bias + r), tl.load(temperature + r), M, MP, P, SIGMOID
    )
    for i in tl.static_range(I):
        tl.store(rows + r * I + i, x[i])
    tl.store(ended + r, ends)


@pytest.mark.parametrize("index", WORDS)
@pytest.mark.parametrize("seed", WORDS)
def test_uniforms_are_the_streams_to_the_bit(seed, index):
    """All 64 bits of seed and index count, and all 32 of the step; the index wraps around."""
    step = torch.tensor([0, 1, 2, 1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1])
    words = torch.tensor([stream.as_64_bits("", v) for v in (seed, index)])
    got = torch.empty(8, 4)
    run(fill, (1,), {"seed": words, "step": step, "out": got, "N": 8})
    assert torch.equal(got, ops.uniforms(seed, index, 8, 1, first_step=step)[:, 0])


def test_cos_and_sin_of_every_uniform():
    v = ((torch.arange(1 << 23) + 0.5) * 2.0**-23).float()
    assert (v[0].item(), v[-1].item()) == (FIRST, LAST)
    cosine, sine = torch.empty_like(v), torch.empty_like(v)
    run(turn, (8,), {"v": v, "cosine": cosine, "sine": sine, "N": 1 << 20}, race=False)
    angle = 2 * math.pi * v.double()
    assert (cosine - angle.cos()).abs().max() < 1e-7
    assert (sine - angle.sin()).abs().max() < 1e-7


def test_normals_are_right_to_an_ulp_or_two_of_their_radius():
    """Also of uniforms so near 1 that a logarithm could lose them, and so near 0 that they are the largest."""
    N = 1 << 16
    u, v = ops.uniforms(1, 0, N, 1)[:, 0, 2:].unbind(-1)
    u = torch.cat([u[200:], FIRST * (1 + 2 * torch.arange(100)), 1 - FIRST * (1 + 2 * torch.arange(100))])
    v = v.contiguous()
    first, second = torch.empty(N), torch.empty(N)
    run(box_muller, (1,), {"u": u, "v": v, "first": first, "second": second, "N": N})
    radius = torch.sqrt(-2 * u.double().log())
    for got, exact in zip((first, second), stream.box_muller(u.double(), v.double()), strict=True):
        assert ((got - exact).abs() / radius).max() < 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("w", "u", "expected"),
    [
        ([0.25, 0.25, 0.5, 0.0], 0.25, 0),  # the smallest j whose sum is >= u: equality counts
        ([0.25, 0.25, 0.5, 0.0], 0.2500001, 1),
        ([0.0, 0.5, 0.5, 0.0], FIRST, 1),  # weight zero is never chosen
        ([0.5, 0.0, 0.0, 0.5], 0.5000001, 3),
        ([1.0, 1.0, 2.0, 4.0], 0.5, 2),  # of all the weight, whatever that is
        ([1.0, 1.0, 2.0, 4.0], 0.5000001, 3),
        ([0.5, 0.5 - 1e-6, 0.0, 0.0], LAST, 1),
        ([1.0, 0.0, 0.0, 0.0], LAST, 0),
    ],
)
def test_choice(w, u, expected):
    chosen = torch.empty(1, dtype=torch.int32)
    run(choose, (1,), {"weights": torch.tensor([w]), "u": torch.tensor([u]), "chosen": chosen, "R": 1, "K": 4})
    assert chosen.item() == expected


def test_a_choice_has_weight_where_the_sums_fall_short():
    """The cumulative sum of 32 weights and their sum are added in different orders: either may be the smaller one."""
    R = 512
    w = torch.rand(R, 32) ** 4 * 10.0 ** torch.randint(-3, 4, (R, 1))
    w[torch.rand(R, 32) < 0.5], w[:, 29:] = 0, 0
    for u in (FIRST, 0.3, LAST):
        chosen = torch.empty(R, dtype=torch.int32)
        run(choose, (1,), {"weights": w, "u": torch.full((R,), u), "chosen": chosen, "R": R, "K": 32})
        j, sums = chosen[:, None].long(), w.double().cumsum(-1)
        assert (w.gather(-1, j) > 0).all()
        upto, before = sums.gather(-1, j), (sums - w).gather(-1, j)
        assert (upto >= (u - 1e-6) * sums[:, -1:]).all()
        assert (before <= (u + 1e-6) * sums[:, -1:]).all()


def drawn(raw, live, pen, M, means="linear", bias=None, temperature=None):
    """Rows, which of them end, and those of the reference in float32 and in float64."""
    n, (I, P) = len(raw), PENS[pen]
    bias, temperature = torch.zeros(n) if bias is None else bias, torch.ones(n) if temperature is None else temperature
    step, rows, ended = torch.arange(n) % 7, torch.full((n, I), math.nan), torch.empty(n, dtype=torch.bool)
    arguments = {"raw": raw, "live": live, "seed": torch.tensor([3, 40]), "step": step}
    arguments |= {"bias": bias, "temperature": temperature, "rows": rows, "ended": ended}
    constants = {"M": M, "MP": 1 << (M - 1).bit_length(), "P": P, "I": I, "SIGMOID": means == "sigmoid"}
    run(draw_rows, (n // 512,), arguments | {"R": 512} | constants)
    u = ops.uniforms(3, 40, n, 1, first_step=step)[:, 0]

    def expected(raw, u, bias, temperature):
        return reference.draw(reference.components(raw, pen, M, means), u, bias, temperature, pen)

    given = raw, u, bias, temperature
    return rows, ended, expected(*given), expected(*double(given))


@pytest.mark.parametrize("means", ["linear", "sigmoid"])
@pytest.mark.parametrize("M", [1, 2, 3, 20])
@pytest.mark.parametrize("pen", PENS)
def test_a_row_is_the_references(pen, M, means):
    """The same choices, and coordinates within the accuracy rule; bias and temperature are each row's own."""
    n = 2048
    raw = torch.randn(n, PENS[pen][1] + 6 * M)
    got, ended, low, exact = drawn(raw, torch.ones(n).bool(), pen, M, means, torch.rand(n), 0.5 + torch.rand(n))
    assert torch.equal(got[:, 2:], exact[:, 2:].float())
    assert torch.equal(ended, exact[:, -1] == 1 if pen == "categorical" else torch.zeros(n).bool())
    assert_accurate("offsets", got[:, :2], low[:, :2], exact[:, :2])  # of another component they would be far off


@pytest.mark.parametrize("s", [-40.0, 40.0])
@pytest.mark.parametrize("r", [-40.0, -14.0, 14.0, 40.0])
def test_deviations_and_correlations_are_clamped(s, r):
    """Around means of zero, so that the smallest deviations show."""
    n, M, sigma = 512, 2, math.exp(math.copysign(12, s))
    raw = torch.cat([torch.randn(n, 1 + M), torch.zeros(n, 2 * M), torch.full((n, 2 * M), s), torch.full((n, M), r)], 1)
    got, _, low, exact = drawn(raw, torch.ones(n).bool(), "bernoulli", M)
    assert_accurate("offsets", got[:, :2], low[:, :2], exact[:, :2])
    assert 1 < got[:, 0].abs().max() / sigma < 5
    torch.testing.assert_close(got[:, 1], math.copysign(1, r) * got[:, 0], rtol=0, atol=1e-5 * sigma)


@pytest.mark.parametrize("pen", PENS)
def test_rows_that_are_not_live_are_zero_and_never_end(pen):
    n, M = 512, 3
    raw, live = torch.randn(n, PENS[pen][1] + 6 * M), torch.rand(n) < 0.5
    rows, ended, *_ = drawn(raw, torch.ones(n).bool(), pen, M)
    some, some_ended, *_ = drawn(torch.where(live[:, None], raw, math.nan), live, pen, M)
    assert torch.equal(some, torch.where(live[:, None], rows, 0))
    assert torch.equal(some_ended, live & ended)
