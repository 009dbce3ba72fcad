"""Fixtures: the backend that operators run on, and the data that only some machines have."""

import contextlib
import itertools
import os
from pathlib import Path
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import launch, plans
from hypothesis import settings

from .simulator import Simulator

settings.register_profile("fusedmdn", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fusedmdn")

ROOT = Path(__file__).parent.parent
GPU = ["cuda"] if torch.cuda.is_available() else []
BACKENDS = ["reference", "cpu", "simulated", *GPU]


class Device(str):
    """A device's name, with the dtype in which a test compares values on it: float64 where the reference runs."""

    dtype: torch.dtype

    def __new__(cls, name, dtype):
        device = super().__new__(cls, name)
        device.dtype = dtype
        return device


@contextlib.contextmanager
def simulated(processors=8, **schedule):
    """CPU tensors run the Triton kernels in the simulator, as on a GPU of so many multiprocessors."""
    simulator = Simulator(**schedule)
    simulator.device = plans.Device("sm_90", processors, 227 * 1024)
    with ops.backend("triton"), launching(simulator):
        yield simulator


@contextlib.contextmanager
def launching(simulator):
    """Kernels of CPU tensors are handed to this simulator."""
    before, launch.simulator = launch.simulator, simulator
    try:
        yield simulator
    finally:
        launch.simulator = before


class Idle:
    """Takes launches, runs nothing."""

    device = plans.Device("sm_80", 3, 163 * 1024)  # so few multiprocessors that one persistent plan is left

    def __call__(self, kernel, grid, arguments, options):
        pass


class Compiling(Idle):
    """Compiles what is launched, by the very path that a GPU's launches take, for one that is not there."""

    def __init__(self):
        self.kernels = set()

    def __call__(self, kernel, grid, arguments, options):
        kernel.warmup(**arguments, grid=grid, **launch.compiler_options(options))
        self.kernels.add(kernel)


PRETENDED = itertools.count(1000)  # numbers of devices that are not there: kernels are kept by them


@pytest.fixture
def pretended_gpu():
    """Triton's driver says that there is an A100; its number, of which nothing has been compiled."""
    from triton import runtime
    from triton.backends.compiler import GPUTarget

    driver, number = mock.Mock(), next(PRETENDED)
    driver.get_current_device.return_value, driver.get_current_stream.return_value = number, 0
    driver.get_current_target.return_value = GPUTarget("cuda", 80, 32)
    runtime.driver.set_active(driver)
    yield number
    runtime.driver.set_active(None)  # the default again, when next asked for


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The device whose tensors a test uses; all but "cuda", which is as it comes, are forced there."""
    name = request.param
    if name == "cuda":
        yield Device("cuda", torch.float32)
    elif name == "simulated":
        with simulated(), ops.plan("persistent"), ops.plan("resident"):
            yield Device("cpu", torch.float32)
    else:
        with ops.backend(name):
            yield Device("cpu", torch.float64 if name == "reference" else torch.float32)


@pytest.fixture(params=["reference", *GPU])
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
    torch.backends.cudnn.allow_tf32 = False  # nn.LSTM is a witness, and on a GPU in tf32 by default


@pytest.fixture(scope="session")
def test_data():
    """Directory of real strokes, weights and golden values that may not be part of the project."""
    path = Path(os.environ.get("FUSEDMDN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data: {path} is not there, and FUSEDMDN_TEST_DATA names no other place")
    return path


def pytest_terminal_summary(terminalreporter):
    if not GPU:
        gained = terminalreporter.config.stash.get(WITH_BACKEND, 0)
        terminalreporter.write_line(f"a GPU would add {gained} tests to this run")


WITH_BACKEND = pytest.StashKey[int]()


def pytest_collection_finish(session):
    fixtures = {"backend": "reference", "float64_backend": "reference", "kernels": "simulated"}
    session.config.stash[WITH_BACKEND] = sum(
        any(item.callspec.params.get(fixture) == first for fixture, first in fixtures.items())
        for item in session.items
        if hasattr(item, "callspec")
    )
