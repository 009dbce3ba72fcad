"""The choice of a plan for sampling: a pure function; what is chosen fits, and B changes no tile."""

import itertools

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import plans, sampling_plans
from fusedmdn.ops.sampling_plans import Graph, Resident, Rows

from ..compile_gate import table
from ..compile_gate.shipped import PROCESSORS

A100 = plans.Device("sm_80", 108, 163 * 1024)
H100 = plans.Device("sm_90", 132, 227 * 1024)
MI300X = plans.Device("gfx942", 304, 0)
DEVICES = [plans.Device(t, p, plans.SHARED.get(t, 0) * 1024) for t, p in PROCESSORS.items()]
D = 121  # outputs: a Bernoulli pen and 20 components


def choose(L=3, H=400, B=1, dtype=torch.bfloat16, device=H100, **options):
    return sampling_plans.choose(L, H, D, B, dtype, device, **options)


def test_what_is_chosen():
    """Weights on chip while the batch is small and they fit; never on AMD, nor where the launch has been refused."""
    assert choose() == Resident(8, 8, 128, plans.ALL, "ieee", programs=50, groups=1)
    assert choose(B=17).groups == choose(B=64).groups == 2
    assert choose(device=A100).name == "resident"
    assert choose(dtype=torch.float32) == Resident(4, 8, 32, 0, "tf32x3", programs=100, groups=1)
    assert choose(dtype=torch.float32, tf32=True).precision == "tf32"
    assert choose(resident=False).name == "graph"
    assert choose(H=900).name == "graph"
    assert choose(L=1, H=900).name == "resident"
    assert choose(L=1, H=128, B=8192).name == "rows"
    assert {choose(B=B, device=MI300X).name for B in (1, 64, 8192)} == {"graph"}
    assert choose(dtype=torch.float32, device=MI300X).precision == "ieee"
    assert choose(device=plans.Device("unknown", 999, 1 << 20)).name != "resident"


def test_forcing():
    for name in ("resident", "rows", "graph"):
        with ops.plan(name), ops.plan("stepwise"):  # of another family: both hold
            assert choose().name == name
    exactly = Rows(16, 16, 32, 16, 2, "ieee", 3)
    with ops.plan(exactly):
        assert choose() is exactly
    with (
        ops.plan("resident"),
        pytest.raises(RuntimeError, match="the resident plan does not fit: L=3, H=900, D=121, torch.bfloat16"),
    ):
        choose(H=900)
    with ops.plan("rows"), pytest.raises(RuntimeError, match="the rows plan does not fit: .*gfx942"):
        choose(device=MI300X)
    assert choose().name == "resident"


def every():
    sizes = itertools.product((1, 2, 3), (1, 20, 128, 400, 512, 900, 1024), (19, D, 769), (1, 16, 40, 1000))
    for (L, H, outputs, B), dtype, device in itertools.product(sizes, (torch.bfloat16, torch.float32), DEVICES):
        for precision in sampling_plans.precisions(dtype, device):
            yield (L, H, outputs, B, dtype.itemsize, precision, device)


def test_nothing_is_launched_that_is_not_co_resident():
    found = 0
    for L, H, outputs, B, size, precision, device in every():
        plan = sampling_plans.resident_plan(L, H, outputs, B, size, precision, device)
        if plan:
            found += 1
            assert plan.programs * plan.groups <= device.processors
            assert plan.programs * plan.units >= H
            assert plan.programs * plan.columns >= outputs
            assert plan.groups <= -(-B // plan.rows)
            assert sampling_plans.shared_memory(plan, L, H, size) <= device.shared
    assert found > 1000


def test_no_tile_depends_on_the_batch():
    """Only how many programs share the work does, or bits would."""
    for L, H, outputs, B, size, precision, device in every():
        one, many = (
            {plan.name: plan for plan in sampling_plans.ranked(L, H, outputs, b, size, precision, device)}
            for b in (1, B)
        )
        assert one.keys() == many.keys()
        for name, plan in many.items():
            share = {"groups": one[name].groups} if name == "resident" else {}
            share |= {"programs": one[name].programs} if name == "rows" else {}
            assert plan._replace(**share) == one[name]


def test_three_layers_of_400_units_fit_an_a100_and_an_h100():
    """The promise: at most 150 KiB of shared memory, and no spilled register."""
    rows = table.read(table.PATH)["pairs"]
    for target in ("sm_80", "sm_90"):
        name = "generate_resident.generate bf16 H400 M20 bernoulli L3 ieee 16x8 width 128 ahead all"
        row = rows[table.key(name, target)]
        assert row["spills"] == 0
        assert row["shared"] <= 150 * 1024


def test_the_compiler_takes_the_shared_memory_that_the_planner_counts():
    rows = table.read(table.PATH)["pairs"]
    checked = 0
    for L, H, size, precision, device in itertools.product((1, 3), (128, 400, 512, 900), (2, 4), ("ieee",), DEVICES):
        for p in (precision,) if size == 2 else ("tf32x3", "tf32"):
            plan = sampling_plans.resident_plan(L, H, D, 1, size, p, device)
            if plan:
                ahead = "all" if plan.ahead == plans.ALL else plan.ahead
                name = f"{'bf16' if size == 2 else 'fp32'} H{H} M20 bernoulli L{L} {p} 16x{plan.units}"
                key = table.key(f"generate_resident.generate {name} width {plan.width} ahead {ahead}", device.target)
                assert rows[key]["shared"] == sampling_plans.shared_memory(plan, L, H, size), key
                checked += 1
    assert checked > 40


def test_a_graph_has_the_tiles_of_the_rows():
    rows, graph = sampling_plans.streaming_plans(400, 64, "ieee", H100)
    assert isinstance(graph, Graph)
    assert rows[:6] == graph[:6]
