"""Ratios, standings, targets and lost cells, from results whose figures are easy to calculate."""

import json

import pytest

from bench import chart, peers, results
from bench.judge import asked, judge, lost, standings
from bench.results import Run, find, ratio
from bench.targets import MODEL, TARGETS, AtLeast

from . import synthetic


@pytest.fixture
def cells():
    return [
        synthetic.sampling(1, [3000.0, 3100.0, 3050.0], [220.0, 180.0, 190.0]),
        synthetic.sampling(8, [50.0] * 3, [420.0] * 3),
        synthetic.loss(),
        synthetic.training(),
    ]


def made(cells, **more):
    return Run("cpu-a-1t", synthetic.run(cells, **more))


def test_ratios_are_medians_over_repetitions(cells):
    ours, jax = find(cells[0], "ours", "float32"), find(cells[0], "JAX scan", "float32")
    measured = ratio(jax, ours)
    assert measured.median == pytest.approx(190 / 210)  # of 1.1, 0.818 and 0.905; not 190 over 210 by chance of order
    assert measured.minima == pytest.approx(180 / 200)
    low, middle, high = 180 / 220, 190 / 210, 220 / 200
    assert measured.percentile_20 == pytest.approx(low + 0.4 * (middle - low))
    assert measured.percentile_80 == pytest.approx(high - 0.4 * (high - middle))
    assert ratio(find(cells[0], "ONNX Runtime", "float32"), ours) is None


def test_ratios_pair_the_repetitions():
    base, other = synthetic.result("ours", [1.0, 2.0, 4.0]), synthetic.result("JAX", [4.0, 2.0, 4.0])
    assert ratio(other, base).median == 1.0  # of 4, 1 and 1; the medians alone would say 2
    assert ratio(synthetic.result("JAX", [3.0]), base).median == 3.0  # one that ended early


def test_standings(cells):
    of = {(standing.work, standing.dtype): standing for standing in standings(made(cells))}
    float32, bf16 = of["sampling", "float32"], of["sampling", "bf16"]
    assert float32.ratios == pytest.approx([190 / 210, 50 / 210])
    assert float32.mean == pytest.approx((190 * 50) ** 0.5 / 210)
    assert (float32.won, float32.lost, float32.alone, float32.untimed) == (0, 2, 0, 0)
    assert float32.floors == pytest.approx([1.05, 1.05])
    assert (bf16.ratios, bf16.mean, bf16.alone) == ([], None, 2)
    assert bf16.floors == pytest.approx([2.1, 2.1])
    assert (of["training", "float32"].won, of["training", "float32"].ratios) == (1, [1.2])


def test_a_cell_without_ours_and_a_stand_in(cells):
    cell = synthetic.training()
    cell["results"][0] |= {"values": [], "median": None, "reason": "wrong"}
    faster = synthetic.training()
    faster["results"].append(synthetic.result("nn.LSTMCell loop", [10.0] * 3, role="stand-in"))
    (standing,) = standings(made([cell, faster]))
    assert (standing.untimed, standing.ratios, standing.lost) == (1, [1.2], 0)
    assert lost(made([cell, faster])) == []


def test_lost_cells(cells):
    found = [(each.cell["setup"]["B"], each.dtype, list(each.ratios)) for each in lost(made(cells))]
    assert found == [(1, "float32", ["JAX scan"]), (8, "float32", ["nn.LSTM loop"])]


def test_targets_are_judged(cells):
    outcomes = {}
    for target, measured, outcome in judge([made(cells)]):
        peer = target.peer if isinstance(target, AtLeast) else target.of
        kind = target.setup.get("lengths", target.setup.get("B"))
        outcomes[target.work, kind, target.dtype, peer] = outcome, measured
    assert outcomes["sampling", 1, "float32", "nn.LSTM loop"][0] == "met"
    assert outcomes["sampling", 1, "float32", "JAX scan"][0] == "missed"
    bf16, measured = outcomes["sampling", 1, "bf16", "nn.LSTM loop"]  # ours in bf16, the peer in float32
    assert (bf16, measured.median) == ("met", pytest.approx(3050 / 105, rel=1e-3))
    assert outcomes["sampling", 1, "float32", "ONNX Runtime"][0] == "not installed: No module named 'onnx'"
    assert outcomes["sampling", 64, "float32", "JAX scan"] == ("not measured", None)
    assert outcomes["loss", None, "float32", "eager"][0] == "met"
    assert outcomes["loss", None, "float32", "raw"] == ("missed", (1.5, None))
    assert outcomes["training", "equal", "float32", "nn.LSTM + eager loss"] == ("met", (1.2, 1.2))
    assert outcomes["sampling", 1, "float32", "floor"] == ("met", (pytest.approx(1.05), pytest.approx(1.0)))
    assert outcomes["sampling", 1, "bf16", "floor"][0] == "missed"
    assert len(outcomes) == len(TARGETS) == 38


def test_targets_are_looked_for_in_all_runs(cells):
    first, second = made(cells[:1]), made(cells[1:])
    assert judge([first, second]) == judge([made(cells)])
    assert judge([first]) != judge([made(cells)])


def test_another_model_is_not_judged(cells):
    for cell in cells:
        cell["model"] = "A"
    assert MODEL == "B"
    assert {verdict.outcome for verdict in judge([made(cells)])} == {"not measured"}


def test_which_runs_are_asked(cells):
    assert asked(made(cells))
    assert not asked(made(cells, threads=2))
    assert not asked(made(cells, gpu="H100"))
    assert not asked(made([synthetic.sampling(2, [1.0] * 3, [1.0] * 3)]))


def test_files_leave_quick_runs_alone(tmp_path):
    for name in ("quick-cpu-a-1t.json", "gpu-b-1t.json", "cpu-a-1t.json", "notes.json"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in results.files(tmp_path)] == ["cpu-a-1t.json", "gpu-b-1t.json"]


def without(path):
    """A run that lacks one thing, named by its keys."""
    run = synthetic.run([synthetic.loss()])
    entry = run
    for key in path[:-1]:
        entry = entry[key]
    del entry[path[-1]]
    return json.dumps(run)


def changed(**more):
    """A run whose only cell has other entries."""
    return json.dumps(synthetic.run([{**synthetic.loss(), **more}]))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not JSON: Expecting"),
        ("[]", "the file must be an object, got list"),
        (without(["environment"]), "the file lacks 'environment'"),
        (without(["environment", "device"]), "environment lacks 'device'"),
        (without(["cells", 0, "floors"]), "cells[0] lacks 'floors'"),
        (without(["cells", 0, "model"]), "cells[0] lacks 'model'"),
        (without(["cells", 0, "setup", "rows"]), "cells[0].setup lacks 'rows'"),
        (without(["cells", 0, "results", 1, "dtype"]), "cells[0].results[1] lacks 'dtype'"),
        (without(["cells", 0, "results", 1, "percentile_20"]), "cells[0].results[1] lacks 'percentile_20'"),
        (without(["cells", 0, "floors", "float32", "time"]), "cells[0].floors['float32'] lacks 'time'"),
        (changed(work="limit"), "cells[0].work must be one of training, loss, sampling, got 'limit'"),
        (changed(results=None), "cells[0].results must not be a NoneType"),
        (
            changed(results=[synthetic.result("ours", [])]),
            "cells[0].results[0] has neither values nor a reason",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, text, line):
    path = tmp_path / "cpu-a.json"
    path.write_text(text)
    with pytest.raises(results.DamagedError) as caught:
        results.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert line in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(results.DamagedError, match=r"none\.json: cannot be read"):
        results.load(tmp_path / "none.json")


def test_every_peer_that_is_asked_about_or_drawn_is_one():
    known = {name for lists in (peers.training, peers.ragged, peers.written_out, peers.sampling, peers.losses)
             for device in ("cpu", "cuda") for name in lists(device)}  # fmt: skip
    assert {target.peer for target in TARGETS if isinstance(target, AtLeast)} <= known
    assert set(chart.KNOWN) - {"ours"} <= known
