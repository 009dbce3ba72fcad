"""What a process of its own breaks is its own trouble."""

import os
import time
from functools import partial

import pytest
import torch

from fusedmdn import doctor
from fusedmdn.doctor.apart import side_by_side
from fusedmdn.doctor.specimens import Sizes


def test_every_result_or_what_became_of_it():
    calls = {
        "well": partial(divmod, 7, 3),
        "raises": partial(divmod, 7, 0),
        "dies": os.abort,
        "hangs": partial(time.sleep, 600),
    }
    start, results = time.monotonic(), {}
    for name, result in side_by_side(calls, 8.0, 2):
        try:
            results[name] = result()
        except (RuntimeError, TimeoutError) as error:
            results[name] = str(error)
    assert results == {
        "well": (2, 1),
        "raises": "its process ended with exit code 1",
        "dies": "its process ended with exit code -6",
        "hangs": "it did not end in 8 s",
    }
    assert time.monotonic() - start < 60


def lifetime(seconds):
    start = time.time()
    time.sleep(seconds)
    return start, time.time()


def test_so_many_run_at_the_same_time():
    lives = [result() for _, result in side_by_side(dict.fromkeys("abcd", partial(lifetime, 3.0)), 60.0, 2)]
    assert lives[0][0] < lives[1][1]  # the first two overlap,
    assert lives[1][0] < lives[0][1]
    assert all(later[0] > lives[0][1] for later in lives[2:])  # and no third begins before one has ended


def test_operators_of_a_gpu_are_examined_so(monkeypatch):
    """Here there is none, so each has its reason, and none takes the others with it."""
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    found = {
        name: doctor._found("part", name, examination)
        for name, examination in doctor._operators("part", torch.device("cuda"), Sizes(2, 5, 9, 2))
    }
    assert found.keys() == doctor.CALLS.keys()
    for (finding,) in found.values():
        assert finding.problems
