"""docs/gpu.md is what the generator makes, its numbers calculated a second time."""

from unittest import mock

import pytest
import torch
from fusedmdn.ops import plans, sampling_plans
from fusedmdn.ops.triton import sampler

from bench.gpu_page import __main__ as command
from bench.gpu_page import page, recurrence, sampling
from bench.gpu_page.common import GPUS, NUMBERS, Rows, device_of

from ..compile_gate import shipped
from ..conftest import ROOT, launching


def test_the_page_is_what_the_generator_makes():
    written = (ROOT / "docs" / "gpu.md").read_text()
    assert written == page.page(Rows()), f"docs/gpu.md is not up to date: run `{page.COMMAND}`"


@pytest.fixture(scope="module")
def tables():
    """Rows of the page's tables by the heading above them."""
    found, heading = {}, ""
    for line in (ROOT / "docs" / "gpu.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| "):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: rows[1:] for heading, rows in found.items()}


BANDWIDTH, BF16, TF32, FLOAT32 = 3.35e6, 989.4e6 / 2, 494.7e6 / 2, 66.9e6 / 2  # of an H100, a microsecond


@pytest.mark.parametrize(
    ("title", "e", "rate", "stepwise_rate"),
    [
        ("bfloat16", 2, BF16, BF16),
        ("float32", 4, TF32 / 3, FLOAT32),
        ("float32, TF32 allowed", 4, TF32, TF32),
    ],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_floors_calculated_from_the_notation_alone(tables, title, e, rate, stepwise_rate, direction):
    """From H, B and rows×units·groups as printed, by counting tensors; nothing of cost.py or plans.py but padding."""
    rows = tables[f"{title}, {direction}"]
    assert len(rows) == 12
    for row in rows:
        H, B = int(row[0]), int(row[1])
        hidden, gates, cells = B * H * e, B * 4 * H * e, B * H * 4
        memory = {
            "forward": gates + hidden + gates + cells,  # xw; h; gates and cells kept
            "backward": hidden + gates + 2 * cells + gates,  # grad_h; gates; c before and after; dz
        }[direction]
        products, barriers, launches, per_microsecond = B * 4 * H * H, "0", "2", stepwise_rate
        exchange = 4 * H * H * e + gates + hidden
        if row[2] != "step":
            shape, groups = row[2].split("·")
            R, U = map(int, shape.split("×"))
            P, G = -(-H // U), int(groups)
            assert row[3] == f"{P}×{G}"
            exchange = P * (hidden if direction == "forward" else gates)
            tiles, padded = -(-B // R), float(row[6].split("+ ")[1].rstrip("%"))
            assert tiles * R == B
            assert P * U / H - 1.0005 <= padded / 100 <= 0.05  # of the units, and of the sum
            products *= 1 + padded / 100
            per_microsecond, barriers, launches = rate * P * G / 132, "1", "0"
        by_memory, by_products = memory / BANDWIDTH, products / per_microsecond
        assert float(row[4]) == pytest.approx(memory / 1e6, abs=0.005)
        assert float(row[5]) == pytest.approx(exchange / 1e6, abs=0.005)
        assert float(row[6].split(" +")[0].replace(",", "")) == pytest.approx(products / 1e6, rel=1e-3, abs=0.05)
        floor, which = row[7].split()
        assert float(floor) == pytest.approx(max(by_memory, by_products), rel=1e-3, abs=0.005)
        assert which == ("m" if by_memory >= by_products else "p")
        assert row[-2:] == [barriers, launches]


def test_figures_by_hand(tables):
    """H = 400, B = 64, bf16: 64·400·22 bytes; 25 programs read 64·400·2; 64·4·400² products on 100 of 132."""
    row = tables["bfloat16, forward"][1]
    assert row[:8] == ["400", "64", "16×16·4", "25×4", "0.56", "1.28", "41.0 + 0.0%", "0.17 m"]
    kept = tables["Recurrence: what forward keeps for backward"]
    assert kept == [["bfloat16", "5,600", "2,400"], ["float32", "9,600", "3,200"]]


def test_registers_are_of_the_kernel_that_is_launched():
    """The names under which the page looks figures up are the compile gate's own."""
    device = device_of("sm_90")
    with launching(shipped.Recorder(device)) as recorder:
        for numbers in NUMBERS:
            shipped._record_recurrence(recorder, numbers.label, numbers.dtype, 512)
            for direction in recurrence.DIRECTIONS:
                for B in recurrence.PLAN_B:
                    plan = plans.choose(direction, 512, B, numbers.dtype, device, tf32=numbers.tf32)
                    variant = recorder.variants[recurrence.variant_of(direction, numbers, 512, plan)]
                    assert variant.kernel.endswith(f"lstm_{plan.name}:{direction}")
                    assert variant.constexprs["H"] == 512
                    if plan.name == "persistent":
                        assert variant.constexprs["ROWS"] == plan.rows
                        assert variant.constexprs["UNITS"] == plan.units
                        assert variant.constexprs["PRECISION"] == numbers.precision


def test_what_does_not_fit_is_what_the_planner_steps_through(tables):
    """The bfloat16 sizes of which all batches step, by the table of decisions, are those with a reason."""
    directions = ("forward", "backward")
    stepping, gpu = set(), ""
    for row in tables["Recurrence: what the planner chooses"]:
        gpu = row[0].split(",")[0] or gpu
        chosen = [cell.split(" / ") for cell in row[2:]]  # one for both directions where they are the same
        for k, direction in enumerate(directions):
            if row[1] != "all" and {cell[k % len(cell)] for cell in chosen} == {"step"}:
                stepping.add((gpu, row[1], direction))
    reasons = set()
    for row in tables["Recurrence: what cannot run persistent"]:
        if "bfloat16" in row[0]:
            reasons |= {(row[0].split(",")[0], row[1], direction) for direction in directions if direction in row[2]}
    assert reasons == stepping
    assert reasons


# Sampling

PADDED = {("resident", 400): 400, ("resident", 900): 912, ("resident", 512): 512}  # H, by how a plan goes over it
PADDED |= {("streamed", 400): 416, ("streamed", 900): 928, ("streamed", 512): 512}
PORT = 64 * BF16 / 2048  # bytes a microsecond that all multiprocessors' ports let through


@pytest.mark.parametrize(("title", "e", "rate"), [("bfloat16", 2, BF16), ("float32", 4, TF32 / 3)])
def test_sampling_calculated_from_the_notation_alone(tables, title, e, rate):
    """From L, H, M, B and the plan as printed, matrix by matrix; nothing of cost.py or the plans but padding."""
    rows = tables[f"A step of sampling in {title}"]
    assert len(rows) == 4 * 3 * 3
    for network, batch, plan, grid, *figures in rows:
        size, mixtures, *skips = network.split(", ")
        (L, H), D, B = map(int, size.split("×")), 1 + 6 * int(mixtures.removeprefix("M ")), int(batch)
        name, shape = plan.replace("*", "").split()
        R, U = map(int, shape.split("×"))
        blocks, P, read = -(-B // R), -(-H // U), range(L) if skips else [L - 1]
        resident = name == "resident"
        programs = {"resident": P * int(grid.split("×")[-1]), "rows": min(blocks, 132), "graph": P * blocks}[name]
        assert grid == {"resident": f"{P}×{programs // P}", "rows": f"{programs}", "graph": f"{blocks}×{P}"}[name]
        assert not resident or programs <= 132
        C = next(C for C in (8, 16, 32) if P * C >= D) if resident else 2 * U
        Q = P if resident else -(-D // C)
        K = PADDED["resident" if resident else "streamed", H]
        weights, exchange, products, needed = 0, B * D * 4 * (P if resident else 1), 0, 0
        for n in range(L):
            rows_read = 3 if n == 0 or skips else 0
            weights += blocks * (rows_read + 1) * 4 * U * P * 4
            for _ in range(2 if n else 1):  # of what reads the layer itself, and the one below
                weights += 0 if resident else blocks * K * 4 * U * P * e
                exchange += P * B * H * e
                products += blocks * R * K * 4 * U * P
                needed += B * H * 4 * H
        for _ in read:  # by the head
            weights += blocks * e * (H * D if resident else K * C * Q)
            exchange += Q * B * H * e
            products += blocks * R * K * C * Q
            needed += B * H * D
        share = min(programs / 132, 1)
        by_loads, by_products = (weights + exchange) / (PORT * share), products / (rate * share)
        shown = [float(figure.rstrip("%lp ").replace(",", "")) for figure in figures[:5]]
        floor = max(by_loads, by_products)
        assert shown[:3] == pytest.approx([weights / 1e6, exchange / 1e6, products / 1e6], rel=1e-6, abs=0.051)
        assert shown[3:] == pytest.approx([100 * (1 - needed / products), floor], rel=1e-6, abs=0.051)
        assert figures[4].endswith("l" if by_loads >= by_products else "p")
        assert figures[-2:] == [str(L + 1) if resident else "0", str(L + 2) if name == "graph" else "0"]


def test_figures_of_sampling_by_hand(tables):
    """3×400, B = 1: 50 programs read 8 times 400·2 bytes and 121·4; 16·400·(5·1600 + 3·50·8) products on 50 of 132."""
    row = tables["A step of sampling in bfloat16"][0]
    assert row[:6] == ["3×400, M 20, skips", "1", "**resident** 16×8", "50×1", "0.37", "0.34"]
    assert row[6:9] == ["58.9", "94.3%", "0.31 p"]


@pytest.mark.parametrize("numbers", sampling.ELEMENTS)
@pytest.mark.parametrize("H", [400, 512])
def test_the_samplers_registers_are_of_the_kernel_that_is_launched(numbers, H):
    device = device_of("sm_90")
    hollow = mock.patch.object(sampler, "laid_out", shipped._hollow)
    with launching(shipped.Recorder(device)) as recorder, hollow:
        shipped._record_sampling(recorder, numbers.label, numbers.dtype, H)
    for L in {400: (2, 3), 512: (1,)}[H]:
        for plan in sampling_plans.ranked(L, H, 121, 1, numbers.dtype.itemsize, numbers.precision, device):
            constants = recorder.variants[sampling.variant_of(numbers, L, H, plan)].constexprs
            expected = {"H": H, "ROWS": plan.rows, "UNITS": plan.units, "PRECISION": plan.precision}
            expected |= {"L": L} if plan.name == "resident" else {"STAGES": plan.stages, "DEPTH": plan.depth}
            assert expected.items() <= constants.items()


def test_what_is_never_resident_has_a_reason(tables):
    """Of the sizes that one might expect to be, by the table of choices."""
    gpus = [GPUS[target] for target in plans.SHARED]
    for numbers in sampling.ELEMENTS:
        never = set()
        for L, sizes, *cells in tables[f"Chosen in {numbers.title}"]:
            for H in sizes.split(", "):
                if (int(L), int(H)) in sampling.EXPECTED:
                    chosen = zip(gpus, cells, strict=True)
                    never |= {(f"{L}×{H}", gpu) for gpu, cell in chosen if "resident" not in cell}
        reasons = [row for row in tables["Sampling: what cannot run resident"] if row[1] == numbers.title]
        assert never == {(size, gpu) for size, _, alike, _ in reasons for gpu in alike.split(", ")}


def test_runs_of_batches(tables):
    """The H100's row of 3×400 says what the planner says; MI300X has but one plan."""
    row = next(row for row in tables["Chosen in bfloat16"] if row[:2] == ["3", "400"])
    said = {int(B or 8192): plan for plan, _, B in (run.partition(" to ") for run in row[5].split(", "))}
    for B in sampling.PLAN_B:
        chosen = sampling_plans.choose(3, 400, 121, B, torch.bfloat16, device_of("sm_90"))
        assert chosen.name == said[min(last for last in said if last >= B)]
    for numbers in sampling.ELEMENTS:
        sizes = [(L, H) for L in sampling.LAYERS for H in shipped.SIZES]
        assert {sampling.decision(*size, numbers, device_of("gfx942")) for size in sizes} == {"graph"}


# The command


def test_a_kernel_that_the_table_lacks_is_named(tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.json"
    path.write_text('{"triton": "3.7.1", "pairs": {}}')
    monkeypatch.setattr(command, "Rows", lambda: Rows(path))
    assert command.main(["--out", str(tmp_path / "gpu.md")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("the compile gate's table has no row for 'lstm_persistent.forward bf16 H400 ieee 16x8")
    assert said.endswith("sm_90'; run `python -m tests.compile_gate --refresh`\n")
    assert not (tmp_path / "gpu.md").exists()
