"""Captured launches, with a stand-in for torch.cuda's graphs: all steps are done, and nothing is freed early."""

import contextlib
from unittest import mock

import pytest
import torch
from fusedmdn.ops.triton import replay


class Machine:
    """Launches are done at once, unless a graph captures them."""

    def __init__(self):
        self.done, self.captured, self.log, self.finished = 0, None, [], False

    def work(self):
        if self.captured is None:
            self.done += 1
        else:
            self.captured.size += 1

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
                machine.done += self.size
                machine.log.append("replay")

        class Stream:
            def wait_stream(self, other):
                machine.log.append("side waits")

        class Event:
            def record(self, stream):
                machine.log.append("record")

            def query(self):
                return machine.finished

        fakes = {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "Event": Event,
            "current_stream": lambda: None,
            "stream": lambda _: contextlib.nullcontext(),
        }
        return mock.patch.multiple(torch.cuda, **fakes)


@pytest.mark.parametrize("times", [0, 1, 31, 32, 33, 700])
def test_all_is_done_and_less_than_a_graph_too_much(times):
    machine = Machine()
    with machine.patched(), mock.patch.object(replay, "_running", type(replay._running)()):
        replay.replay(machine.work, times, 32)
    assert times <= machine.done < times + 32
    assert machine.log[:1] == ["side waits"] * bool(times)
    assert machine.log.count("replay") == -(-times // 32)
    assert machine.log.count("capture thread_local") == bool(times)


def test_a_graph_is_kept_until_it_has_run():
    machine, running = Machine(), type(replay._running)()
    with machine.patched(), mock.patch.object(replay, "_running", running):
        replay.replay(machine.work, 3, 2)
        replay.replay(machine.work, 3, 2)
        assert len(running) == 2
        machine.finished = True
        replay.replay(machine.work, 3, 2)
        assert len(running) == 1


def test_a_capture_that_fails_is_ended():
    machine = Machine()

    def broken():
        raise ValueError("no kernel")

    with machine.patched(), pytest.raises(ValueError, match="no kernel"):
        replay.replay(broken, 3, 2)
    assert machine.captured is None
