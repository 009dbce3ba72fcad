"""Training on many processes: the gradients, batches and decisions of one, whatever a process of its own meets."""

import contextlib
import json
import math
import os
import signal
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fusedmdn import distributed
from fusedmdn.batches import Batches
from fusedmdn.cli import app
from fusedmdn.distributed import ALONE, World
from fusedmdn.evaluate import evaluate
from fusedmdn.train import SKIPS_ALLOWED, Trainer, TrainingDiverged, dropout_seed

from .synthetic import zigzags
from .test_train import curve, options, train_command
from .together import together


def weights_of(run):
    return [json.loads((run / part / "config.json").read_text())["weights"]["sha256"] for part in ("last", "best")]


def test_every_sequence_is_one_process_s():
    batch = list(range(10))
    for size in (1, 2, 3, 16):
        shares = [World(rank, size).share(batch) for rank in range(size)]
        assert sorted(i for share in shares for i in share) == batch
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [World(rank, 2).leads for rank in range(2)] == [True, False]


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_an_empty_share_is_a_sequence_of_no_rows(pen):
    data = zigzags()
    for drop in (0.0, 0.5):
        batches = Batches(data, pen, data.scale(), 16, seed=0, drop=drop)
        rows, lengths = batches.collate([], 0)
        assert rows.shape == (1, 1, {"bernoulli": 3, "categorical": 5}[pen])
        assert lengths.tolist() == [0]
        for batch in ([], [5], [7, 3, 11]):
            for epoch in (0, 1):
                assert batches.count_rows(batch, epoch) == int(batches.collate(batch, epoch).lengths.sum())


CLIPS = {
    "norm": {"clip_norm": 1e-2},
    "free": {"clip_norm": 1e9},
    "inside": {"clip_gates": 0.05, "clip_output": 0.3},
    "bf16": {"precision": "bf16"},
    "dropped": {"drop": 0.4, "normalize": "mean-std"},  # of a batch, processes have what is left of their own
}


def gradients(world, folder):
    """Of a whole batch, of one with fewer sequences than processes, and of a single sequence."""
    for name, change in CLIPS.items():
        trainer = Trainer(
            options(dropout=0.0, lr=1e-30, **change), zigzags(), folder / f"{name}-{world.size}", "cpu", world
        )
        for k, batch in enumerate((trainer.batches.order(0)[0], [3, 9], [11])):
            report, _ = trainer._train_step(0, batch)
            found = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
            found["nats"] = torch.tensor([report.nats_per_row, report.nats_per_sequence, report.rows])
            save_file(found, folder / f"{name}-{k}-{world.rank}-{world.size}.safetensors")


def test_gradients_are_those_of_one_process(tmp_path):
    """By both ways of clipping, and where some have no sequence: equal everywhere, and to rounding to one's."""
    gradients(ALONE, tmp_path)
    together(3, gradients, tmp_path)
    for name in CLIPS:
        for k in range(3):
            wanted = load_file(tmp_path / f"{name}-{k}-0-1.safetensors")
            ranks = [load_file(tmp_path / f"{name}-{k}-{rank}-3.safetensors") for rank in range(3)]
            for parameter, value in wanted.items():
                assert value.any()
                assert torch.equal(ranks[0][parameter], ranks[1][parameter])
                assert torch.equal(ranks[0][parameter], ranks[2][parameter])
                close = {"rtol": 2e-2, "atol": 2e-3 * value.abs().max().item()} if name == "bf16" else {}
                torch.testing.assert_close(ranks[0][parameter], value, **close)


def judged(world, folder):
    data = zigzags(400)
    model = options().build(data)
    result = evaluate(model, data, 16, world)
    (folder / f"{world.rank}-{world.size}.json").write_text(json.dumps(vars(result)))


def test_validation_is_shared_and_the_same_everywhere(tmp_path):
    judged(ALONE, tmp_path)
    together(2, judged, tmp_path)
    wanted, *found = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0-1", "0-2", "1-2"))
    assert found[0] == found[1]
    assert found[0] == pytest.approx(wanted, rel=1e-12)


class Cut(Exception):
    pass


def begun_or_resumed(world, run, changes):
    begun = (run / "last").exists()
    world.wait()
    if begun:
        return Trainer.resume(zigzags(), run, "cpu", world)
    return Trainer(options(**changes), zigzags(), run, "cpu", world)


def cut_off(world, folder, name, changes, stop):
    """Begin a run or go on with it; after the step `stop` it ends, unsaved (0: it is let run to its end)."""

    def cut(report):
        if report.step == stop:
            raise Cut

    torch.manual_seed(999 + world.rank)  # what a new process would have
    trainer = begun_or_resumed(world, folder / name, changes)
    with contextlib.suppress(Cut):
        trainer.run(cut)
    assert trainer.step == (stop or trainer.steps)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "graves", "clip_gates": 10.0, "clip_output": 100.0}])
def test_resuming_three_processes_is_bitwise_the_same(tmp_path, changes):
    """With dropout, and summed in the same order from the first step on, though the wrapper changes its mind then."""
    together(3, cut_off, tmp_path, "straight", changes, 0)
    for stop in (8, 11, 0):
        together(3, cut_off, tmp_path, "broken", changes, stop)
    assert weights_of(tmp_path / "straight") == weights_of(tmp_path / "broken")
    assert curve(tmp_path / "straight") == curve(tmp_path / "broken")


def signalled(world, folder, name, changes, stop):
    """As `cut_off`, but the last process is sent SIGTERM after that step; keeps the sequences that it trained on."""
    collate, seen = Batches.collate, []

    def noting(self, batch, epoch):
        seen.extend((epoch, i) for i in batch if self.seed == 0)
        return collate(self, batch, epoch)

    def sent(report):
        if report.step == stop and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Batches, "collate", noting):
        trainer = begun_or_resumed(world, folder / name, changes)
        if stop:
            with pytest.raises(SystemExit, match="143"):
                trainer.run(sent)
            assert trainer.step == stop + 1
            assert json.loads((folder / name / "last" / "config.json").read_text())["progress"]["step"] == stop + 1
        else:
            trainer.run()
    (folder / f"{stop}-{world.rank}.json").write_text(json.dumps(seen))


def test_a_signal_to_one_stops_all_and_another_number_of_processes_goes_on(tmp_path):
    """One process, then three, then two: no sequence is trained on twice in an epoch, none is left out."""
    changes = {"dropout": 0.0, "batch_size": 15}  # a last batch of two sequences, fewer than there are processes
    straight = Trainer(options(**changes), zigzags(), tmp_path / "straight")
    straight.run()
    assert len(straight.train_part) % 15 == 2
    signalled(ALONE, tmp_path, "moved", changes, 5)
    together(3, signalled, tmp_path, "moved", changes, 18)
    together(2, signalled, tmp_path, "moved", changes, 0)
    seen = [tuple(pair) for path in tmp_path.glob("*-*.json") for pair in json.loads(path.read_text())]
    assert sorted(seen) == [(epoch, i) for epoch in range(4) for i in range(len(straight.train_part))]
    wanted, found = curve(tmp_path / "straight"), curve(tmp_path / "moved")
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for a, b in zip(wanted, found, strict=True):
        assert b.pop("validation", {}) == pytest.approx(a.pop("validation", {}), rel=1e-4)
        assert b == pytest.approx(a, rel=1e-4)


def decisions(world, folder):
    """What one process meets, all decide by."""
    loss = Trainer.loss

    def failing(steps):
        factor = {True: math.nan, False: 1.0}
        fails = lambda self: world.rank == 1 and self.step in steps  # noqa: E731
        return mock.patch.object(Trainer, "loss", lambda self, *batch: loss(self, *batch) * factor[fails(self)])

    reports = []
    trainer = Trainer(options(), zigzags(), folder / "sometimes", "cpu", world)
    with failing({4, 5, 9}):
        trainer.run(reports.append)
    assert [r.step for r in reports if r.skipped] == [5, 6, 10]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).double()
    assert weights.isfinite().all()
    assert len(world.gather(weights).unique(dim=0)) == 1

    trainer = Trainer(options(), zigzags(), folder / "always", "cpu", world)
    with failing(range(6, 100)), pytest.raises(TrainingDiverged, match=f"{SKIPS_ALLOWED} steps in a row"):
        trainer.run()
    assert trainer.step == 6 + SKIPS_ALLOWED

    trainer = Trainer(options(patience=1, lr=0.5, warmup=0, epochs=50), zigzags(), folder / "early", "cpu", world)
    trainer.run()
    assert world.gather(torch.tensor([trainer.step])).unique().item() < trainer.steps

    with pytest.raises(FileExistsError, match="already holds"):
        Trainer(options(), zigzags(), folder / "early", "cpu", world)
    with pytest.raises(ValueError, match="options and data must be the same for all 2 processes, but differ"):
        Trainer(options(seed=world.rank), zigzags(), folder / "torn", "cpu", world)
    assert not (folder / "torn").exists()
    with pytest.raises(ValueError, match="must be the same for all 2 processes"):
        Trainer.resume(zigzags(), folder / ("early", "sometimes")[world.rank], "cpu", world)


def test_what_one_process_meets_all_decide_by(tmp_path):
    together(2, decisions, tmp_path)
    lines = [line for line in curve(tmp_path / "sometimes") if "nats_per_row" in line]
    assert [line["step"] for line in lines] == list(range(1, 29))  # one process writes


def test_streams_of_dropout_differ():
    seeds = {dropout_seed(s, k, r) for s in (0, 1, 1 << 62) for k in range(100) for r in range(8)}
    assert len(seeds) == 3 * 100 * 8
    assert all(0 <= seed < 1 << 64 for seed in seeds)


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [distributed.own_device(name) for name in ("auto", "cpu", "cuda:1")] == ["auto", "cpu", "cuda:1"]
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert [distributed.own_device(name) for name in ("auto", "cpu", "cuda")] == ["cuda:1", "cpu", "cuda:1"]
    with pytest.raises(ValueError, match="device 'cuda:0' cannot be every process's own: give 'cuda'"):
        distributed.own_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.own_device("auto") == "cpu"


def test_a_restarted_process_goes_on_with_its_own_run_alone(tmp_path, monkeypatch):
    """torchrun calls it with the words that began the run; a run of other options, in the way, is not touched."""
    zigzags().save(tmp_path / "data.npz")
    words = [*train_command(tmp_path / "data.npz", tmp_path / "run", "--log-every", "1")[3:], "--epochs"]

    def call(epochs):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*words, epochs])

    assert call("2").exit_code == 0
    before = curve(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    later = metrics.read_bytes() + b'{"step": 1000000}\n'  # after its last checkpoint: a resume would drop it
    metrics.write_bytes(later)
    for restarts, message in (("0", "already holds a training run"), ("1", "holds a training run of other options")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        result = call("3")
        assert result.exit_code == 2
        assert message in result.stderr
        assert metrics.read_bytes() == later
    assert call("2").exit_code == 0
    assert curve(tmp_path / "run") == before
