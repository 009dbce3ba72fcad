"""The C++ kernels, on every instruction set that this machine has: accuracy, bitwise promises, caching, refusals."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time

import fusedmdn.ops as ops
import numpy as np
import pytest
import torch
from fusedmdn.ops import _cpu, cpu, functional, recycled, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedmdn import FusedLSTMMDN

from ..accuracy import assert_accurate
from .problems import backward_arguments, check, lstm_arguments, mdn_arguments, repeats_for
from .test_generate import start, weights
from .test_mdn_nll import PENS

SIZES = [1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 33, 47, 64, 67]
DTYPES = [torch.float32, torch.bfloat16]
RARE = 1e-4  # share of choices that may fall on a tie


@pytest.fixture(params=_cpu.isas())
def isa(request):
    with _cpu.forced_isa(request.param), ops.backend("cpu"):
        yield request.param


def check_lstm(T, B, H, *options, repeats=None):
    repeats = repeats or repeats_for(T, B, H)
    check(cpu, ["h", "h_T", "c_T", "gates", "cells"], "lstm", lambda: lstm_arguments(T, B, H, *options), repeats)
    names = ["xw", "h0", "c0", "peephole"]
    check(cpu, names, "lstm_backward", lambda: backward_arguments(lstm_arguments(T, B, H, *options)), repeats)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", SIZES)
def test_accuracy_of_lstm(isa, H, dtype):
    for T, B, *options in ((6, 7, False, False, None), (5, 13, True, True, 0.05), (4, 3, True, True, None, True)):
        check_lstm(T, B, H, dtype, *options)


@pytest.mark.parametrize("H", [1, 5, 16])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_empty_and_smallest(isa, T, B, H):
    for dtype in DTYPES:
        for packed in (False, True):
            check_lstm(T, B, H, dtype, True, True, 0.1, packed, repeats=1 if T * B == 0 else 30)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 40), st.sampled_from(DTYPES), st.data())
def test_accuracy_over_shapes(T, B, H, dtype, data):
    peephole, ragged, packed = (data.draw(st.booleans()) for _ in range(3))
    clip = data.draw(st.sampled_from([None, 0.02, 1.0]))
    with _cpu.forced_isa(data.draw(st.sampled_from(_cpu.isas()))):
        check_lstm(T, B, H, dtype, peephole, ragged, clip, packed, repeats=max(4, repeats_for(T, B, H)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("pen", "P", "width"), PENS)
@pytest.mark.parametrize("M", [1, 2, 3, 5, 16, 17, 20, 33, 128])
def test_accuracy_of_mdn_nll(isa, pen, P, width, M, dtype):
    for T, B, ragged, means, clip in ((17, 61, False, "linear", None), (53, 25, True, "sigmoid", 0.3)):
        arguments = mdn_arguments(T, B, M, P, pen, dtype, ragged, means, clip)
        check(cpu, ["nll"], "mdn_nll", lambda given=arguments: given)
        check(
            cpu,
            ["raw", "target"],
            "mdn_nll_backward",
            lambda given=arguments: [torch.randn(given[0].shape[:2]), *given, True],
        )


@settings(max_examples=40)
@given(st.integers(0, 9), st.integers(0, 40), st.integers(1, 24), st.sampled_from(PENS), st.data())
def test_accuracy_of_mdn_nll_over_shapes(T, B, M, pen_model, data):
    (pen, P, _), dtype = pen_model, data.draw(st.sampled_from(DTYPES))
    ragged, means = data.draw(st.booleans()), data.draw(st.sampled_from(["linear", "sigmoid"]))
    with _cpu.forced_isa(data.draw(st.sampled_from(_cpu.isas()))):
        options, repeats = (T, B, M, P, pen, dtype, ragged, means), min(20, repeats_for(T, B))
        check(cpu, ["nll"], "mdn_nll", lambda: mdn_arguments(*options), repeats)

        def backward():
            return [torch.randn(T, B), *mdn_arguments(*options, 1.0), True]

        check(cpu, ["raw", "target"], "mdn_nll_backward", backward, repeats)


@pytest.mark.parametrize(("pen", "P", "width"), PENS)
def test_extremes_are_finite_and_equal_the_reference(isa, pen, P, width):
    """Values to ±1e6, infinities and NaN: finite where the reference is, NaN or infinite where it is."""
    M, values = 2, torch.tensor([0.0, 12.0, -12.0, 15.5, -15.5, 1e-30, 1e-42, 88.0, -104.0, 1e3, -1e3, 1e6, -1e6])
    special = torch.tensor([math.inf, -math.inf, math.nan])
    random = torch.Generator().manual_seed(0)
    raw = values[torch.randint(len(values), (400, 1, P + 6 * M), generator=random)]
    target = values[torch.randint(len(values), (400, 1, width), generator=random)]
    for lines in (raw[200:], target[200:]):
        which = torch.randint(lines.shape[-1], (200,), generator=random)
        lines[torch.arange(200), 0, which] = special[torch.randint(3, (200,), generator=random)]
    nll = cpu.mdn_nll(raw, target, None, pen, M, "linear", None)
    expected = reference.mdn_nll(raw, target, None, pen, M, "linear", None)
    gradient, _ = cpu.mdn_nll_backward(torch.ones_like(nll), raw, target, None, pen, M, "linear", None, False)
    assert nll[:200].isfinite().all()
    assert gradient[:200].isfinite().all()
    assert torch.equal(nll.isfinite(), expected.isfinite())
    torch.testing.assert_close(nll[:200], expected[:200], rtol=1e-5, atol=1e-5)


def test_nan_infinity_and_denormals_pass_through_the_recurrence(isa):
    xw = torch.zeros(3, 4, 4 * 20)
    xw[0, 0, 5], xw[0, 1, 45], xw[0, 2, 65] = math.nan, math.inf, -math.inf
    c0 = torch.zeros(4, 20)
    c0[3] = 1e-41
    arguments = xw, torch.eye(20).repeat(4, 1), torch.zeros(4, 20), c0, None, None, None, True
    got, expected = cpu.lstm(*arguments), reference.lstm(*arguments)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert got[4][0, 3, 0] == expected[4][0, 3, 0] > 0  # half of a denormal, not zero


def test_strided_inputs_are_read_in_place_or_copied(isa):
    xw, weight, h0, c0, p, lengths, clip, save = lstm_arguments(5, 4, 9, torch.float32, True, True, None)
    expected = cpu.lstm(xw, weight, h0, c0, p, lengths, clip, save)
    swapped = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in (xw, weight, h0, c0, p)]
    for a, b in zip(cpu.lstm(*swapped, lengths, clip, save), expected, strict=True):
        assert torch.equal(a, b)
    grads = torch.randn(5, 4, 30), torch.randn(4, 9), torch.randn(4, 9)
    rest = weight, c0, p, lengths, expected[3], expected[4], None
    wide = cpu.lstm_backward(grads[0][..., 7:16], *grads[1:], *rest)
    for a, b in zip(wide, cpu.lstm_backward(grads[0][..., 7:16].contiguous(), *grads[1:], *rest), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_rows_equal_padded_ones_bit_for_bit(isa, dtype):
    """Through the module: the same loss and the same gradient of every row, masked rows NaN or not."""
    lengths = torch.tensor([3, 9, 0, 9, 1, 6])
    order = lengths.argsort(descending=True, stable=True)
    xw, weight, h0, c0, p, *_ = lstm_arguments(9, 6, 21, dtype, True, False, None)
    dense = cpu.lstm(xw, weight, h0, c0, p, lengths, None, True)
    live = reference.alive(9, lengths[order])[..., 0]
    packed = cpu.lstm(xw[:, order][live], weight, h0[order], c0[order], p, lengths[order], None, True)
    for k in (0, 3, 4):
        assert torch.equal(packed[k], dense[k][:, order][live])
    assert torch.equal(packed[1], dense[1][order])
    assert torch.equal(packed[2], dense[2][order])


def test_module_packs_ragged_batches():
    model, x, lengths = FusedLSTMMDN(3, 12, 2, 2, skip=True, peephole=True), torch.randn(8, 5, 3), [8, 0, 3, 8, 1]
    state = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    for b, n in enumerate(lengths):
        x[n:, b] = math.nan
    lengths = torch.tensor(lengths)
    results = []
    for name in ("cpu", "reference"):
        with ops.backend(name):
            assert ops.runs_on_cpu_kernels(model.head.weight) == (name == "cpu")
            nll, (h, c) = model(x, state, lengths, target=x)
            gradients = torch.autograd.grad(nll.sum() + h.sum() + (c * c).sum(), model.parameters())
            results.append((nll, h, c, *gradients))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, [3, 2], [2, 4], [5, -1]])
def test_packed_rows_need_their_lengths(lengths):
    lengths = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(ValueError, match="lengths: "):
        ops.lstm(torch.zeros(4, 8), torch.zeros(8, 2), lengths=lengths)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_training_is_the_same_bit_for_bit_for_any_number_of_threads(isa, threads, monkeypatch):
    monkeypatch.setattr(cpu, "ALONE", 1.0)
    forward = lstm_arguments(6, 11, 19, torch.float32, True, True, 0.1)
    backward = backward_arguments(forward)
    mdn = mdn_arguments(9, 40, 4, 1, "bernoulli", torch.float32, True, "linear")

    def everything():
        yield from cpu.lstm(*forward)
        yield from cpu.lstm_backward(*backward)
        yield cpu.mdn_nll(*mdn)
        yield from cpu.mdn_nll_backward(torch.ones(9, 40), *mdn, True)

    alone = with_threads(1, lambda: list(everything()))
    for a, b in zip(alone, with_threads(threads, lambda: list(everything())), strict=True):
        assert torch.equal(a, b)


def with_threads(threads, run):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


# The sampler


def network(pen, dtype=torch.float32, H=45, L=2, M=3):
    I, P = (3, 1) if pen == "bernoulli" else (5, 3)
    w = weights(I, H, P + 6 * M, L, True, True)
    w[-1][:P] = torch.tensor([0.0] if P == 1 else [1.0, 0.0, -1.5])
    return [v.to(dtype) for v in w], {"num_mixtures": M, "pen": pen, "skip": True, "peephole": True}, I


def sample(w, options, begin, steps=40, **more):
    return ops.generate(w, begin, steps, **options, **more)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_samples_are_the_same_bit_for_bit_whatever_the_batch(isa, pen, dtype):
    """Any batch size, position, number of threads; and cut anywhere into calls."""
    w, options, I = network(pen, dtype)
    many, lengths, state = sample(w, options, start(513, I, 45, 2, seed=4))
    for B in (1, 2, 3, 7, 8, 64):
        for first in (0, 300, 513 - B):
            for threads in (1, 2):
                begin = start(B, I, 45, 2, seed=4, first_index=first)
                part = with_threads(threads, lambda begin=begin: sample(w, options, begin))
                places = slice(first, first + B)
                assert torch.equal(part[0], many[:, places])
                assert torch.equal(part[1], lengths[places])
                assert torch.equal(part[2].h, state.h[:, places])
                assert torch.equal(part[2].row, state.row[places])
    for cuts in ((0, 1, 7, 40), (39, 40), (13, 13, 40)):
        pieces, current, at_step = [], start(513, I, 45, 2, seed=4), 0
        for cut in cuts:
            points, _, current = sample(w, options, current, cut - at_step)
            pieces.append(points)
            at_step = cut
        assert torch.equal(torch.cat(pieces), many)
        assert all(torch.equal(a, b) for a, b in zip(current, state, strict=True))


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_one_sequence_is_shared_between_threads_bit_for_bit(isa, pen):
    """B = 1: the panels of a layer are split, whatever the team."""
    w, options, I = network(pen, H=200)
    begin = start(1, I, 200, 2, seed=8)
    alone = with_threads(1, lambda: sample(w, options, begin, 300))
    for threads in (2, 3, 4):
        team = with_threads(threads, lambda: sample(w, options, begin, 300))
        assert torch.equal(team[0], alone[0])
        assert torch.equal(team[2].c, alone[2].c)


def test_priming_is_the_same_bit_for_bit_whatever_the_batch(isa):
    w, options, I = network("categorical")
    prime, lengths = torch.randn(90, 6, I), torch.randint(0, 7, (90,))
    options |= {"bias": torch.rand(90), "temperature": 0.5 + torch.rand(90)}
    points, _, state = sample(w, options, start(90, I, 45, 2), prime=prime, prime_lengths=lengths)
    for b in range(0, 90, 13):
        one = options | {k: options[k][b : b + 1] for k in ("bias", "temperature")}
        given = {"prime": prime[b : b + 1, : lengths[b]]}
        alone, _, after = sample(w, one, start(1, I, 45, 2, first_index=b), **given)
        assert torch.equal(alone[:, 0], points[:, b])
        assert torch.equal(after.h[:, 0], state.h[:, b])
    only_primed = sample(w, options, start(90, I, 45, 2), 0, prime=prime, prime_lengths=lengths)[2]
    later = sample(w, options, only_primed)
    assert torch.equal(later[0], points)


@pytest.mark.parametrize("means", ["linear", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_each_step_from_the_references_own_state(isa, pen, dtype, means):
    """100,000 steps in all: the same choices but for ties, coordinates within the accuracy rule."""
    B, T = 2048, 7
    w, options, I = network(pen, dtype, H=24)
    options |= {"bias": 0.4, "temperature": 0.9, "means": means}
    state, exact_w = start(B, I, 24, 2, seed=1), [v.double() for v in w]
    differing, steps = 0, 0
    got, low, exact = [], [], []
    for _ in range(T):
        with ops.backend("cpu"):
            mine = sample(w, options, state, 1)
        with ops.backend("reference"):
            theirs = sample(w, options, state, 1)
            truth = sample(exact_w, options, state, 1)
        going = ~state.done
        pen_columns = slice(2, None)
        same = (mine[0][0, :, pen_columns] == truth[0][0, :, pen_columns]).all(-1)
        near = (mine[0][0] - truth[0][0]).abs().amax(-1) < 0.1  # another component is far away
        alike = (theirs[0][0] - truth[0][0]).abs().amax(-1) < 0.1
        differing += int((going & ~(same & near)).sum())
        steps += int(going.sum())
        keep = going & same & near & alike
        for values, result in ((got, mine), (low, theirs), (exact, truth)):
            values.append(torch.cat([result[0][0][keep].flatten(), result[2].c[:, keep].flatten()]))
        state = theirs[2]
    bound = RARE if dtype == torch.float32 else 0.02  # bfloat16 moves the weights of components themselves
    assert differing <= bound * steps
    assert steps > 5000
    assert_accurate("rows and cells", *map(torch.cat, (got, low, exact)))


def test_real_weights_choose_as_the_reference_does():
    """100,000 steps of the shipped network, each from the reference's own state."""
    model = FusedLSTMMDN.from_pretrained("kanji")
    w, B = [v.detach() for v in model._weights()], 1250
    options = {"num_mixtures": model.num_mixtures, "pen": model.pen, "skip": model.skip}
    state = start(B, 5, model.hidden_size, model.num_layers, seed=3)
    steps = differing = 0
    while steps < 100_000:
        if state.done.all():
            state = start(B, 5, model.hidden_size, model.num_layers, seed=3, first_index=steps)
        with ops.backend("reference"):
            theirs = sample(w, options, state, 1)
        with ops.backend("cpu"):
            mine = sample(w, options, state, 1)
        going = ~state.done
        far = (mine[0][0] - theirs[0][0]).abs().amax(-1) > 1e-3
        differing += int((going & far).sum())
        steps += int(going.sum())
        state = theirs[2]
    assert differing <= RARE * steps, f"{differing} of {steps}"


def test_packed_weights_follow_every_change():
    """A fused Adam step, a write through .data and load_state_dict leave no trace but the values themselves."""
    model = FusedLSTMMDN(3, 24, 2, 3)
    options, begin = {"num_mixtures": 3}, start(4, 3, 24, 2)

    def drawn():
        return sample([w.detach() for w in model._weights()], options, begin, 10)[0]

    def fresh():
        cpu._packed.clear()
        return drawn()

    before = drawn()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=True)
    model.nll(torch.randn(5, 2, 3)).backward()

    def write():
        model.weight_hh_l1.data.neg_()

    def load():
        model.load_state_dict(FusedLSTMMDN(3, 24, 2, 3).state_dict())

    def one_bit():
        model.head.bias.data.view(torch.int32)[7] ^= 1 << 22

    for change in (optimizer.step, write, load, one_bit):
        change()
        after = drawn()
        assert not torch.equal(after, before), change
        assert torch.equal(after, fresh())
        before = after


def test_packed_weights_are_kept_for_the_next_call_and_let_go():
    options, begin = {"num_mixtures": 2}, start(2, 3, 8)
    cpu._packed.clear()
    networks = [weights(3, 8, 13) for _ in range(cpu.PACKED_NETWORKS + 2)]
    for w in networks:
        sample(w, options, begin, 2)
    assert len(cpu._packed) == cpu.PACKED_NETWORKS
    kept = list(cpu._packed)
    sample([v.clone() for v in networks[-1]], options, begin, 2)  # equal contents elsewhere
    assert list(cpu._packed) == kept
    bf16 = [v.bfloat16() for v in networks[-1]]
    assert not torch.equal(sample(bf16, options, begin, 20)[0], sample(networks[-1], options, begin, 20)[0])


def test_checksum_sees_every_bit():
    lib = _cpu.library()
    data = torch.randn(777)

    def checksum(*tensors):
        pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        sizes = (ctypes.c_int64 * len(tensors))(*(t.nbytes for t in tensors))
        sums = {lib.fusedmdn_checksum(pointers, sizes, len(tensors), threads) for threads in (1, 2, 5)}
        assert len(sums) == 1
        return sums.pop()

    seen = {checksum(data), checksum(-data), checksum(data[:776].clone()), checksum(data[:400], data[400:].clone())}
    for k in range(0, 777, 37):
        for bit in (0, 15, 31):
            changed = data.clone()
            changed.view(torch.int32)[k] ^= (1 << bit) - (1 << 32) * (bit == 31)
            seen.add(checksum(changed))
    assert len(seen) == 4 + 21 * 3


def test_sampling_from_several_threads_at_once():
    w, options, I = network("bernoulli")
    expected = [sample(w, options, start(5, I, 45, 2, seed=k), 60)[0] for k in range(4)]
    results = [None] * 4

    def work(k):
        for _ in range(5):
            results[k] = sample(w, options, start(5, I, 45, 2, seed=k), 60)[0]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_sampling_after_a_fork():
    """No thread outlives a call, so a forked worker can sample."""
    w, options, I = network("bernoulli", H=200)
    begin = start(1, I, 200, 2)
    expected = sample(w, options, begin, 50)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(sample(w, options, begin, 50)[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_training_after_a_fork():
    """The threads that training shares with PyTorch are not in a forked process, which would wait for them for ever."""
    xw, w = torch.randn(30, 64, 256), torch.randn(256, 64)
    raw, target = torch.randn(100, 64, 121), torch.randn(100, 64, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:

        def values():
            return [v.numpy() for v in (ops.lstm(xw, w)[0], ops.mdn_nll(raw, target, num_mixtures=20))]

        torch.mm(raw[0], raw[0].t())  # starts PyTorch's threads, if the kernels did not
        expected = values()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if all(map(np.array_equal, values(), expected)) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_a_long_call_hears_ctrl_c():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored by background jobs
        "from fusedmdn import FusedLSTMMDN; model = FusedLSTMMDN(3, 400, 3, 20, skip=True); model.generate(1, 1)\n"
        "try: print('ready', flush=True); model.generate(512, 100_000, seed=0)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(3)
    child.send_signal(signal.SIGINT)
    asked = time.monotonic()
    try:
        assert child.communicate(timeout=60)[0] == "interrupted\n"
    finally:
        child.kill()
    assert time.monotonic() - asked < 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_rounded_as_by_torch(dtype):
    """In pieces where PyTorch would use several threads; weights need be neither contiguous nor small."""
    weight = torch.randn(700, 99).t().requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rounded = functional._rounded(weight, dtype)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rounded, weight.to(dtype))
    assert rounded.is_contiguous()
    assert not rounded.requires_grad


def test_generate_in_bfloat16_on_request():
    model = FusedLSTMMDN(3, 32, 2, 4)
    half = FusedLSTMMDN(3, 32, 2, 4).bfloat16()
    half.load_state_dict(model.state_dict())
    drawn = model.generate(6, 30, seed=1, dtype=torch.bfloat16)
    assert torch.equal(drawn.points, half.generate(6, 30, seed=1).points)
    assert (drawn.points.dtype, drawn.state.c.dtype) == (torch.float32, torch.float32)
    pieces = model.generate(6, 10, seed=1, dtype=torch.bfloat16)
    rest = model.generate(6, 20, state=pieces.state, dtype=torch.bfloat16)
    assert torch.equal(torch.cat([pieces.points, rest.points], 1), drawn.points)
    with pytest.raises(ValueError, match=r"dtype: expected float64, float32, .* got torch.int32"):
        model.generate(6, 30, dtype=torch.int32)


# Refusals: named from Python, before C++ sees a pointer


def op(name):
    return getattr(torch.ops.fusedmdn, name)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 2), r"xw: expected shape \(T, B, 4H\)|lengths: "),
        (0, torch.zeros(3, 2, 7), r"xw: expected shape \(T, B, 4H\)"),
        (1, torch.zeros(8, 3), r"weight_hh: expected shape \(8, 2\), got \(8, 3\)"),
        (1, torch.zeros(8, 2, dtype=torch.bfloat16), r"weight_hh: expected torch.float32, got torch.bfloat16"),
        (2, torch.zeros(1, 2), r"h0: expected shape \(2, 2\), got \(1, 2\)"),
        (3, torch.zeros(2, 2, device="meta"), r"c0: expected a CPU tensor, got \(2, 2\) on meta"),
        (4, torch.zeros(2, 3), r"peephole: expected shape \(3, 2\), got \(2, 3\)"),
        (5, torch.tensor([4, 1]), r"lengths: expected values in \[0, 3\], got 1 to 4"),
        (5, torch.tensor([1.0, 1.0]), r"lengths: expected integers, got torch.float32"),
    ],
)
def test_lstm_refuses_by_name(place, value, message):
    arguments = [torch.zeros(3, 2, 8), torch.zeros(8, 2), torch.zeros(2, 2), torch.zeros(2, 2), None, None, None, True]
    arguments[place] = value
    with ops.backend("cpu"), pytest.raises(ValueError, match=message):
        cpu.lstm(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw": torch.zeros(3, 2, 12)}, r"raw: expected shape \(3, 2, 13\), got \(3, 2, 12\)"),
        ({"raw": torch.zeros(3, 2, 13, dtype=torch.float64)}, "raw: the CPU kernels take float32 and bfloat16"),
        ({"target": torch.zeros(3, 2, 5)}, r"target: expected shape \(3, 2, 3\), got \(3, 2, 5\)"),
        ({"grad": torch.zeros(2, 3)}, r"grad: expected shape \(3, 2\), got \(2, 3\)"),
        ({"lengths": torch.tensor([0, -1])}, r"lengths: expected values in \[0, 3\], got -1 to 0"),
        ({"clip": 0.0}, "clip must be > 0 or None, got 0.0"),
        ({"pen": "quill"}, "pen must be 'bernoulli' or 'categorical', got 'quill'"),
        ({"means": "cubic"}, "means must be 'linear' or 'sigmoid', got 'cubic'"),
        ({"M": 0, "raw": torch.zeros(3, 2, 1)}, "num_mixtures must be >= 1, got 0"),
    ],
)
def test_mdn_nll_refuses_by_name(change, message):
    a = {"grad": torch.zeros(3, 2), "raw": torch.zeros(3, 2, 13), "target": torch.zeros(3, 2, 3), "lengths": None}
    a = a | {"clip": None, "pen": "bernoulli", "M": 2, "means": "linear"} | change
    with pytest.raises(ValueError, match=message):
        cpu.mdn_nll_backward(*(a[k] for k in ("grad", "raw", "target", "lengths", "pen", "M", "means", "clip")), False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.zeros(1, 3, 8)}, r"c: expected shape \(1, 3, 8\), got \(1, 2, 8\)|drawn: expected shape"),
        ({"row": torch.zeros(2, 5)}, r"row: expected shape \(2, 3\), got \(2, 5\)"),
        ({"drawn": torch.tensor([0, -1])}, r"drawn: expected values in \[0, 2\^32 - 4\], got -1 to 0"),
        ({"drawn": torch.tensor([0, (1 << 32) - 3])}, r"drawn: expected values in .* got 0 to 4294967293"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, r"seed: expected shape \(2,\), got \(3,\)"),
        ({"bias": torch.zeros(3)}, r"bias: expected shape \(2,\), got \(3,\)"),
        ({"prime": torch.zeros(2, 4, 5)}, r"prime: expected shape \(2, 4, 3\), got \(2, 4, 5\)"),
    ],
)
def test_generate_refuses_by_name(change, message):
    state = start(2, 3, 8)
    a = dict(zip(("h", "c", "row", "drawn", "done"), state[:5], strict=True))
    a |= {"seed": torch.zeros(2, dtype=torch.int64), "bias": torch.zeros(2), "prime": None} | change
    with pytest.raises(ValueError, match=message):
        cpu.generate(
            weights(3, 8, 13), *(a[k] for k in ("h", "c", "row", "drawn", "done", "seed")), 4, a["bias"], torch.ones(2),
            a["prime"], None, 2, "bernoulli", "linear", False, False,
        )  # fmt: skip


# Memory that is used again


def test_large_arrays_use_their_memory_again(monkeypatch):
    """Freed memory serves the next array of about its size, never one that is still in use; what is kept is bounded."""
    monkeypatch.setattr(recycled, "SMALLEST", 1 << 16)
    monkeypatch.setattr(recycled, "ROUNDED", 1 << 16)
    monkeypatch.setattr(recycled, "KEPT", 1 << 20)
    like = torch.empty(0)
    first = recycled.empty(like, 100, 200)
    view, address = first.fill_(1)[5:], first.data_ptr()
    second = recycled.empty(like, 100, 200).fill_(2)
    del first
    third = recycled.empty(like, 100, 200).fill_(3)  # the view still holds the first one's memory
    assert len({address, second.data_ptr(), third.data_ptr()}) == 3
    assert (view == 1).all()
    assert (second == 2).all()
    del view
    again = recycled.empty(like, 110, 180)
    assert again.data_ptr() == address
    assert not again._is_view()
    for _ in range(3):
        del second, third, again
        second, third, again = (recycled.empty(like, 300, 300 + 50 * k) for k in range(3))
    del second, third, again
    assert sum(size for size, _ in recycled._free) <= 1 << 20
    assert recycled.empty(like, 7, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert recycled.empty(like.to("meta"), 1000, 1000).device.type == "meta"


def test_training_on_recycled_memory_is_the_same(monkeypatch):
    model, x, lengths = FusedLSTMMDN(3, 40, 2, 3, skip=True), torch.randn(20, 8, 3), torch.randint(1, 21, (8,))

    def gradients():
        return torch.autograd.grad(model.nll(x, lengths) + model.nll(x), model.parameters())

    expected = gradients()
    monkeypatch.setattr(recycled, "SMALLEST", 1 << 10)
    monkeypatch.setattr(recycled, "ROUNDED", 1 << 10)
    for _ in range(3):
        for a, b in zip(gradients(), expected, strict=True):
            assert torch.equal(a, b)
