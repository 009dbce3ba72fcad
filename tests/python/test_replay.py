"""Captured launches, with a stand-in for torch.cuda: all is done, on the right GPU, and nothing is freed early."""

import contextlib
from collections import deque
from unittest import mock

import pytest
import torch
from fusedmdn.ops.triton import replay

GPU = torch.device("cuda:1")  # whose tensors are worked on


class Machine:
    """Launches are done at once, unless a graph captures them."""

    def __init__(self):
        self.done, self.captured, self.log, self.finished = 0, None, [], False
        self.device = torch.device("cuda:0")  # the current one

    @contextlib.contextmanager
    def on(self, device):
        before, self.device = self.device, device
        yield
        self.device = before

    def work(self):
        assert self.device == GPU
        if self.captured is None:
            self.done += 1
        else:
            self.captured.size += 1

    @contextlib.contextmanager
    def patched(self):
        machine = self

        class Graph:
            def capture_begin(self, capture_error_mode):
                self.size, machine.captured = 0, self
                machine.log.append(f"capture {capture_error_mode}")

            def capture_end(self):
                machine.captured = None

            def replay(self):
                assert machine.captured is None
                assert machine.device == GPU
                machine.done += self.size
                machine.log.append("replay")

        class Stream:
            def __init__(self):
                self.device = machine.device

            def wait_stream(self, other):
                assert self.device == other.device == GPU
                machine.log.append("waits")

        class Event:
            def record(self, stream):
                machine.log.append("record")

            def query(self):
                return machine.finished

        fakes = {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "Event": Event,
            "current_stream": Stream,
            "stream": lambda _: contextlib.nullcontext(),
            "device": machine.on,
        }
        with mock.patch.multiple(torch.cuda, **fakes), mock.patch.multiple(replay, _running=deque(), _sides={}):
            yield


@pytest.mark.parametrize("times", [0, 1, 31, 32, 33, 700])
def test_all_is_done_and_less_than_a_graph_too_much(times):
    machine = Machine()
    with machine.patched():
        replay.replay(GPU, machine.work, times, 32)
    assert times <= machine.done < times + 32
    assert machine.log.count("waits") == 2 * bool(times)  # the side for what came before, and the other way round
    assert machine.log.count("replay") == -(-times // 32)
    assert machine.log.count("capture thread_local") == bool(times)


def test_a_graph_is_kept_until_it_has_run():
    machine = Machine()
    with machine.patched():
        for left in (1, 2):
            replay.replay(GPU, machine.work, 3, 2)
            assert len(replay._running) == left
        machine.finished = True
        replay.replay(GPU, machine.work, 3, 2)
        assert len(replay._running) == 1
        assert len(replay._sides) == 1


def test_a_capture_that_fails_is_ended():
    machine = Machine()

    def broken():
        raise ValueError("no kernel")

    with machine.patched(), pytest.raises(ValueError, match="no kernel"):
        replay.replay(GPU, broken, 3, 2)
    assert machine.captured is None
