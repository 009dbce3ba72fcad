"""The page, from small results in which a cell is lost and a target missed."""

import json

import pytest

from bench import report, targets
from bench.cell import result
from bench.judge import judge, lost
from bench.results import ratio
from bench.targets import AtLeast


def entry(name, values, role="peer", unit="us/step", reason=None):
    return result(name, role, values, values, unit, 1e-6 if values else None, 1e-3, reason)


def sampling(batch, nn_lstm, jax):
    results = [
        entry("ours float32", [200.0, 220.0, 210.0], "ours"),
        entry("ours bfloat16", [100.0, 110.0, 105.0], "ours"),
        entry("nn.LSTM loop", nn_lstm),
        entry("JAX scan", jax),
        entry("ONNX Runtime", [], reason="not installed: No module named 'onnx'"),
    ]
    return cell("sampling", {"batch": batch, "steps": 600}, "us/step", results)


def cell(work, setup, unit, results, model="B"):
    keys = ("work", "model", "setup", "unit", "load_before", "results")
    return dict(zip(keys, (work, model, setup, unit, [0.5, 0.0, 0.0], results), strict=True))


@pytest.fixture
def run():
    reads = [entry("numpy.dot", [160.0, 150.0, 155.0], "limit", "us"), entry("torch.sum", [180.0] * 3, "limit", "us")]
    ours = entry("ours float32", [165.0, 160.0, 170.0], "ours", "us")
    memory = [entry("ours", [1.2] * 3, "ours", "x y"), entry("eager", [3.3] * 3, unit="x y")]
    return {
        "environment": {
            "date": "2026-01-01T00:00:00+00:00", "cpu": "A Processor", "cores": 2, "caches": {"L2": "1M"},
            "isa": None, "backends": {"lstm": "cpu"}, "os": "Linux", "python": "3.11",
            "versions": {"torch": "2.13", "jax": None}, "revision": "abc+", "threads": 1, "pinned_to": [1],
            "load_before": [0.1, 0.2, 0.3],
        },
        "cells": [
            sampling(1, [3000.0, 3100.0, 3050.0], [220.0, 180.0, 190.0]),
            cell("loss memory", {"rows": 19_200, "columns": 121}, "x y", memory, model=None),
            cell("limit", {"weights": "float32", "bytes": 12_400_000}, "us", [ours, *reads]),
        ],
    }  # fmt: skip


@pytest.fixture
def page(run, tmp_path):
    (tmp_path / "cpu-a-processor-1t.json").write_text(json.dumps(run))
    out = tmp_path / "cpu.md"
    assert report.main(["--results", str(tmp_path), "--out", str(out)]) == 0
    return out.read_text()


def test_ratios_are_medians_over_repetitions(run):
    ours, _, _, jax, onnx = run["cells"][0]["results"]
    assert ratio(jax, ours).median == pytest.approx(190 / 210)
    assert ratio(jax, ours).minima == pytest.approx(180 / 200)
    assert ratio(onnx, ours) is None


def test_targets_are_judged(run):
    outcomes = {}
    for target, measured, outcome in judge(run):
        peer = target.peer if isinstance(target, AtLeast) else None
        outcomes[target.work, target.setup.get("batch"), target.ours, peer] = outcome, measured
    assert outcomes["sampling", 1, "ours float32", "nn.LSTM loop"][0] == "met"
    assert outcomes["sampling", 1, "ours float32", "JAX scan"][0] == "missed"
    assert outcomes["sampling", 1, "ours float32", "ONNX Runtime"][0] == "not installed: No module named 'onnx'"
    assert outcomes["sampling", 8, "ours float32", "JAX scan"] == ("not measured", None)
    assert outcomes["loss memory", None, "ours", None][0] == "missed"
    outcome, measured = outcomes["limit", None, "ours float32", None]
    assert outcome == "met"
    assert measured == (165 / 150, 160 / 150)
    assert outcomes["limit", None, "ours bfloat16", None][0] == "not measured"


def test_lost_cells(run):
    (found,) = lost(run)
    assert (found.cell, found.ours, list(found.ratios)) == (run["cells"][0], "ours float32", ["JAX scan"])
    run["cells"].append(sampling(8, [50.0] * 3, [300.0] * 3))
    assert [(f.ours, list(f.ratios)) for f in lost(run)[1:]] == [
        ("ours float32", ["nn.LSTM loop"]),
        ("ours bfloat16", ["nn.LSTM loop"]),
    ]


def test_the_page_shows_them(page):
    assert "| sampling, batch 1: JAX scan over ours float32 | ≥ 1.1 | 0.90 | 0.90 | **missed** |" in page
    assert "| sampling, batch 1: nn.LSTM loop over ours float32 | ≥ 12 | 14.52 | 15.00 | met |" in page
    missing = (
        "| sampling, batch 1: ONNX Runtime over ours bfloat16 | ≥ 3 |  |  | not installed: No module named 'onnx' |"
    )
    assert missing in page
    cells_lost = page.split("## Cells lost")[1].split("\n## ")[0]
    assert (
        "| A Processor | 1 | sampling, model B, batch 1, steps 600 | ours float32 | JAX scan 1.11× (1.11×) |"
        in cells_lost
    )
    assert cells_lost.count("| A Processor |") == 1
    assert f"Met: 3; missed: 3; without a figure: {len(targets.TARGETS) - 6}." in page


def test_the_page_has_figures_reasons_and_environment(page):
    assert "| model B, batch 1, steps 600 | 210 (200) | 105 (100) | 3,050 (3,000) | 190 (180) | – |" in page
    assert "| model B, batch 1, steps 600 | 4,762 | 9,524 | 328 | 5,263 | – |" in page
    assert "- not timed: ONNX Runtime (model B, batch 1, steps 600): not installed: No module named 'onnx'" in page
    assert "| model B, weights float32, bytes 12400000 | 75.2 (77.5) | 80.0 (82.7) |" in page
    for text in ("make bench-cpu", "torch 2.13, jax not installed", "abc+", "A Processor, 2 cores; pinned to [1]"):
        assert text in page


def test_nothing_lost(run):
    run["cells"] = run["cells"][1:]
    assert "None: in no cell is a peer ahead" in report.page([run], "results")


def test_no_run_on_the_targets_threads(run):
    run["environment"]["threads"] = 2
    assert "Nothing was measured on 1 thread." in report.page([run], "results")


def test_no_results(tmp_path, capsys):
    assert report.main(["--results", str(tmp_path)]) == 2
    assert f"{tmp_path}: has no cpu-*.json" in capsys.readouterr().err
