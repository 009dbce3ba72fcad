"""Plans beside each other: what is timed, what the planner's choices lose, and the page of it."""

import json
import time

import pytest
import torch
from typer.testing import CliRunner

from bench.gpu import measured, plan_times
from fusedmdn import tune

from ..conftest import ROOT, simulated

PLANS = "persistent 16x8", "persistent 16x16", "stepwise"
RUNS = [json.loads(path.read_text()) for path in sorted((ROOT / "bench" / "results").glob("plans-*.json"))]


@pytest.fixture
def clock(monkeypatch):
    """A timer for tensors of the CPU, and one call of everything."""

    def seconds(run):
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    monkeypatch.setattr(tune, "cuda_timer", lambda device: seconds)
    monkeypatch.setattr(plan_times, "ROUNDS", 1)
    monkeypatch.setattr(plan_times, "WARM", 0)


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (
            ("layer", 8, 2, "float32"),
            {
                f"{d}, {plan}"
                for d in measured.DIRECTIONS
                for plan in ("persistent 16x8", "persistent 16x16", "stepwise")
            },
        ),
        (("cudnn", 8, 2, "float32"), {*measured.DIRECTIONS}),
        (("training", "1x8", 2, "bf16"), {f"{d}, {p}" for d in measured.DIRECTIONS for p in ("fused", "composed")}),
        (("sampling", "1x8", 2, "bf16"), {"resident", "rows", "graph"}),
    ],
)
def test_every_plan_is_timed(clock, cell, names):
    with simulated(processors=16):
        times = plan_times.perform(cell, torch.device("cpu"), steps=2)
    assert times.keys() == names
    assert all(0 < least <= middle for middle, least in times.values())


def test_without_a_gpu_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(plan_times.app, ["--out", str(tmp_path)])
    assert (done.exit_code, done.stdout, [*tmp_path.iterdir()]) == (2, "", [])
    assert done.stderr == f"bench.gpu.plan_times needs a GPU, and torch {torch.__version__} sees none\n"


@pytest.mark.parametrize("run", RUNS, ids=[run["environment"]["gpu"]["name"] for run in RUNS])
def test_what_the_planner_chooses_is_near_the_fastest(run):
    """On average over all that was measured there, by the mean of the median and the least."""
    lost = {"layer": [], "training": [], "sampling": []}
    for cell in run["cells"]:
        for choice in () if cell["kind"] == "cudnn" else measured.chosen(cell, run):
            direction = choice.partition(", ")[0]
            among = {n: sum(t) / 2 for n, t in cell["milliseconds"].items() if n.startswith(direction) or n == choice}
            if cell["kind"] == "sampling":
                among = {name: sum(times) / 2 for name, times in cell["milliseconds"].items()}
            if choice in among:
                lost[cell["kind"]].append(among[choice] / min(among.values()) - 1)
    means = {kind: sum(values) / len(values) for kind, values in lost.items()}
    assert {kind: mean for kind, mean in means.items() if mean > 0.06} == {}
    assert min(map(len, lost.values())) >= 20


def test_the_page_is_what_was_measured(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (ROOT / measured.PAGE).read_text() == measured.page(measured.runs())
