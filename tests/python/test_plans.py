"""The choice of a plan: what fits, what is forced, measured or refused; and what a step is counted as."""

import json
import warnings
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import cost, forced, launch, plans, reference, triton, tuned
from fusedmdn.ops.triton import refused

from ..compile_gate.shipped import SIZES
from ..conftest import Idle, launching
from ..simulator import Simulator
from .problems import lstm_arguments

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
H100 = plans.Device("sm_90", 132, 227 * 1024)


def choose(direction="forward", H=400, B=64, dtype=torch.bfloat16, device=H100, **options):
    return plans.choose(direction, H, B, dtype, device, **options)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", [*plans.SHARED, "gfx942", "unknown"])
def test_no_grid_is_launched_that_is_not_resident_at_once(direction, dtype, target):
    for processors in (1, 8, 46, 84, 108, 132, 170):
        device = plans.Device(target, processors, plans.SHARED.get(target, 64) * 1024)
        for H in (1, 20, 64, *SIZES, 1500, 4000):
            for B in (1, 16, 64, 1000, 5000):
                plan = choose(direction, H, B, dtype, device)
                if isinstance(plan, plans.Persistent):
                    assert target in plans.SHARED
                    assert 0 < plan.programs * plan.groups <= processors
                    assert plan.programs * plan.units >= H
                    assert plan.groups * plan.rows < B + plan.rows  # every group has a tile
                    shape = plan.rows, plan.units, plan.width, plan.ahead
                    shared = plans.shared_memory(direction, plan.precision, H, shape, dtype.itemsize)
                    assert shared <= device.shared


def test_what_is_chosen():
    assert choose().name == "persistent"
    assert choose(dtype=torch.float32).precision == "tf32x3"
    assert choose(dtype=torch.float32, tf32=True).precision == "tf32"
    assert choose(device=H100._replace(processors=20)).name == "stepwise"  # 25 programs at least
    assert choose(device=H100._replace(target="gfx942")).name == "stepwise"
    assert choose("backward", H=1024, B=4096).name == "stepwise"  # so much work that a product of its own is faster
    with ops.plan("stepwise"):
        assert choose().name == "stepwise"
    with ops.plan("persistent"), pytest.raises(RuntimeError, match="the persistent plan does not fit: forward, H=5000"):
        choose(H=5000)
    with pytest.raises(ValueError, match="plan must be one of 'persistent', .*, got 'eager'"), ops.plan("eager"):
        pass


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_costs_at_most_a_twentieth(direction, dtype):
    for H in SIZES:
        for B in (16, 64, 256):
            plan = choose(direction, H, B, dtype)
            step = plans.step_cost(plan, direction, H, B, dtype.itemsize, H100)
            assert step.multiply_adds <= 1.05 * B * 4 * H * H, (H, B, plan)


def test_chunks_cover_the_sum():
    for K in range(1, 5000, 7):
        for width in (16, 128):
            end = 0
            for offset, slices, w in plans.chunks(K, width):
                assert offset == end
                assert w & (w - 1) == 0
                assert 16 <= w <= width
                assert slices in (1, plans.WARPS)
                end += slices * w
            assert K <= end <= max(1.05 * K, -(-K // 16) * 16)


def test_a_refused_launch_steps_instead_and_says_so_once():
    class Refusing(Simulator):
        device = plans.Device("sm_90", 8, 227 * 1024)

        def __call__(self, kernel, grid, arguments, options=None):
            if options.cooperative:
                raise launch.LaunchRefusedError("too many blocks in cooperative launch")
            return super().__call__(kernel, grid, arguments)

    forward = lstm_arguments(2, 3, 8, torch.float32, False, False, None)
    with ops.backend("triton"), launching(Refusing()), mock.patch.object(refused, "_refused", set()):
        with pytest.warns(ops.FallbackWarning, match="lstm forward runs step by step: too many blocks"):
            got = triton.lstm(*forward)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = triton.lstm(*forward)
    for a, b, c in zip(got, again, reference.lstm(*forward), strict=True):
        torch.testing.assert_close(a, c)
        assert torch.equal(a, b)


def test_a_forced_plan_is_never_replaced():
    class Refusing(Idle):
        def __call__(self, kernel, grid, arguments, options):
            raise launch.LaunchRefusedError("too many blocks in cooperative launch")

    with launching(Refusing()), ops.plan("persistent"), pytest.raises(launch.LaunchRefusedError, match="too many"):
        triton.lstm(*lstm_arguments(2, 3, 8, torch.float32, False, False, None))


def test_measured_plans_are_taken(tmp_path, monkeypatch):
    entry = {"direction": "forward", "H": 400, "precision": "bfloat16", "plan": "persistent", "rows": 32, "units": 16}
    path = tmp_path / "plans.json"
    stepwise = entry | {"B": 256, "plan": "stepwise", "rows": 0, "units": 0}
    path.write_text(json.dumps({"plans": [entry | {"B": 64}, stepwise]}))
    table = tuned.read(path)
    assert plans.identity(choose(B=17, tuned=table)) == ("persistent", 32, 16)
    assert plans.identity(choose(B=64, tuned=table)) == ("persistent", 32, 16)
    assert choose(B=65, tuned=table).name == "stepwise"
    assert choose(B=999, tuned=table).name == "stepwise"
    assert choose(B=64, dtype=torch.float16, tuned=table) == choose(B=64, dtype=torch.float16)
    small = H100._replace(processors=30)  # where what was measured does not fit
    assert choose(B=64, tuned=table, device=small) == choose(B=64, device=small)


ENTRY = '{"direction": "forward", "H": 8, "precision": "tf32", "B": "8", "plan": "stepwise", "rows": 0, "units": 0}'


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"plans": 3}', '{"plans": {}}', '{"plans": [{}]}', f'{{"plans": [{ENTRY}]}}', "[" * 10**5]
)
def test_a_damaged_file_of_measured_plans_is_named(tmp_path, text):
    path = tmp_path / "plans.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match=r"plans\.json is damaged \(.*; it is not used"):
        assert tuned.read(path) == {}
    assert tuned.read(tmp_path / "none.json") == {}


def test_floors_are_what_the_formula_says():
    """H = 400, B = 64, bf16, forward, by hand."""
    plan = choose()
    step = plans.step_cost(plan, "forward", 400, 64, 2, H100)
    assert step.memory == 64 * 400 * (4 * 2 + 2 + 4 * 2 + 4)
    assert step.multiply_adds == 64 * 4 * 400 * 400
    share = plan.programs * plan.groups / 132
    by_memory, by_products = step.memory / 3.35e12, step.multiply_adds / (989.4e12 / 2 * share)
    assert step.floor(cost.H100, "bf16") == pytest.approx(max(by_memory, by_products))


def test_blocks_that_force_a_plan_end_in_any_order():
    """As those of several threads do."""
    one, other = ops.plan("rows"), ops.plan("graph")
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert forced.plan_of("generate") == "graph"
    other.__exit__(None, None, None)
    assert forced.plan_of("generate") is None
