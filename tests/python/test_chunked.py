"""Sampling in chunks: the same bits as at once; and the order of a GPU's work and its host's, on a pretended GPU."""

import contextlib
import math
import weakref
from collections import deque
from functools import partial

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import chunked

from .test_generate import start, weights

STEPS = 20


def problem(pen="bernoulli", B=6, end=-1.0, device="cpu", dtype=torch.float32):
    """Weights, a state, options. The logits of a categorical pen are 1, 0 and `end`."""
    I, pens = {"bernoulli": (3, [0.0]), "categorical": (5, [1.0, 0.0, end])}[pen]
    w = weights(I, 8, len(pens) + 12, 2, True, True, dtype, device)
    w[-1][: len(pens)] = torch.tensor(pens)
    state = start(B, I, 8, 2, seed=3, first_index=7, device=device, dtype=dtype)
    options = {"num_mixtures": 2, "pen": pen, "skip": True, "peephole": True, "bias": 0.3, "temperature": 1.2}
    return w, state, options


def assert_same(got, expected):
    """Points, lengths and state, bit for bit."""
    for a, b in zip((*got[:2], *got[2]), (*expected[:2], *expected[2]), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize("to", [None, "cpu"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 7, STEPS, STEPS + 5])
@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_chunks_are_the_whole(backend, pen, chunk, to):
    w, state, options = problem(pen, device=backend, dtype=backend.dtype)
    options["bias"] = torch.linspace(0, 1, 6)
    prime = torch.randn(6, 4, state.row.shape[1], dtype=backend.dtype, device=backend)
    lengths = torch.tensor([4, 0, 2, 1, 0, 3], device=backend)
    for primed in ({}, {"prime": prime}, {"prime": prime, "prime_lengths": lengths}):
        got = ops.generate_chunked(w, state, STEPS, to=to, chunk=chunk, **options, **primed)
        assert_same(got, ops.generate(w, state, STEPS, **options, **primed))
        assert {v.device.type for v in got[:2]} == {"cpu" if to else state.row.device.type}
        assert {v.device for v in got[2][:5]} == {state.row.device}
        assert got[0].is_pinned() == (to == "cpu" and backend == "cuda")


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_chunks_go_on_from_a_state(backend, pen):
    w, state, options = problem(pen, device=backend, dtype=backend.dtype)
    whole = ops.generate(w, state, STEPS, **options)
    first = ops.generate_chunked(w, state, 8, to="cpu", chunk=3, **options)
    second = ops.generate_chunked(w, first[2], STEPS - 8, to="cpu", chunk=5, **options)
    assert_same((torch.cat([first[0], second[0]]), first[1] + second[1], second[2]), whole)


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_no_steps_read_the_prime(backend, chunk):
    w, state, options = problem(device=backend, dtype=backend.dtype)
    options["prime"] = torch.randn(6, 4, 3, dtype=backend.dtype, device=backend)
    got = ops.generate_chunked(w, state, 0, to="cpu", chunk=chunk, **options)
    assert_same(got, ops.generate(w, state, 0, **options))
    assert got[2].h.any()


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_no_sequences(backend, pen):
    w, state, options = problem(pen, B=0, device=backend, dtype=backend.dtype)
    got = ops.generate_chunked(w, state, STEPS, to="cpu", chunk=3, **options)
    assert_same(got, ops.generate(w, state, STEPS, **options))
    assert got[0].shape == (STEPS, 0, state.row.shape[1])


def test_points_take_the_dtype_of_the_weights_while_sampling(backend):
    w, state, options = problem(device=backend)
    for dtype in (torch.bfloat16, torch.float32):
        got = ops.generate_chunked(w, state, 9, to="cpu", chunk=4, dtype=dtype, **options)
        assert_same(got, ops.generate(w, state, 9, dtype=dtype, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "cuda"}, "to must be 'cpu' or the device where the model is, 'cpu'; got 'cuda'"),
        ({"to": torch.device("meta")}, "got 'meta'"),
        ({"to": "nowhere"}, "got 'nowhere'"),
        ({"to": 3.5}, "got '3.5'"),
        ({"chunk": 0}, "chunk must be >= 1, got 0"),
        ({"chunk": -3, "to": "cpu"}, "chunk must be >= 1, got -3"),
        ({"chunk": 2, "steps": -1}, "steps must be >= 0, got -1"),
        ({"chunk": 2, "bias": -0.5}, "bias must be finite and >= 0, got -0.5"),
        ({"chunk": 2, "temperature": [1.0]}, r"temperature: expected shape \(6,\), got \(1,\)"),
        ({"chunk": 2, "prime_lengths": torch.zeros(6, dtype=torch.int64)}, "prime_lengths was given without prime"),
    ],
)
def test_bad_arguments(options, message):
    w, state, usual = problem()
    with pytest.raises(ValueError, match=message):
        ops.generate_chunked(w, state, **{"steps": 5, **usual, **options})


class Asked(Exception):
    pass


@pytest.mark.parametrize(("B", "rows"), [(1, (1 << 24) // 3), (1000, 5592), (1 << 24, 1), (1 << 40, 1), (0, 1 << 26)])
def test_a_chunk_is_as_many_rows_as_fit_the_budget(monkeypatch, B, rows):
    """Another device than the CPU: meta, whose memory is not there."""

    def generate(weights, state, steps, **options):
        raise Asked(steps)

    monkeypatch.setattr(chunked, "generate", generate)
    with pytest.raises(Asked, match=f"^{rows}$"):
        ops.generate_chunked([], start(B, 3, 0, device="meta"), 1 << 30, to="cpu", num_mixtures=2)
    with pytest.raises(Asked, match=f"^{1 << 30}$"):
        ops.generate_chunked([], start(B, 3, 0, device="meta"), 1 << 30, to="meta", num_mixtures=2)


def test_one_call_where_nothing_moves(monkeypatch):
    w, state, options = problem()
    points = ops.generate(w, state, 5, **options)
    monkeypatch.setattr(chunked, "generate", lambda *given, **options: points)
    for to in (None, "cpu", torch.device("cpu")):
        assert ops.generate_chunked(w, state, 5, to=to, **options) is points


class Stream:
    """Work that is queued, and done only when the host waits for it, or another stream that the host waits for does."""

    def __init__(self, gpu, name):
        self.gpu, self.name, self.device, self.work, self.events = gpu, name, torch.device("cpu"), deque(), 0

    def record_event(self):
        event = Event(self)
        self.work.append(event.reach)
        return event

    def wait_stream(self, other):
        self.work.append(other.record_event().work_up_to)

    def synchronize(self):
        self.gpu.log.append(f"wait for {self.name}")
        self.record_event().work_up_to()


class Event:
    def __init__(self, stream):
        self.stream, self.reached, self.number = stream, False, stream.events
        stream.events += 1

    def reach(self):
        self.reached = True

    def work_up_to(self):
        while not self.reached:
            self.stream.work.popleft()()

    def synchronize(self):
        self.stream.gpu.log.append(f"wait for copy {self.number}")
        self.work_up_to()


class Gpu:
    """What chunked.py knows of torch.cuda, on CPU tensors, as late as it may be.

    A chunk's memory holds NaN until the current stream has drawn it, and again from when nobody refers to it any more;
    pinned memory holds what no result is until something has been copied there.
    """

    def __init__(self, monkeypatch):
        self.log, self.chunks, self.pinned, self.options, self.side_streams = [], [], [], [], []
        self.current, self.capturing, self.alive, self.fail_at = Stream(self, "sampling"), False, 0, None
        self.sample, self.copy_, self.empty_ = chunked.generate, torch.Tensor.copy_, torch.empty
        for name, value in {
            "Stream": self.new_stream,
            "stream": self.running_on,
            "current_stream": lambda device: self.current,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(torch.Tensor, "copy_", lambda into, source, **how: self.copy(into, source, **how))
        monkeypatch.setattr(chunked, "generate", self.generate)
        monkeypatch.setattr(chunked, "capturing", lambda device: self.capturing)
        monkeypatch.setattr(chunked, "_AtOnce", lambda: chunked._SideStream(torch.device("cpu")))

    def new_stream(self, device):
        self.side_streams.append(Stream(self, "copies"))
        return self.side_streams[-1]

    @contextlib.contextmanager
    def running_on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def empty(self, *shape, pin_memory=False, **how):
        memory = self.empty_(*shape, **how)
        if pin_memory:
            memory.fill_(math.nan if memory.is_floating_point() else 1)
            self.pinned.append(memory.data_ptr())
        return memory

    def copy(self, into, source, non_blocking=False):
        if not non_blocking:
            return self.copy_(into, source)
        if source.dim() == 3:
            self.log.append(f"copy {len(self.chunks) - 1}")
        self.current.work.append(partial(self.copy_, into.detach(), source.detach()))
        return into

    def generate(self, weights, state, steps, **options):
        if len(self.chunks) == self.fail_at:
            raise MemoryError
        points, lengths, after = self.sample(weights, state, steps, **options)
        drawn = torch.full_like(points, math.nan)
        memory, reference = drawn.detach(), weakref.ref(drawn)
        weakref.finalize(drawn, memory.fill_, math.nan)
        self.current.work.append(
            lambda: self.copy_(memory, points if reference() is not None else torch.tensor(math.nan))
        )
        self.log.append(f"draw {len(self.chunks)}")
        self.chunks.append(reference)
        self.alive = max(self.alive, sum(chunk() is not None for chunk in self.chunks))
        self.options.append(options)
        return drawn, lengths, after


@pytest.fixture
def gpu(monkeypatch):
    with ops.backend("cpu"):
        yield Gpu(monkeypatch)


@pytest.mark.parametrize("chunk", [1, 3, 7, STEPS, STEPS + 5])
@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_copies_beside_sampling_are_the_whole(gpu, pen, chunk):
    """However late they are done; two chunks lie on the device at most."""
    w, state, options = problem(pen)
    got = ops.generate_chunked(w, state, STEPS, to="cpu", chunk=chunk, **options)
    assert_same(got, ops.generate(w, state, STEPS, **options))
    assert gpu.alive == min(2, math.ceil(STEPS / chunk))
    assert {v.data_ptr() for v in got[:2]} <= set(gpu.pinned)
    assert len(gpu.side_streams) == 1


def test_the_host_waits_for_the_copy_before_last_alone(gpu):
    """So a chunk is copied while the next is drawn, and the GPU never runs out of work."""
    w, state, options = problem()
    ops.generate_chunked(w, state, 11, to="cpu", chunk=3, **options)
    assert gpu.log == [
        *("draw 0", "copy 0", "draw 1", "copy 1"),
        *("wait for copy 0", "draw 2", "copy 2"),
        *("wait for copy 1", "draw 3", "copy 3"),
        "wait for copies",
    ]


def test_bias_and_temperature_go_to_the_device_once(gpu):
    w, state, options = problem()
    ops.generate_chunked(w, state, 9, to="cpu", chunk=2, **{**options, "bias": [0.1] * 6})
    for name in ("bias", "temperature"):
        first, *others = (given[name] for given in gpu.options)
        assert isinstance(first, torch.Tensor)
        assert all(other is first for other in others)


@pytest.mark.parametrize("pen_end", [30.0, 3.0])
def test_sampling_stops_soon_after_all_sequences_have_ended(gpu, pen_end):
    """What is told of a chunk is known when its copy has been waited for: one more has been launched by then."""
    w, state, options = problem("categorical", end=pen_end)
    w[-2].zero_()
    whole = ops.generate(w, state, 1000, **options)
    got = ops.generate_chunked(w, state, 1000, to="cpu", chunk=2, **options)
    assert_same(got, whole)
    assert got[2].done.all()
    ended_in = (int(whole[1].max()) + 1 + 1) // 2  # chunks, with the end row
    assert len(gpu.chunks) == ended_in + 1
    assert not got[0][2 * ended_in :].any()


def test_a_failure_leaves_no_copy_under_way(gpu):
    w, state, options = problem()
    gpu.fail_at = 3
    with pytest.raises(MemoryError):
        ops.generate_chunked(w, state, STEPS, to="cpu", chunk=2, **options)
    assert [list(stream.work) for stream in gpu.side_streams] == [[]]
    assert gpu.log[-1] == "wait for copies"


def test_an_interruption_between_two_copies_leaves_none_under_way(gpu, monkeypatch):
    def copy(into, source, non_blocking=False):
        gpu.copy_(into, source) if not non_blocking else gpu.current.work.append(partial(gpu.copy_, into, source))
        if non_blocking:
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "copy", copy)
    w, state, options = problem()
    with pytest.raises(KeyboardInterrupt):
        ops.generate_chunked(w, state, STEPS, to="cpu", chunk=2, **options)
    assert [list(stream.work) for stream in gpu.side_streams] == [[]]


def test_a_graph_s_capture_cannot_wait(gpu):
    w, state, options = problem()
    gpu.capturing = True
    with pytest.raises(RuntimeError, match="`to` or `chunk` .* a CUDA graph's capture forbids"):
        ops.generate_chunked(w, state, 5, to="cpu", chunk=2, **options)
    ops.generate_chunked(w, state, 5, **options)
