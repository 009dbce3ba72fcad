"""The Triton sampler in the simulator, by each of its plans: values, bitwise promises, corner cases, promises to torch.

Memory that torch hands out uninitialised holds NaN in all calls, so that what nobody has written shows.
"""

import contextlib
import math
import warnings
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import functional, launch, plans, triton
from fusedmdn.ops.triton import refused

from fusedmdn import FusedLSTMMDN

from ..accuracy import assert_accurate
from ..conftest import Compiling, Idle, launching, simulated
from ..simulator import Simulator
from .problems import double, poisoned
from .test_generate import start, weights

PLANS = ["resident", "rows", "graph"]
HALF = [torch.bfloat16, torch.float16]
H = 20  # three programs of the resident plan


@pytest.fixture(params=PLANS)
def plan(request):
    """Forced, in a simulator that is fast: one program after the other, as far as they do not wait."""
    with running(request.param):
        yield request.param


@contextlib.contextmanager
def running(name, **simulator):
    with simulated(**{"race": False, "policy": "serial"} | simulator), ops.plan(name):
        yield


def network(pen="categorical", dtype=torch.float32, L=2, skip=True, peephole=True, M=3):
    I, P = (3, 1) if pen == "bernoulli" else (5, 3)
    w = weights(I, H, P + 6 * M, L, skip, peephole)
    w[-1][:P] = torch.tensor([0.0] if P == 1 else [1.0, 0.0, -1.5])
    return [v.to(dtype) for v in w], {"num_mixtures": M, "pen": pen, "skip": skip, "peephole": peephole}


def sample(w, options, begin, steps=5, **more):
    with poisoned():
        return ops.generate(w, begin, steps, **options, **more)


def by_reference(w, options, begin, steps=5, **more):
    with ops.backend("reference"):
        return ops.generate(w, begin, steps, **options, **more)


def alike(a, b):
    """Rows of the same pen and the same component: another one is far away."""
    return (a[..., 2:] == b[..., 2:]).all(-1) & ((a - b)[..., :2].abs().amax(-1) < 0.1)


def part(state, places):
    """Some sequences of a state, without seed and first index."""
    return [v[:, places] if v.dim() == 3 else v[places] for v in state[:5]]


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


# Values


@pytest.mark.parametrize(
    ("pen", "L", "skip", "peephole", "means"),
    [
        ("bernoulli", 1, False, False, "linear"),
        ("categorical", 1, True, True, "sigmoid"),
        ("categorical", 3, False, True, "linear"),
        ("bernoulli", 3, True, False, "linear"),
    ],
)
def test_float32_follows_the_exact_sampler(plan, pen, L, skip, peephole, means):
    """Fed back for 64 steps, up to a sequence's first choice that differs."""
    w, options = network(pen, torch.float32, L, skip, peephole)
    if pen == "categorical":
        w[-1][2] -= 5  # few end before
    options |= {"means": means, "bias": torch.rand(9), "temperature": 0.5 + torch.rand(9) / 2}
    begin = start(9, w[0].shape[1], H, L, seed=-1, first_index=(1 << 40) + 5)
    got = sample(w, options, begin, 64)[0]
    low, exact = by_reference(w, options, begin, 64)[0], by_reference(double(w), options, begin, 64)[0]
    same = (alike(got, exact) & alike(low, exact)).cummin(0).values
    assert same.double().mean() > 0.95
    assert_accurate("points", got[same], low[same], exact[same])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("pen", "means", "skip"), [("bernoulli", "sigmoid", True), ("categorical", "linear", False)])
def test_each_step_from_the_references_own_state(plan, pen, means, skip, dtype):
    """The same choices but for ties, coordinates within the accuracy rule."""
    w, options = network(pen, dtype, skip=skip, peephole=skip, M=20)
    options |= {"bias": 0.4, "temperature": 0.9, "means": means}
    state, got, low, exact = start(192, w[0].shape[1], H, 2, seed=1), [], [], []
    steps = differing = 0
    for _ in range(3):
        mine, theirs = sample(w, options, state, 1), by_reference(w, options, state, 1)
        truth = by_reference(double(w), options, state, 1)
        same = alike(mine[0][0], truth[0][0])
        differing += int((~state.done & ~same).sum())
        steps += int((~state.done).sum())
        keep = ~state.done & same & alike(theirs[0][0], truth[0][0])
        for values, result in ((got, mine), (low, theirs), (exact, truth)):
            values.append(torch.cat([result[0][0][keep].flatten(), result[2].c[:, keep].flatten()]))
        state = theirs[2]
    assert steps > 400
    assert differing <= 0.02 * steps  # half precision moves the weights of components themselves
    assert_accurate("rows and cells", *map(torch.cat, (got, low, exact)))


def test_real_weights_choose_as_the_reference_does(plan):
    """The shipped network, steps from the reference's own state, here and there along the strokes."""
    model = FusedLSTMMDN.from_pretrained("kanji")
    w = [v.detach() for v in model._weights()]
    options = {"num_mixtures": model.num_mixtures, "pen": model.pen, "skip": model.skip}
    state = start(32, 5, model.hidden_size, model.num_layers, seed=3)
    for _ in range({"resident": 3, "rows": 9, "graph": 9}[plan]):
        with running(plan, processors=132):
            mine = sample(w, options, state, 1)
        theirs = by_reference(w, options, state, 1)
        assert (mine[0] - theirs[0]).abs().max() < 1e-3
        state = by_reference(w, options, theirs[2], 4)[2]
    assert 0 < int(state.done.sum()) < 32


# Bitwise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_is_the_same_bit_for_bit_whatever_the_batch(plan, dtype):
    """Any batch size, position and number of programs."""
    w, options = network("categorical", dtype, M=20)  # whose draws are parts of a tile
    points, lengths, state = sample(w, options, start(70, 5, H, 2, seed=4, dtype=dtype))
    assert 0 < int(state.done.sum()) < 70
    sizes = [(1, 0, 8), (1, 69, 3), (2, 15, 20), (15, 3, 8), (16, 54, 3), (17, 20, 20), (40, 30, 3)]
    for B, first, processors in sizes:
        with running(plan, processors=processors):
            some = sample(w, options, start(B, 5, H, 2, seed=4, first_index=first, dtype=dtype))
        places = slice(first, first + B)
        assert torch.equal(some[0], points[:, places])
        assert torch.equal(some[1], lengths[places])
        assert_same(part(some[2], slice(None)), part(state, places))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calls_that_go_on_from_each_other_are_one(plan, dtype):
    """Cut anywhere, a prime before the first."""
    w, options = network("categorical", dtype)
    begin, primed = start(19, 5, H, 2, seed=6, dtype=dtype), {"prime": torch.randn(19, 2, 5)}
    points, lengths, state = sample(w, options, begin, 5, **primed)
    for cuts in ((0, 1, 5), (4, 5)):
        pieces, counts, current, at = [], 0, begin, 0
        for cut in cuts:
            piece, count, current = sample(w, options, current, cut - at, **(primed if current is begin else {}))
            pieces.append(piece)
            counts, at = counts + count, cut
        assert torch.equal(torch.cat(pieces), points)
        assert torch.equal(counts, lengths)
        assert_same(current, state)


def test_a_prime_is_read_the_same_bit_for_bit_whatever_the_batch(plan):
    """Lengths of their own, padding that may hold anything; and what is read is what the reference reads."""
    w, options = network()
    prime, lengths = torch.randn(20, 3, 5), torch.arange(20) % 4
    prime[torch.arange(3) >= lengths[:, None]] = math.nan
    options |= {"bias": torch.rand(20), "temperature": 0.5 + torch.rand(20)}
    begin, primed = start(20, 5, H, 2, seed=2), {"prime": prime, "prime_lengths": lengths}
    points, _, state = sample(w, options, begin, **primed)
    for b in (0, 1, 14, 19):
        own = options | {k: options[k][b : b + 1] for k in ("bias", "temperature")}
        alone = start(1, 5, H, 2, seed=2, first_index=b)
        one, _, after = sample(w, own, alone, prime=prime[b : b + 1, : lengths[b]])
        assert torch.equal(one[:, 0], points[:, b])
        assert_same(part(after, slice(None)), part(state, slice(b, b + 1)))
    only_read = sample(w, options, begin, 0, **primed)[2]
    torch.testing.assert_close(only_read, by_reference(w, options, begin, 0, **primed)[2], rtol=1e-5, atol=1e-5)
    assert torch.equal(sample(w, options, only_read)[0], points)


@pytest.mark.parametrize("name", PLANS)
def test_any_schedule_gives_the_same_bits(name):
    """And no program reads what another has yet to write: with the race detector."""
    w, options = network()
    begin, primed = start(19, 5, H, 2), {"prime": torch.randn(19, 2, 5), "prime_lengths": torch.arange(19) % 3}
    with running(name):
        points, _, state = sample(w, options, begin, 3, **primed)
    for seed, policy in ((1, "random"), (2, "priority")):
        with running(name, seed=seed, policy=policy, race=True):
            again = sample(w, options, begin, 3, **primed)
        assert torch.equal(again[0], points)
        assert_same(again[2], state)


# Corner cases


def as_reference(w, options, begin, steps, **more):
    """The result, compared with the reference's: counts exactly, values closely."""
    got, expected = sample(w, options, begin, steps, **more), by_reference(w, options, begin, steps, **more)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    return got


PRIMES = {
    "none": {},
    "of no rows": {"prime": torch.zeros(5, 0, 5)},
    "of length 0": {"prime": torch.full((5, 2, 5), math.nan), "prime_lengths": torch.zeros(5, dtype=torch.int64)},
    "ragged": {"prime": torch.rand(5, 3, 5), "prime_lengths": torch.tensor([3, 0, 1, 2, 3])},
}


@pytest.mark.parametrize("primed", PRIMES.values(), ids=PRIMES)
@pytest.mark.parametrize("steps", [0, 3])
def test_no_steps_and_no_prime_and_sequences_that_had_ended(plan, steps, primed):
    """An ended sequence reads no prime and keeps all that it had."""
    w, options = network()
    begin = start(5, 5, H, 2)
    begin = begin._replace(h=torch.randn(2, 5, H), c=torch.randn(2, 5, H), row=torch.rand(5, 5), drawn=torch.arange(5))
    begin = begin._replace(done=torch.tensor([False, True, False, True, True]))
    points, lengths, after = as_reference(w, options, begin, steps, **primed)
    assert_same(part(after, begin.done), part(begin, begin.done))
    assert not points[:, begin.done].any()
    assert not lengths[begin.done].any()
    ended = begin._replace(done=torch.ones(5).bool())
    points, lengths, after = as_reference(w, options, ended, steps, **primed)
    assert_same(after, ended)
    assert not points.any()


@pytest.mark.parametrize("steps", [0, 3])
def test_no_sequences(plan, steps):
    w, options = network()
    for primed in ({}, {"prime": torch.zeros(0, 2, 5)}):
        points, lengths, _ = as_reference(w, options, start(0, 5, H, 2), steps, **primed)
        assert (points.shape, lengths.shape) == ((steps, 0, 5), (0,))


def test_after_the_end_nothing_moves(plan):
    w, options = network()
    w[-1][:3] = torch.tensor([0.0, 0.0, 1.0])
    points, lengths, state = as_reference(w, options, start(19, 5, H, 2), 12)
    assert state.done.all()
    assert torch.equal(state.drawn, lengths + 1)
    assert torch.equal(state.row, torch.eye(5)[4].expand(19, 5))
    for b, n in enumerate(lengths.tolist()):
        assert points[n, b].tolist() == [0, 0, 0, 0, 1]
        assert not points[n + 1 :, b].any()
    for primed in ({}, {"prime": torch.rand(19, 2, 5)}):
        again, more, after = sample(w, options, state, 2, **primed)
        assert not again.any()
        assert not more.any()
        assert_same(after, state)


def test_ended_sequences_stand_still_while_others_go_on(plan):
    """The state of each is that of its own last step, as if it had been sampled alone."""
    w, options = network()
    _, lengths, state = sample(w, options, start(6, 5, H, 2, seed=1), 4)
    assert 0 < int(state.done.sum()) < 6
    for b in range(6):
        alone = sample(w, options, start(1, 5, H, 2, seed=1, first_index=b), int(lengths[b] + state.done[b]))[2]
        assert_same(part(alone, slice(None)), part(state, slice(b, b + 1)))


# Promises to torch, and plans


def arguments(B, steps):
    """Of the operator itself; slices that begin anywhere are among them."""
    w, options = network()
    *state, seed, first = start(B, 5, H, 2)
    prime, lengths, bias = torch.rand(B + 1, 3, 5)[1:], torch.full((B + 1,), 2)[1:], torch.zeros(B + 1)[1:]
    sizes = options["num_mixtures"], options["pen"], "linear", options["skip"], options["peephole"]
    return w, *state, torch.stack([seed, first]), steps, bias, torch.ones(B), prime, lengths, *sizes


@pytest.mark.parametrize("name", PLANS)
def test_nothing_looks_at_values_or_waits(name):
    """So that a call can be captured in a CUDA graph: no .item(), .cpu(), .tolist(), bool() or synchronize()."""

    def refuse(*_, **__):
        raise AssertionError("a value was looked at")

    given = arguments(5, 3)
    names = ["item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(launching(Idle()))
        stack.enter_context(ops.plan(name))
        for method in names:
            stack.enter_context(mock.patch.object(torch.Tensor, method, refuse))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", refuse))
        stack.enter_context(mock.patch.object(torch.cuda.Stream, "synchronize", refuse))
        triton.generate(*given)
        with pytest.raises(AssertionError, match="looked at"):
            torch.zeros(1).item()


@pytest.mark.parametrize("name", ["rows", "graph"])
def test_one_compilation_serves_every_batch_and_number_of_steps(name, pretended_gpu):
    """Counted over B and steps that are 1, multiples of 16, and neither."""
    with launching(Compiling()) as compiling, ops.plan(name):
        for B, steps in ((1, 1), (16, 1), (3, 16), (32, 2), (70, 5)):
            triton.generate(*arguments(B, steps))
    counts = [len(kernel.device_caches[pretended_gpu][0]) for kernel in compiling.kernels]
    assert counts == [1] * {"rows": 1, "graph": 3}[name]


def test_a_forced_plan_that_does_not_fit_is_named():
    w, options = network()
    message = r"the resident plan does not fit: L=2, H=20, D=21, torch.float32, tf32x3"
    with running("resident", processors=2), pytest.raises(RuntimeError, match=message):
        sample(w, options, start(2, 5, H, 2))


class Refusing(Simulator):
    device = plans.Device("sm_90", 8, 227 * 1024)

    def __call__(self, kernel, grid, arguments, options=None):
        if options.cooperative:
            raise launch.LaunchRefusedError("too many blocks in cooperative launch")
        return super().__call__(kernel, grid, arguments)


def test_a_refused_launch_streams_the_weights_instead_and_says_so_once():
    w, options = weights(5, 64, 21, 2), {"num_mixtures": 3, "pen": "categorical"}  # so large that residence pays
    begin, primed = start(3, 5, 64, 2), {"prime": torch.rand(3, 2, 5)}
    with ops.backend("triton"), launching(Refusing()), mock.patch.object(refused, "_refused", set()):
        with pytest.warns(ops.FallbackWarning, match="generate runs without the weights on chip: too many blocks"):
            got = sample(w, options, begin, **primed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = sample(w, options, begin, **primed)
        with ops.plan("resident"), pytest.raises(launch.LaunchRefusedError, match="too many"):  # never replaced
            sample(w, options, begin, **primed)
    torch.testing.assert_close(got, by_reference(w, options, begin, **primed), rtol=1e-4, atol=1e-4)
    assert torch.equal(again[0], got[0])
    assert_same(again[2], got[2])


def test_what_overflows_says_what_to_lower():
    w, _ = network()
    B, given = 1 << 30, start(3, 5, H, 2)
    h, c = (v[:, :1].expand(2, B, H) for v in given[:2])
    row, drawn, done = (v[:1].expand(B, *v.shape[1:]) for v in given[2:5])
    with (
        running("rows"),
        pytest.raises(ValueError, match="1073741824 sequences of 0 . 1 rows overflow .* lower the larg"),
    ):
        triton.generate(
            w, h, c, row, drawn, done, given.seed, 1, *[None] * 4, 3, "categorical", "linear", True, True
        )  # fmt: skip


def test_prime_lengths_that_a_gpu_does_not_look_at_are_bounded(plan):
    """As long as the prime, and not negative: no kernel reads or counts beyond."""
    w, options = network()
    begin, prime = start(4, 5, H, 2), torch.rand(4, 3, 5)
    with mock.patch.object(functional, "check_lengths", lambda lengths, *_: lengths):
        got = sample(w, options, begin, prime=prime, prime_lengths=torch.tensor([1, 1 << 40, -5, 3]))
    expected = sample(w, options, begin, prime=prime, prime_lengths=torch.tensor([1, 3, 0, 3]))
    assert torch.equal(got[0], expected[0])
    assert_same(got[2], expected[2])


def test_a_capture_wants_all_tensors_on_the_gpu():
    """There a replay finds new values; a number from the host would be frozen, and its copy is forbidden."""
    w, options = network()
    elsewhere = torch.zeros((), dtype=torch.int64, device="meta")
    with mock.patch.object(functional, "capturing", return_value=True):
        with pytest.raises(
            RuntimeError, match="first_index: inside a CUDA graph's capture .* on cpu, .* got one on meta"
        ):
            sample(w, options, start(3, 5, H, 2)._replace(first_index=elsewhere))
        with pytest.raises(RuntimeError, match="bias: inside a CUDA graph's capture"):
            sample(w, options, start(3, 5, H, 2), bias=elsewhere.float())
        assert sample(w, options, start(3, 5, H, 2))[0].shape == (5, 3, 5)
    model = FusedLSTMMDN(3, 8, 1, 2)
    with mock.patch.object(launch, "capturing", return_value=True):
        with pytest.raises(RuntimeError, match="seed: none can be drawn inside a CUDA graph's capture"):
            model.generate(2, 3)
        assert model.generate(2, 3, seed=torch.tensor(1)).points.shape == (2, 3, 3)


def test_inference_mode_changes_nothing(plan):
    w, options = network()
    with torch.inference_mode():
        inside = sample(w, options, start(3, 5, H, 2))
    assert torch.equal(inside[0], sample(w, options, start(3, 5, H, 2))[0])
