"""Fixtures: the backend that operators run on, and the data that only some machines have."""

import os
from pathlib import Path

import fusedmdn.ops as ops
import pytest
import torch
from hypothesis import settings

settings.register_profile("fusedmdn", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fusedmdn")

ROOT = Path(__file__).parent.parent
BACKENDS = ["reference", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Device(str):
    """A device's name, with the dtype in which a test compares values on it: float64 where the reference runs."""

    dtype: torch.dtype

    def __new__(cls, name, dtype):
        device = super().__new__(cls, name)
        device.dtype = dtype
        return device


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The device whose tensors a test uses; "reference" and "cpu" (C++) are forced there, "cuda" is as it comes."""
    if request.param == "cuda":
        yield Device("cuda", torch.float32)
        return
    with ops.backend(request.param):
        yield Device("cpu", torch.float64 if request.param == "reference" else torch.float32)


@pytest.fixture(params=[name for name in BACKENDS if name != "cpu"])
def float64_backend(request):
    """As `backend`, for what needs float64: finite differences. Kernels are compared with the reference elsewhere."""
    if request.param == "cuda":
        yield Device("cuda", torch.float64)
        return
    with ops.backend(request.param):
        yield Device("cpu", torch.float64)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data():
    """Directory of real strokes, weights and golden values that may not be part of the project."""
    path = Path(os.environ.get("FUSEDMDN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data: {path} is not there, and FUSEDMDN_TEST_DATA names no other place")
    return path


def pytest_terminal_summary(terminalreporter):
    if "cuda" not in BACKENDS:
        gained = terminalreporter.config.stash.get(WITH_BACKEND, 0)
        terminalreporter.write_line(f"a GPU would add {gained} tests to this run")


WITH_BACKEND = pytest.StashKey[int]()


def pytest_collection_finish(session):
    session.config.stash[WITH_BACKEND] = sum(
        item.callspec.params.get("backend", item.callspec.params.get("float64_backend")) == "reference"
        for item in session.items
        if hasattr(item, "callspec")
    )
