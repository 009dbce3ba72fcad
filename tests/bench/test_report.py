"""The page, from small results in which a cell is lost and a target missed."""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from unittest import mock

import pytest

from bench import report
from bench.gpu_page import condensed
from bench.gpu_page.common import Rows

from ..conftest import ROOT
from . import synthetic

CELLS = [
    synthetic.sampling(1, [3000.0, 3100.0, 3050.0], [220.0, 180.0, 190.0]),
    synthetic.sampling(8, [3000.0] * 3, [420.0] * 3),
    synthetic.loss(),
    synthetic.training(),
]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    save(folder / "cpu-a-1t.json", synthetic.run(CELLS))
    return folder


def save(path, run):
    path.write_text(json.dumps(run))


def written(results, *words):
    """The page, and the command's exit code."""
    out = results.parent / "docs" / "benchmark.md"
    code = report.main([*words, "--results", str(results), "--out", str(out)])
    return out.read_text(), code


def page_of(results, run):
    save(results / "cpu-a-1t.json", run)
    page, code = written(results)
    assert code == 0
    return page


def section(page, heading):
    return page.split(f"\n{heading}\n")[1].split("\n## ")[0]


def test_the_summary(results):
    page, code = written(results)
    assert code == 0
    shown = section(page, "## Who is ahead")
    mean = (190 / 210 * 2) ** 0.5
    assert (
        f"| A Processor, 1 thread | sampling | float32 | **{mean:.2f}** | 0.90–2.00 | 1 | 1 | 0 | 0 | 1.05 |" in shown
    )
    assert "| A Processor, 1 thread | sampling | bf16 | – | – | 0 | 0 | 2 | 0 | 2.10 |" in shown
    assert "| A Processor, 1 thread | loss | float32 | **6.00** | 6.00 | 1 | 0 | 0 | 0 | 5.00 |" in shown
    assert "| A Processor, 1 thread | training | float32 | **1.20** | 1.20 | 1 | 0 | 0 | 0 | 1.25 |" in shown


def test_targets_and_lost_cells(results):
    page, _ = written(results)
    shown = section(page, "## Asked and measured")
    assert "| sampling, B 1: JAX scan in float32 over ours in float32 | ≥ 1.1 | 0.90 | 0.90 | **missed** |" in shown
    assert "| sampling, B 1: nn.LSTM loop in float32 over ours in bf16 | ≥ 25 | 29.05 | 30.00 | met |" in shown
    assert "| loss, rows 19200: ours in float32 over raw, peak memory | ≤ 1.05 | 1.50 |  | **missed** |" in shown
    assert "| sampling, B 1: ours in float32 over the floor | ≤ 1.15 | 1.05 | 1.00 | met |" in shown
    assert "| ≥ 1 (aim 1.15) | 1.20 | 1.20 | met |" in shown
    assert "over ours in bf16 | ≥ 3 |  |  | not installed: No module named 'onnx' |" in shown
    counts = [shown.count(f"| {outcome} |") for outcome in ("met", "**missed**")]
    assert f"Met: {counts[0]}; missed: {counts[1]}; without a figure: {38 - sum(counts)}." in shown
    shown = section(page, "## Cells lost")
    lines = [line for line in shown.splitlines() if line.startswith("| A Processor")]
    cell = "sampling, model B, B 1, steps 600"
    assert lines == [f"| A Processor, 1 thread | {cell} | float32 | JAX scan 1.11× (1.11×) |"]


def test_the_cells(results):
    page, _ = written(results)
    shown = section(page, "## A Processor, 1 thread")
    cell = "model B, B 1, steps 600"
    assert f"| {cell} | 210 (204–216) | 3,050 (3,020–3,080) | 190 (184–208) | – |" in shown
    assert f"| {cell} | 1.00 | 14.52 | **0.90** | – | 200, products | 1.05 |" in shown
    assert f"| {cell} | 4,762 | 328 | 5,263 | – |" in shown
    assert "| model B, T 300, B 32, lengths equal | 40 / 60 / 7 | 40 / 60 / 7 | forward + backward 150 |" in shown
    assert "| rows 19200, columns 121 | 13.94 | 37.17 |" in shown  # MB: 1.5 and 4 times raw
    assert "- not timed: ONNX Runtime in float32 (2 cells): `not installed: No module named 'onnx'`" in shown
    assert shown.count("No module named 'onnx'") == 1
    assert "- largest error, float32: ours 1e-06, nn.LSTM loop 1e-06, JAX scan 1e-06" in shown
    assert "- repetitions: 3; load average before: at most 0.50" in shown


def test_environment_and_ceilings(results):
    page, _ = written(results)
    shown = section(page, "## A Processor, 1 thread")
    for text in (
        "torch 2.13, jax not installed",
        "abc+",
        "A Processor, 2 cores; pinned to [1]",
        "grid default, minutes 10",
    ):
        assert text in shown
    assert "| products, bf16 | 100·10⁹ multiply-adds/s | a square product |" in shown
    assert "| memory | 20 GB/s | a copy |" in shown
    assert "| reading 12.40 MB again | 40 GB/s | numpy.dot |" in shown
    assert "`make bench`" in page
    assert "`cpu-a-1t.json`" in page


def test_plans_and_words_that_would_break_a_table(results):
    cell = synthetic.training()
    cell["results"][0]["plan"] = {"forward": "fused", "rows": 16}
    cell["results"].append(synthetic.result("a | b", [], reason="two\nlines | and a `bar`"))
    page = page_of(results, synthetic.run([cell]))
    assert "- plan of ours, float32: forward fused, rows 16: model B, T 300, B 32, lengths equal" in page
    assert "| a \\| b |" in page
    assert "- not timed: a | b in float32 (model B, T 300, B 32, lengths equal): `two lines | and a 'bar'`" in page


def test_troubles_and_what_was_left_out(results):
    page = page_of(
        results,
        synthetic.run(
            CELLS, troubles={"loss": "killed by signal 9"}, left_out=["training, model A: the time was over"]
        ),
    )
    assert "### Troubles\n\n- loss: `killed by signal 9`\n" in page
    assert "### Left out\n\n- training, model A: the time was over\n" in page
    assert "### Tests and promises" not in page


def test_charts_are_next_to_the_page(results):
    page, _ = written(results)
    for work in ("sampling", "loss", "training"):
        assert f"![{work.capitalize()}, A Processor, 1 thread](benchmark/cpu-a-1t-{work}.svg)" in page
        ET.parse(results.parent / "docs" / "benchmark" / f"cpu-a-1t-{work}.svg")
    assert {path.suffix for path in (results.parent / "docs").rglob("*.*")} == {".md", ".svg"}


def test_a_work_that_ours_did_not_do_has_no_chart(results):
    cell = synthetic.training()
    cell["results"][0] |= {"values": [], "reason": "wrong: error 1"}
    page = page_of(results, synthetic.run([cell]))
    assert "![" not in page
    assert "| A Processor, 1 thread | training | float32 | – | – | 0 | 0 | 0 | 1 | – |" in page
    assert "ours in float32 (model B, T 300, B 32, lengths equal): `wrong: error 1`" in page


def test_no_run_with_the_targets_cells(results):
    page = page_of(results, synthetic.run(CELLS, threads=2))
    assert "No run has the cells that the targets are about: model B, 1 thread on a CPU." in page


def test_nothing_lost(results):
    page = page_of(results, synthetic.run(CELLS[1:]))
    assert "None: in no cell is a peer of the same dtype ahead" in page


def test_all_runs_of_a_device_are_on_the_page(results):
    save(results / "cpu-a-2t.json", synthetic.run(CELLS, threads=2))
    save(results / "quick-cpu-a-9t.json", synthetic.run(CELLS, threads=9))
    page, _ = written(results)
    assert page.index("\n## A Processor, 1 thread\n") < page.index("\n## A Processor, 2 threads\n")
    assert "9 threads" not in page
    assert "2 threads" not in report.page(report.load_all([results / "cpu-a-1t.json"])[0], "benchmark")


def test_without_a_gpu_there_are_floors_that_are_called_so(results):
    page, _ = written(results)
    shown = section(page, "## GPU: floors, not measured")
    assert "**Nothing here was measured." in shown
    assert "[floors and resources of its kernels](#gpu-floors-not-measured)" in page
    for heading in ("sampling in bfloat16", "sampling in float32", "training in bfloat16", "training in float32"):
        assert f"### GPU floors: {heading}\n" in shown


def rows_below(text, heading):
    """Rows of the first table below a heading, without its header."""
    lines = text.split(f"\n{heading}\n")[1].split("\n#")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


@pytest.mark.parametrize("elements", ["bfloat16", "float32"])
def test_the_floors_of_sampling_are_those_of_the_gpu_page(elements):
    """The plan in bold on docs/gpu.md, at the batches that both have."""
    page = "\n".join(condensed.sections(Rows()))
    rows = rows_below((ROOT / "docs" / "gpu.md").read_text(), f"### A step of sampling in {elements}")
    chosen = {(row[0], row[1]): [row[2].replace("*", ""), *row[8:12]] for row in rows if "**" in row[2]}
    ours = rows_below(page, f"### GPU floors: sampling in {elements}")
    assert len(ours) == 16
    both = [row for row in ours if (row[0][3:], row[1]) in chosen]
    assert len(both) == 8
    assert all(row[2:] == chosen[row[0][3:], row[1]] for row in both)


@pytest.mark.parametrize("elements", ["bfloat16", "float32"])
def test_the_floors_of_training_are_those_of_the_gpu_page(elements):
    """Of Graves's network; a composed plan has no kernel there."""
    page, gpu = "\n".join(condensed.sections(Rows())), (ROOT / "docs" / "gpu.md").read_text()
    ours = rows_below(page, f"### GPU floors: training in {elements}")
    assert len(ours) == 32
    for direction in ("forward", "backward"):
        rows = rows_below(gpu, f"### A step of training in {elements}, {direction}")
        chosen = {row[0]: (row[1].replace("*", ""), row[9], row[10:13]) for row in rows if "**" in row[1]}
        same = [row for row in ours if row[0].startswith("B: ") and row[2] == direction and row[1] in chosen]
        assert len(same) == 3
        for row in same:
            plan, floor, compiled = chosen[row[1]]
            assert row[3:5] == [plan, floor]
            assert compiled in (row[5:], ["–"] * 3)
    without = {(row[0][0], row[3].split()[0]) for row in ours if row[5] == "–"}
    assert without == {("C", "fused")}  # two layers, which the compile gate leaves to three


def test_a_gpus_results_take_the_floors_place(results):
    parts = {"tests": {"trouble": None}, "repeated runs": {"trouble": "AssertionError: 2 of <100> differ"}}
    save(results / "gpu-h100-1t.json", synthetic.run(CELLS[:1], gpu="NVIDIA H100", parts=parts))
    page, code = written(results)
    assert code == 0
    assert "floors, not measured" not in page
    shown = section(page, "## NVIDIA H100")
    assert "| tests | as it should be |" in shown
    assert "| repeated runs | AssertionError: 2 of \\<100> differ |" in shown
    assert "name NVIDIA H100, capability [9, 0], multiprocessors 132" in shown
    assert "| model B, B 1, steps 600 | 210 (204–216) |" in shown
    assert "| NVIDIA H100 | sampling | float32 | **0.90** |" in page
    assert "Model B, NVIDIA H100" not in page  # the targets are of CPUs


def test_a_damaged_file_is_named_and_the_others_are_shown(results, capsys):
    (results / "cpu-b.json").write_text("{")
    save(results / "cpu-c.json", {"environment": {"cpu": "old"}, "cells": []})
    page, code = written(results)
    assert code == 1
    assert "## A Processor, 1 thread" in page
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{results}/cpu-b.json: is not JSON")
    assert lines[1] == f"{results}/cpu-c.json: is not a run's results: environment lacks 'device'"


def test_files_by_name(results, tmp_path, capsys):
    out = tmp_path / "page.md"
    given = [
        str(results / "cpu-a-1t.json"),
        str(tmp_path / "none.json"),
        str(results / ".." / "results" / "cpu-a-1t.json"),
    ]
    assert report.main([*given, "--out", str(out)]) == 1
    assert "(page/cpu-a-1t-loss.svg)" in out.read_text()
    assert (tmp_path / "page" / "cpu-a-1t-loss.svg").exists()
    errors = capsys.readouterr().err
    assert "none.json: cannot be read" in errors
    assert "another file of this name was given" in errors


def test_no_results(tmp_path, capsys):
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 2
    assert f"{tmp_path}: has no cpu-*.json or gpu-*.json; run `make bench` first" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_the_same_bytes_from_the_same_files(results, tmp_path):
    """In another process, another folder, another hash seed."""
    save(results / "cpu-a-2t.json", synthetic.realistic(threads=2))
    written(results)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(results, elsewhere)
    out = tmp_path / "again" / "benchmark.md"
    command = [sys.executable, "-m", "bench.report", "--results", str(elsewhere), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    first = {path.relative_to(tmp_path / "docs"): path.read_bytes() for path in (tmp_path / "docs").rglob("*.*")}
    second = {path.relative_to(out.parent): path.read_bytes() for path in out.parent.rglob("*.*")}
    assert len(first) == 7
    assert first == second


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "page.md"
    report.write(path, "before")
    with mock.patch("os.replace", side_effect=OSError(28, "full")), pytest.raises(OSError, match="full"):
        report.write(path, "after")
    assert path.read_text() == "before"
    report.write(path, "after")
    assert path.read_text() == "after"


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    assert report.main(["--results", str(ROOT / "bench/results"), "--out", str(tmp_path / "benchmark.md")]) == 0
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    docs = [ROOT / "docs/benchmark.md", *(ROOT / "docs/benchmark").iterdir()]
    assert made == {path.relative_to(ROOT / "docs"): path.read_bytes() for path in docs}
