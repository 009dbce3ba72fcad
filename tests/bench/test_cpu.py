"""The command: a quick run end to end, and options that do not fit."""

import json
import os
import subprocess
import sys

import pytest

from bench import cpu, settings
from bench.results import load

from ..conftest import ROOT

COMPILES = "torch.compile"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run on one thread where neither JAX nor ONNX can be imported and nothing is compiled."""
    hidden, out = tmp_path_factory.mktemp("hidden"), tmp_path_factory.mktemp("out")
    for name in ("jax", "onnx", "onnxruntime"):
        (hidden / f"{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name!r}")\n')
    words = f"--quick --threads 1 --models B,C --without {COMPILES} --out {out}".split()
    environment = {**os.environ, "PYTHONPATH": str(hidden)}
    done = subprocess.run(
        [sys.executable, "-m", "bench.cpu", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path, json.loads(path.read_text()), done.stdout


def test_every_contender_has_figures_or_a_reason(quick):
    _, run, _ = quick
    expected = {"JAX": "not installed: No module named 'jax'", "ONNX": "not installed: No module named 'onnx'"}
    for cell in run["cells"]:
        for result in cell["results"]:
            name, reason = result["contender"], result["reason"]
            wanted = next((text for peer, text in expected.items() if name.startswith(peer)), None)
            if COMPILES in name:
                wanted = f"left out (--without {COMPILES})"
            elif name == "ours bfloat16" and reason is not None:
                continue  # a package without the keyword gives its TypeError, and nothing is timed
            assert reason == wanted, (cell["work"], name)
            assert (len(result["values"]) > 0) == (reason is None)
            assert result["repeats"] == len(result["values"])


def test_every_work_is_there(quick):
    _, run, _ = quick
    assert [(cell["work"], cell["model"]) for cell in run["cells"]] == (
        [("sampling", "B")] * 2 + [("sampling", "C")] * 2 + [("loss", None), ("loss memory", None)]
        + [("train", "B")] * 4 + [("limit", "B")] * 2
    )  # fmt: skip
    assert run["cells"][0]["setup"] == {"batch": 1, "steps": settings.QUICK.steps[1]}


def test_the_environment_is_told(quick):
    path, run, _ = quick
    where = run["environment"]
    assert path.name.startswith("quick-")
    assert path.name.endswith("-1t.json")
    assert where["threads"] == 1
    assert len(where["pinned_to"]) == 1
    assert where["versions"]["torch"]
    assert set(where["backends"].values()) <= {"cpu", "reference"}


def test_tables_are_printed(quick):
    _, _, printed = quick
    assert "sampling, model B, batch 1" in printed
    assert "not installed: No module named 'jax'" in printed


def test_a_quick_run_is_not_reported(quick):
    path, _, _ = quick
    assert load(path.parent) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "4096"], "--threads 4096: this process may use 1 to"),
        (["--works", "sampling,cooking"], "'cooking' is none of sampling, loss, train, limit"),
        (["--models", "Z"], "'Z' is none of A, B, C, D"),
        (["--repeats", "0"], "must be >= 1, got 0"),
    ],
)
def test_options_that_do_not_fit(words, message, capsys):
    with pytest.raises(SystemExit):
        cpu.main(words)
    assert message in capsys.readouterr().err
