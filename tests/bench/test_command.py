"""`python -m bench`: a quick run end to end, and options that do not fit."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from bench import __main__ as command
from bench import environment, processes
from bench import run as runner
from bench.processes import converse
from bench.record import Record
from bench.results import files
from bench.screen import console
from bench.settings import Settings

from ..conftest import ROOT

COMPILES = "compile"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run on one thread where neither JAX nor ONNX can be imported and nothing is compiled."""
    hidden, out = tmp_path_factory.mktemp("hidden"), tmp_path_factory.mktemp("out")
    for name in ("jax", "onnx", "onnxruntime"):
        (hidden / f"{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name!r}")\n')
    words = f"--quick --device cpu --threads 1 --models B --without {COMPILES},TorchScript --out {out}".split()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path, json.loads(path.read_text()), done.stdout


def test_every_contender_has_figures_or_a_reason(quick):
    _, run, _ = quick
    assert (run["troubles"], run["left_out"]) == ({}, [])
    reasons = {}
    for result in (result for cell in run["cells"] for result in cell["results"]):
        reasons.setdefault(result["contender"], set()).add(result["reason"])
        assert (len(result["values"]) > 0) == (result["reason"] is None)
        assert result["repeats"] == len(result["values"]) == 2 * (result["reason"] is None)
        if result["values"]:
            assert result["error"] <= result["tolerance"]
            assert result["peak_memory"] is None or result["peak_memory"] >= 0
            assert result["percentile_20"] <= result["median"] <= result["percentile_80"]
    assert reasons["ours"] == {None}
    assert reasons["nn.LSTM + eager loss"] == reasons["nn.LSTM loop"] == reasons["eager"] == {None}
    assert reasons["JAX"] == {"not installed: No module named 'jax'"}
    assert reasons["torch.compile"] == {f"left out (--without {COMPILES})"}


def test_every_work_is_there(quick):
    _, run, _ = quick
    setups = [cell["setup"] for cell in run["cells"]]
    kinds = [setup.get("lengths", setup.get("B")) for setup in setups]
    assert [(c["work"], c["model"], kind) for c, kind in zip(run["cells"], kinds, strict=True)] == [
        ("training", "B", "equal"), ("training", "B", "ragged"), ("training", "B", "equal, clipped"),
        ("training", "B", "equal, peepholes"), ("sampling", "B", 1), ("sampling", "B", 8), ("loss", None, None),
    ]  # fmt: skip
    for cell in run["cells"]:
        assert cell["floors"].keys() == {"float32", "bf16"}
        assert all(floor["time"] > 0 for floor in cell["floors"].values())


def test_training_has_phases_and_the_optimiser_apart(quick):
    _, run, _ = quick
    ours = run["cells"][0]["results"][0]
    assert (ours["contender"], [*ours["phases"]]) == ("ours", ["forward", "backward", "optimiser"])
    both = zip(ours["phases"]["forward"]["values"], ours["phases"]["backward"]["values"], strict=True)
    assert ours["values"] == pytest.approx([sum(pair) for pair in both])


def test_the_environment_and_the_ceilings_are_told(quick):
    path, run, _ = quick
    where = run["environment"]
    assert path.name.startswith("quick-")
    assert path.name.endswith("-1t.json")
    assert (where["threads"], where["device"], where["gpu"]) == (1, "cpu", None)
    assert where["options"] == {"grid": "quick", "minutes": 10.0}
    assert where["versions"]["torch"]
    assert set(where["backends"].values()) <= {"cpu", "reference"}
    assert run["ceilings"]["multiply_adds"]["float32"] > 1e8
    assert len(run["ceilings"]["reads"]) == 4  # weights and losses, in two dtypes


def test_tables_are_printed(quick):
    path, _, printed = quick
    assert "training, model B" in printed
    assert "not installed: No module named 'jax'" in printed
    assert printed.splitlines()[-1] == f"wrote {path}"


def test_a_quick_run_is_not_reported(quick):
    path, _, _ = quick
    assert files(path.parent) == []


def invoke(*words):
    done = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(command.app, [*words])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "4096"], "--threads: '4096' is none of 1 to"),
        (["--threads", "0"], "--threads: '0' is none of 1 to"),
        (["--works", "sampling,cooking"], "--works: 'cooking' is none of training, loss, sampling"),
        (["--models", "Z"], "--models: model must be one of A, B, C, D or 1xH, as 1x128, got 'Z'"),
        (["--models", "1x0"], "--models: model must be one of A, B, C, D or 1xH, as 1x128, got '1x0'"),
        (["--models", ","], "--models: expected some of A, B, C, D, and 1xH"),
        (["--threads", ","], "--threads: '' is none of 1 to"),
        (["--threads", "²"], "--threads: '²' is none of 1 to"),
        (["--dtypes", ","], "--dtypes: expected some of float32, bf16"),
        (["--dtypes", "tf32", "--device", "cpu"], "--dtypes: 'tf32' is none of float32, bf16, fp16 of a cpu"),
        (["--device", "meta"], "--device meta: expected one of cpu, cuda"),
        (["--device", "nonsense"], "--device nonsense cannot be used"),
        (["--full", "--quick"], "--full and --quick exclude each other"),
        (["--repeats", "0"], "Invalid value for '--repeats'"),
        (["--minutes", "0"], "Invalid value for '--minutes'"),
        (["--works", ","], "--works: expected some of training, loss, sampling"),
    ],
)
def test_options_that_do_not_fit(words, message, tmp_path):
    code, printed = invoke(*words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in printed
    assert not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    code, printed = invoke("--quick", "--device", "cpu", "--out", str(tmp_path / "file" / "results"))
    assert code == 2
    assert "Not a directory" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu():
    code, printed = invoke("--device", "cuda")
    assert code == 2
    assert "--device cuda cannot be used: " in printed


def given(path, minutes=10.0):
    chosen = Settings("cpu", 1, "quick", command.parts("quick", "cpu", ("loss",), ("B",)), ("float32",), (), minutes)
    return runner.Run(chosen, Record(path, {}), console())


def speak(monkeypatch, code):
    monkeypatch.setattr(runner, "WORKER", [sys.executable, "-c", code])


ANSWER = """
import json, os, sys
out, task = os.fdopen(int(sys.argv[-1]), "w"), json.load(sys.stdin)
if task["part"] is None: message = {"ceilings": {"bandwidth": 1}}
else: message = MESSAGE
print(json.dumps(message), file=out, flush=True)
"""
CELL = {
    "work": "loss", "model": None, "setup": {"rows": 4}, "unit": "ms", "load_before": [0, 0, 0], "floors": {},
    "results": [],
}  # fmt: skip


def test_a_part_that_dies_is_told_and_the_rest_kept(monkeypatch, tmp_path, capsys):
    speak(
        monkeypatch, ANSWER.replace("MESSAGE", repr({"cell": CELL})) + "if task['part'] == 0: os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "run.json"
    assert not given(path).perform()
    run = json.loads(path.read_text())
    assert run["ceilings"] == {"bandwidth": 1}
    assert [cell["setup"] for cell in run["cells"]] == [{"rows": 4}]
    assert run["troubles"] == {"loss": "killed by signal 9 (SIGKILL): out of memory?"}
    assert run["left_out"] == []
    assert "loss: killed by signal 9 (SIGKILL): out of memory?" in capsys.readouterr().out
    assert [*tmp_path.iterdir()] == [path]


def test_what_there_was_no_time_for_is_told(monkeypatch, tmp_path, capsys):
    speak(monkeypatch, ANSWER.replace("MESSAGE", "{'left out': f'loss: {task[\"seconds\"]:.0f}'}"))
    run = given(tmp_path / "run.json", minutes=0.0)
    assert run.perform()
    assert run.record.run["left_out"] == ["loss: 0"]
    assert "loss: 0\n" in capsys.readouterr().out


@pytest.mark.parametrize(("role", "well"), [("ours", False), ("variant", False), ("peer", True)])
def test_ours_must_be_right(monkeypatch, tmp_path, capsys, role, well):
    wrong = {
        "contender": "some", "dtype": "bf16", "role": role, "repeats": 0, "values": [], "median": None, "minimum": None,
        "percentile_20": None, "percentile_80": None, "phases": {}, "cpu": [], "cpu_minimum": None, "peak_memory": None,
        "error": 1.0, "tolerance": 0.1, "reason": "wrong: error 1", "failed": True, "plan": None,
    }  # fmt: skip
    speak(monkeypatch, ANSWER.replace("MESSAGE", repr({"cell": {**CELL, "results": [wrong]}})))
    assert given(tmp_path / "run.json").perform() == well
    assert ("loss, rows 4: some bf16: wrong: error 1" in capsys.readouterr().out) == (not well)


def test_an_interrupted_run_keeps_what_it_has(monkeypatch, tmp_path):
    monkeypatch.setattr(command.Run, "perform", lambda run: (_ for _ in ()).throw(KeyboardInterrupt()))
    code, printed = invoke("--quick", "--device", "cpu", "--out", str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert code == 130
    assert f"interrupted; {path} has what was measured" in printed
    assert json.loads(path.read_text())["cells"] == []


def test_a_runs_file_is_its_own():
    where = {"gpu": None, "cpu": "A (B) 9", "threads": 2}
    names = {environment.file_of(where, grid) for grid in ("default", "full", "quick")}
    assert names == {"cpu-a-b-9-2t.json", "cpu-a-b-9-2t-full.json", "quick-a-b-9-2t.json"}
    assert environment.file_of(where, "default", partial=True) == "partial-a-b-9-2t.json"
    assert environment.file_of({**where, "gpu": {"name": "NVIDIA X"}}, "full") == "gpu-nvidia-x-full.json"


THREE = """
import json, os, sys
out, task = os.fdopen(int(sys.argv[-1]), "w"), json.load(sys.stdin)
for place in range(task["first"], 3 if task["part"] is not None else 0):
    print(json.dumps({"say": f"cell {place}"}), file=out, flush=True)
    if place == 1: os.abort()
    print(json.dumps({"left out": f"cell {place}"}), file=out, flush=True)
"""


def test_after_a_death_the_next_cells_have_their_turn(monkeypatch, tmp_path):
    speak(monkeypatch, THREE)
    run = given(tmp_path / "run.json")
    part = dataclasses.replace(run.settings.parts[0], setups=({"n": 0}, {"n": 1}, {"n": 2}))
    run.settings = dataclasses.replace(run.settings, parts=(part,))
    assert not run.perform()
    assert run.record.run["left_out"] == ["cell 0", "loss, n 1: its process died", "cell 2"]
    assert run.record.run["troubles"] == {"loss": "killed by signal 6 (SIGABRT) (at cell 1)"}


def test_a_full_disk_is_told_and_the_run_goes_on(monkeypatch, tmp_path, capsys):
    speak(monkeypatch, ANSWER.replace("MESSAGE", repr({"cell": CELL})))
    run = given(tmp_path / "run.json")
    monkeypatch.setattr(run.record, "write", mock.Mock(side_effect=OSError(28, "No space left on device")))
    assert run.perform()
    assert "was not written: [Errno 28] No space left on device" in " ".join(capsys.readouterr().out.split())


def test_a_worker_without_ceilings_has_no_floors(tmp_path):
    """As after a part of ceilings that died."""
    chosen = command.parts("quick", "cpu", ("loss", "sampling"), ("C",))
    settings = Settings("cpu", 1, "quick", chosen, ("float32",), (), None, 1, 1, 16)
    for index in range(2):
        task = {"settings": settings.as_json(), "part": index, "first": 0, "ceilings": {}, "seconds": None}
        heard = []
        assert converse(runner.WORKER, task, heard.append, threads=1, silence=120.0) is None
        cells = [message["cell"] for message in heard if "cell" in message]
        assert cells
        assert all(cell["floors"] == {} for cell in cells)


def test_jax_is_kept_from_a_gpu_on_the_cpu_alone(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert processes.environment(1)["JAX_PLATFORMS"] == "cpu"
    assert "JAX_PLATFORMS" not in processes.environment(1, "cuda")


def test_the_readmes_commands_have_their_options():
    lines = re.findall(r"^    python -m bench (.*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) >= 2
    _, shown = invoke("--help")
    for option in (word for line in lines for word in line.split() if word.startswith("-")):
        assert option in shown
