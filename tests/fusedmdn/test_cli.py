"""The command, as a user types it."""

import json
import re
import sys
import xml.etree.ElementTree as ET

import fusedmdn.ops as ops
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fusedmdn import FusedLSTMMDN, __version__, load, render
from fusedmdn.cli import app

from . import stroke_files
from .synthetic import zigzags

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def call(*words, code=0):
    result = runner.invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small finished run."""
    folder = tmp_path_factory.mktemp("cli")
    zigzags().save(folder / "data.npz")
    out = call("train", folder / "data.npz", "--out", folder / "run", "--hidden", 16, "--mixtures", 3, "--epochs", 3,
               "--batch-size", 16, "--log-every", 1, "--device", "cpu")  # fmt: skip
    assert "validation" in out
    assert re.search(r"best on validation: -?[0-9.]+ nats per row", out)
    return folder / "run"


def test_help_names_every_command():
    out = call("--help")
    for command in ("info", "train", "tune", "sample", "draw", "eval", "convert", "doctor", "jobs"):
        assert command in out
        assert "Usage" in call(command, "--help")


def test_info():
    out = call("info")
    assert f"fusedmdn {__version__}, torch {torch.__version__}" in out
    assert f"instruction set {ops.cpu_isa()}" in out
    native = "philox_fill lstm lstm_backward mdn_nll mdn_nll_backward lstm_mdn_nll lstm_mdn_nll_backward generate"
    for operator in native.split():
        assert re.search(rf"{operator}\s.*cpu\s.*cpu\s.*native kernel", out)
    assert re.search(r"lstm\s.*cuda\s.*triton\s.*native kernel", out)
    assert re.search(r"generate\s.*cuda\s.*triton\s", out)


def test_train_leaves_a_run(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "nats_per_row" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert {"nats_per_sequence", "grad_norm", "lr", "points_per_second"} <= steps[0].keys()
    assert [line["step"] for line in lines if "validation" in line][-1] == len(steps)
    assert FusedLSTMMDN.from_pretrained(run).hidden_size == 16


def test_train_does_not_overwrite_and_resumes(run):
    data = run.parent / "data.npz"
    assert "already holds a training run" in call("train", data, "--out", run, code=2)
    refused = call("train", data, "--out", run, "--resume", "--epochs", 9, "--clip-norm", 3, code=2)
    assert "--clip-norm, --epochs cannot be given again" in refused
    assert "best on validation" in call("train", data, "--out", run, "--resume", "--device", "cpu")


@pytest.mark.parametrize("source", ["run", "kanji"])
def test_sample_every_format(run, tmp_path, source):
    source = run if source == "run" else source
    files = [tmp_path / f"x.{ending}" for ending in ("svg", "png", "gif", "npz")]
    outs = [word for file in files for word in ("--out", file)]
    out = call("sample", source, "-n", 4, "--seed", 3, "--max-steps", 150, *outs)
    assert "4 sequences" in out
    ET.parse(files[0])
    assert Image.open(files[1]).size[0] > 0
    assert Image.open(files[2]).n_frames > (30 if source == "kanji" else 0)
    strokes = load(files[3])
    assert len(strokes) == 4
    call("sample", source, "-n", 2, "--seed", 3, "--first-index", 2, "--max-steps", 150, "--out", tmp_path / "y.npz")
    rest = load(tmp_path / "y.npz")
    bf16 = tmp_path / "bf16.npz"
    told = call("sample", source, "-n", 4, "--seed", 3, "--max-steps", 150, "--precision", "bf16", "--out", bf16)
    assert re.search(r"4 sequences, [\d,]+ points \([\d,]+ points per second\)", told)
    assert not np.array_equal(load(bf16)[0].points[:5], strokes[0].points[:5])
    for a, b in zip((strokes[2], strokes[3]), rest, strict=True):
        assert np.allclose(a.points[:5], b.points[:5], atol=1e-3)


def test_train_options_arrive(tmp_path):
    zigzags().save(tmp_path / "data.npz")
    given = {
        "hidden": 9, "layers": 2, "mixtures": 2, "pen": "bernoulli", "dropout": 0.25, "optimizer": "graves",
        "lr": 0.003, "schedule": "constant", "warmup": 7, "epochs": 1, "batch-size": 40, "clip-norm": 2.0,
        "clip-gates": 9.0, "clip-output": 90.0, "augment": 0.01, "drop": 0.05, "normalize": "mean-std",
        "simplify": 0.75, "precision": "bf16", "patience": 3,
        "validate-every": 1, "checkpoint-every": 5, "log-every": 2, "seed": 11,
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    call("train", tmp_path / "data.npz", "--out", tmp_path / "run", "--skip", "--peephole", "--device", "cpu", *words)
    saved = json.loads((tmp_path / "run/last/config.json").read_text())["progress"]["options"]
    renamed = {"hidden": "hidden_size", "layers": "num_layers", "mixtures": "num_mixtures"}
    expected = {renamed.get(k, k.replace("-", "_")): v for k, v in given.items()} | {"skip": True, "peephole": True}
    assert saved == expected | {"resample": None}
    config = FusedLSTMMDN.from_pretrained(tmp_path / "run").config()
    shared = config.keys() & expected.keys()
    assert len(shared) == 9
    assert {k: config[k] for k in shared} == {k: expected[k] for k in shared}


def test_progress_shows_speed_loss_and_gradient(run, tmp_path):
    out = call("train", run.parent / "data.npz", "--out", tmp_path / "run", "--hidden", 8, "--epochs", 1)
    assert re.search(r"[\d,]+ points/s [+-][\d.]+ nats/point [+-]\d+ nats/seq \|g\| [\d.]+", out)


def test_sample_is_generate_and_its_options_arrive(run, tmp_path):
    data = run.parent / "data.npz"
    model, first = FusedLSTMMDN.from_pretrained(run), load(data)[0]
    rows = torch.from_numpy(first.rows("categorical", model.scale)[:-1])
    call("sample", run, "--prime", data, "-n", 5, "--max-steps", 20, "--seed", 4, "--bias", 0.5, "--temperature", 1.5,
         "--columns", 5, "--device", "cpu", "--out", tmp_path / "x.npz", "--out", tmp_path / "x.png")  # fmt: skip
    batch = model.generate(5, 20, seed=4, bias=0.5, temperature=1.5, prime=rows)
    assert batch.lengths.sum() > 0
    for got, drawn in zip(load(tmp_path / "x.npz"), batch, strict=True):
        assert np.array_equal(got.points, np.concatenate([first.points, drawn.points]))
    drawn = list(load(tmp_path / "x.npz"))
    assert Image.open(tmp_path / "x.png").size == render.image(drawn, 5).size != render.image(drawn).size


def test_eval(run):
    data = run.parent / "data.npz"
    results = {part: call("eval", run, data, "--part", part) for part in ("train", "validation", "test", "all")}
    counts = {part: int(re.search(r"sequences\s*[│|]\s*(\d+)", out).group(1)) for part, out in results.items()}
    assert counts["train"] + counts["validation"] + counts["test"] == counts["all"] == 120
    for name in ("nats per point", "nats per sequence", "SSE per point"):
        assert name in results["all"]


@pytest.mark.parametrize(("option", "value"), [("simplify", 4.0), ("resample", 3.0)])
def test_eval_of_a_run_on_prepared_strokes(run, tmp_path, option, value):
    """The figure of its best validation, found again by its checkpoints; other rows where another option is given."""
    data = run.parent / "data.npz"
    words = ["--hidden", 8, "--mixtures", 2, "--epochs", 1, "--device", "cpu", "--normalize", "mean-std"]
    call("train", data, "--out", tmp_path / "run", *words, f"--{option}", value)
    best = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    found = rf"rows\s*[│|]\s*{best['rows']}\b"
    for part in ("", "best", "last"):
        out = call("eval", tmp_path / "run" / part, data)
        assert re.search(found, out)
        assert f"{best['nats_per_row']:.4f}" in out
        assert f"{value:g}" in out
    assert not re.search(found, call("eval", tmp_path / "run", data, f"--{option}", 2 * value))
    assert not re.search(found, call("eval", run, data))
    call("sample", tmp_path / "run", "-n", 2, "--max-steps", 20, "--prime", data, "--out", tmp_path / "x.npz")
    begun = load(data)[0].points
    assert all(np.array_equal(s.points[: len(begun)], begun) for s in load(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--drop", 2], "drop"), (["--normalize", "x"], "normalize"), (["--simplify", 1, "--resample", 1], "resample")],
)
def test_options_of_training_are_refused_before_anything_is_read(tmp_path, words, named):
    assert named in call("train", tmp_path / "missing.npz", "--out", tmp_path / "run", *words, code=2)


def test_without_shapely_it_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    data = run.parent / "data.npz"
    for words in (["train", data, "--out", tmp_path / "new"], ["eval", run, data]):
        assert "pip install 'fusedmdn[strokes]'" in call(*words, "--simplify", 2, code=2)
    assert not list(tmp_path.iterdir())


def test_strokes_come_in_every_format(run, tmp_path):
    sets = {
        name: stroke_files.objects(stroke_files.drawings(n)) for n, name in ((9, "train"), (2, "valid"), (3, "test"))
    }
    np.savez(tmp_path / "drawings.npz", **sets)
    out = call("eval", run, tmp_path / "drawings.npz", "--part", "test")  # its own
    assert re.search(r"sequences\s*[│|]\s*3\b", out)
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "x.inkml").write_text(stroke_files.INKML)
    (tmp_path / "x.xml").write_text(stroke_files.IAM_LINE)
    call("train", tmp_path / "drawings.npz", "--out", tmp_path / "run", "--hidden", 8, "--epochs", 1)
    first = load(tmp_path / "ink")[0].points
    call("sample", run, "--prime", tmp_path / "ink", "--max-steps", 5, "--out", tmp_path / "x.npz")
    assert np.array_equal(load(tmp_path / "x.npz")[0].points[: len(first)], first)
    call("jobs", "create", tmp_path / "job", run, "-n", 1, "--prime", tmp_path / "x.xml", "--output", "npz")


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    out = call("sample", "kanji", "--out", tmp_path / "x.svg", "--out", tmp_path / "x.png", code=2)
    assert "pip install 'fusedmdn[render]'" in out
    assert not list(tmp_path.iterdir())
    call("sample", "kanji", "--out", tmp_path / "[x].svg")
    assert (tmp_path / "[x].svg").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "nowhere", "--out", "x.svg"], "nowhere: no config.json there"),
        (["sample", "kanji", "--out", "x.svg", "--precision", "fp8"], "one of float32, bf16; got 'fp8'"),
        (["sample", "kanji", "--out", "x.svg", "--plan", "wide"], "one of resident, rows, graph; got 'wide'"),
        (["sample", "kanji", "--out", "x.svg", "-n", "9000000000"], "n must be < 2^31, got 9000000000"),
        (["sample", "kanji", "--out", "x.bmp"], "the output ends in .svg, .png, .gif or .npz"),
        (["sample", "kanji", "--out", "no/such/x.svg"], "there is no directory no/such"),
        (["sample", "kanji", "--out", "x.svg", "--temperature", "0"], "temperature must be finite and > 0, got 0"),
        (["sample", "kanji", "--out", "x.svg", "--device", "warp9"], "device 'warp9' cannot be used"),
        (["sample", "kanji", "--out", "x.svg", "--prime", "no.npz"], "no.npz: cannot be read"),
        (["sample", "kanji", "--out", "."], "the output ends in"),
        (["train", "kanjivg", "--out", "run", "--seed", "-1"], "seed must be in [0, 2^63), got -1"),
        (["eval", "e[/x]", "kanjivg"], "e[/x]: no config.json there"),
        (["train", "no.npz", "--out", "run"], "no.npz: cannot be read"),
        (["train", "kanjivg", "--out", "run", "--pen", "quill"], "pen must be one of"),
        (["train", "kanjivg", "--out", "run", "--normalize", "x"], "normalize must be one of std, mean-std; got 'x'"),
        (["train", "kanjivg", "--out", "run", "--simplify", "-1"], "simplify must be >= 0 and finite, got -1"),
        (["eval", "kanji", "kanjivg", "--resample", "0"], "resample must be > 0 and finite, got 0"),
        (["eval", "kanji", "kanjivg", "--resample", "1e-30"], "would make more than 16,777,216 points"),
        (["train", "kanjivg", "--out", "run", "--resume"], "config.json: cannot be read"),
        (["eval", "kanji", "no.npz"], "no.npz: cannot be read"),
        (["eval", "kanji", "kanjivg", "--part", "dev"], "part must be one of"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    out = call(*words, code=2)
    assert message in out
    assert "Traceback" not in out
    assert not list(tmp_path.iterdir())
