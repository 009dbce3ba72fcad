"""docs/gpu.md is what the generator makes, its numbers calculated a second time."""

import itertools
from unittest import mock

import pytest
import torch
from fusedmdn.ops import plans, sampling_plans, training_plans
from fusedmdn.ops.triton import sampler

from bench.gpu_page import __main__ as command
from bench.gpu_page import page, recurrence, sampling, training
from bench.gpu_page.common import GPUS, NUMBERS, Rows, device_of

from ..compile_gate import shipped
from ..conftest import ROOT, launching


def test_the_page_is_what_the_generator_makes():
    written = (ROOT / "docs" / "gpu.md").read_text()
    assert written == page.page(Rows()), f"docs/gpu.md is not up to date: run `{page.COMMAND}`"


@pytest.fixture(scope="module")
def tables():
    """Rows of the page's tables by the heading above them."""
    return tables_of((ROOT / "docs" / "gpu.md").read_text())


def tables_of(text):
    """The same of any page."""
    found, heading = {}, ""
    for line in text.splitlines():
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


# Training


class StandIn:
    """Takes the place of the compile gate's table: tells every kernel's figures from its name."""

    def __init__(self):
        self.asked = set()

    def of(self, variant, target):
        self.asked.add((variant, target))
        return {"registers": len(variant), "spills": 0, "shared": 1024 * len(variant)}


@pytest.fixture(scope="module")
def stand_in():
    return StandIn()


@pytest.fixture(scope="module")
def training_tables(stand_in):
    return tables_of("\n".join(training.sections(stand_in)))


def cut_into(K, width):
    """What pieces of eight slices of 16 columns and powers of two of them cover of K, at most a twentieth more."""
    wide = -(-K // 128) * 128
    return wide if wide <= 1.05 * K else -(-K // 16) * 16


def by_matrices(direction, B, e, plan, grid):
    """Graves's network fused: bytes in memory, bytes through L2, multiply-adds and those needed, tensor by tensor."""
    H, D, I, S = 400, 121, 3, 3
    R, U = map(int, plan.split()[1].split("×"))
    tiles, P, forward = -(-B // R), -(-H // U), direction == "forward"
    programs = S * P + (8 + 1 if forward else 1)
    assert grid == f"{programs}×{min(tiles, 132 // programs)}"
    gates, cells, memory, exchange, products, needed = 4 * H * e, 4 * H, 0, 0, 0, 0
    for n in range(S):
        if forward:
            memory += B * (H * e + gates + cells)
            exchange += P * B * H * e * (2 if n else 1)  # of itself, of the layer below
            products += tiles * P * R * (2 * cut_into(H, 128) + 16) * 4 * U
            needed += B * (H * (2 if n else 1) + I) * 4 * H
            exchange += 8 * B * H * e  # by the head's programs
            products += tiles * 8 * R * cut_into(H, 128) * 16
        else:
            memory += B * (gates + 2 * cells + gates)
            exchange += P * B * (4 * H * (2 if n else 1) + 128) * e  # of itself, of the layer above; of raw's gradient
            products += tiles * P * R * (2 * cut_into(4 * H, 128) + 128) * U
            needed += B * 4 * H * H * (2 if n else 1)
        needed += B * H * D
    loss = B * (D * e + I * 4 + 4)  # raw, target, and the loss or its gradient
    if forward:
        return memory + loss + B * I * e, exchange + B * D * 4, products, needed
    return memory + loss + B * 128 * e, exchange, products, needed


def in_parts(direction, B, e, plan, cell):
    """The same where layers are one after another; what they need apart from what lies between: products in two."""
    H, D, I, S = 400, 121, 3, 3
    hidden, gates, raw = B * H * e, B * 4 * H * e, B * D * e
    memory, exchange, own, between = 2 * raw + B * (I * 4 + 4), 0, 0, 0
    for n in range(S):
        K = H if direction == "forward" else 4 * H
        if plan == "step":
            exchange += 4 * H * H * e + hidden + gates
            own += B * 4 * H * H
        else:
            U = int(plan.split("·")[0].split("×")[1])
            exchange += -(-H // U) * B * K * e
            own += B * 4 * H * cut_into(K, 128) * H // K
        if direction == "forward":
            memory += gates + gates + hidden + gates + B * H * cell  # xw twice; h, gates, cells
            memory += B * I * e + (hidden if n else 0) + hidden  # read by the projection; by the head
            between += B * 4 * H * (I + (H if n else 0))
        else:
            memory += hidden + hidden + gates + 2 * B * H * cell + gates  # the gradient of h twice; dz
            memory += (gates if n else 0) + raw  # dz by the product for the layer below; the gradient of raw
            between += B * 4 * H * H if n else 0
        between += B * H * D
    return memory, exchange, own, between


@pytest.mark.parametrize(
    ("title", "e", "rate", "library"),
    [
        ("bfloat16", 2, BF16, BF16),
        ("float32", 4, TF32 / 3, FLOAT32),
        ("float32, TF32 allowed", 4, TF32, TF32),
    ],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_training_calculated_from_the_notation_alone(training_tables, title, e, rate, library, direction):
    """From B and the plan as printed, tensor by tensor; nothing of cost.py or the plans."""
    rows = training_tables[f"A step of training in {title}, {direction}"]
    assert [row[0] for row in rows] == [str(B) for B in (16, 64, 256) for _ in range(3)]
    for row in rows:
        B, plan = int(row[0]), row[1].replace("*", "")
        name, *shape = plan.split()
        if shape[0] == "does":
            assert row[2:] == ["–"] * 11
            assert title != "bfloat16"
            continue
        assert len(row) == 13
        launches = 4 if direction == "backward" else 5
        if name == "fused":
            memory, exchange, products, needed = by_matrices(direction, B, e, plan, row[2])
            programs, groups = map(int, row[2].split("×"))
            assert programs * groups <= 132
            by_products = products / (rate * programs * groups / 132)
            assert row[3:5] == ["703" if direction == "forward" else "704", "1"]
            assert all(cell != "–" for cell in row[10:])
        else:
            cell = e if name == "cuDNN" else 4
            memory, exchange, own, between = in_parts(direction, B, e, shape[0], cell)
            products, needed = own + between, B * (3 * 4 * 400 * 400) + between
            if shape[0] == "step":
                by_products = products / library
                assert row[3:5] == ["0", f"{launches + 2 * 3 * 700:,}"]
            else:
                programs, groups = map(int, row[2].split("×"))
                by_products = own / (rate * programs * groups / 132) + between / library
                assert row[3:5] == ["2,100", str(launches + 3)]
            assert row[10:] == ["–"] * 3
        shown = [float(figure.rstrip("%mp ").replace(",", "")) for figure in row[5:10]]
        by_memory = memory / BANDWIDTH
        assert shown[:2] == pytest.approx([memory / 1e6, exchange / 1e6], rel=1e-6, abs=0.0051)
        assert shown[2:4] == pytest.approx([products / 1e6, 100 * (1 - needed / products)], rel=1e-6, abs=0.051)
        assert shown[4] == pytest.approx(max(by_memory, by_products), rel=1e-6, abs=0.0051)
        assert row[9].endswith("m" if by_memory >= by_products else "p")


def test_figures_of_training_by_hand(training_tables):
    """3×400, B = 16: 16·(14·1200 + 2·124 + 16) bytes; 16·(3·25·64·(800 + 16) + 8·16·1200) products on 84 of 132."""
    row = training_tables["A step of training in bfloat16, forward"][0]
    assert row[:7] == ["16", "**fused** 16×16", "84×1", "703", "1", "0.27", "1.91"]
    assert row[7:10] == ["65.1", "17.5%", "0.21 p"]
    kept = training_tables["Training: what forward keeps for backward"]
    assert kept[0] == ["bfloat16", "2,400", "9,600", "4,800", "242", "1.4%"]
    assert kept[1] == ["float32", "4,800", "19,200", "4,800", "484", "1.7%"]


def batches_of(cell):
    """The batches at which each direction is fused, by a cell of the table of choices."""
    every = training.PLAN_B
    parts = cell.split(" / ") if cell.startswith("fwd ") else [f"fwd {cell}", f"bwd {cell}"]
    fused = []
    for part in parts:
        runs = part[4:].removeprefix("fused").strip()
        found = set(every) if runs in ("", "always") else set()
        for run in runs.split(", ") if runs not in ("", "always", "never", "composed") else []:
            first, _, last = run.rpartition("to ")
            if run.startswith("from "):
                first, last = run[5:], every[-1]
            elif run.startswith("at "):
                first = last = run[3:]
            found |= {B for B in every if int(first or 1) <= B <= int(last)}
        fused.append(found)
    return fused


@pytest.mark.parametrize("numbers", sampling.ELEMENTS)
def test_the_table_of_training_says_what_the_planner_chooses(training_tables, numbers):
    said = {}
    for L, sizes, *cells in training_tables[f"Training chosen in {numbers.title}"]:
        said |= {(int(L), int(H)): cells for H in sizes.split(", ")}
    assert list(said) == list(itertools.product((1, 2, 3), (128, 256, 400, 512, 900, 1024)))
    for (L, H), cells in said.items():
        for target, cell in zip(plans.SHARED, cells, strict=True):
            for direction, fused in zip(recurrence.DIRECTIONS, batches_of(cell), strict=True):
                for B in (1, 16, 64, 256, 1024):
                    plan = training_plans.choose(direction, L, H, 121, B, numbers.dtype, device_of(target))
                    assert (plan.name == "fused") == (B in fused), (L, H, target, direction, B)
    assert {training.decision(*size, numbers, device_of("gfx942")) for size in said} == {"composed"}


def test_what_cannot_be_fused_has_a_reason(training_tables):
    """Every size and direction with a reason has no plan, and the others have one, whatever is chosen."""
    reasons = {}
    for size, elements, directions, *cells in training_tables["Training: what cannot be fused"]:
        titles = [numbers.title for numbers in NUMBERS] if elements == "all" else elements.split("; ")
        for key in itertools.product([size], titles, directions.split(" and ")):
            assert key not in reasons
            reasons[key] = dict(zip(plans.SHARED, cells, strict=True))
    for (L, H), numbers, direction in itertools.product(training.EXPECTED, NUMBERS, recurrence.DIRECTIONS):
        for target in plans.SHARED:
            given = numbers.dtype.itemsize, numbers.precision, device_of(target)
            fits = training_plans.fused_plans(direction, L, H, 121, 1, *given)
            reason = reasons.get((f"{L}×{H}", numbers.title, direction), {}).get(target, "–")
            assert (reason == "–") == bool(fits), (L, H, numbers, direction, target)
    assert reasons["3×400", "float32", "forward"]["sm_90"] == "8 units: 159 programs > 132; 16 units: registers"


def test_shared_memory_that_is_lacking_would_be_enough():
    """With that much the planner offers so many units, with a byte less it does not; never, where registers lack."""
    sizes = itertools.product((1, 3), (128, 400, 1024), (8, 16), NUMBERS, plans.SHARED, recurrence.DIRECTIONS)
    for L, H, units, numbers, target, direction in sizes:
        size, precision = numbers.dtype.itemsize, numbers.precision
        needed = training.least_shared(direction, L, H, units, size, precision, target)
        for shared, enough in ((needed - 1, False), (needed or 1 << 30, needed > 0)):
            device = plans.Device(target, 1 << 20, shared)
            found = training_plans.fused_plans(direction, L, H, 121, 1, size, precision, device)
            assert (units in {plan.units for plan in found}) == enough
        lack = training.lacking(direction, L, H, units, size, precision, plans.Device(target, 1 << 20, 1024))
        assert lack.endswith(" KiB > 1") if needed else lack == "registers"


@pytest.mark.parametrize("numbers", sampling.ELEMENTS)
def test_the_fused_kernels_registers_are_of_the_kernel_that_is_launched(training_tables, stand_in, numbers):
    device = device_of("sm_90")
    with launching(shipped.Recorder(device)) as recorder:
        shipped._record_training(recorder, numbers.label, numbers.dtype, 400)
    asked = {variant for variant, _ in stand_in.asked if f" {numbers.label} " in variant}
    assert asked
    assert asked <= recorder.variants.keys()
    assert {target for _, target in stand_in.asked} == {"sm_90"}
    for variant in asked:
        direction = "forward" if ".forward" in variant else "backward"
        ranked = training_plans.ranked(direction, 3, 400, 121, 64, numbers.dtype.itemsize, numbers.precision, device)
        plan = next(plan for plan in ranked if plan.name == "fused")
        assert recorder.variants[variant].kernel.endswith(f"lstm_mdn_nll:{direction}")
        expected = {"H": 400, "M": 20, "ROWS": plan.rows, "UNITS": plan.units, "PRECISION": plan.precision}
        assert expected.items() <= recorder.variants[variant].constexprs.items()


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
    assert said.startswith("the compile gate's table has no row for 'lstm_persistent.forward bf16 H400 ieee 16x16")
    assert said.endswith("sm_90'; run `python -m tests.compile_gate --refresh`\n")
    assert not (tmp_path / "gpu.md").exists()
