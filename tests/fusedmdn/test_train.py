"""Training: it learns, resumes bit for bit, survives bad steps and signals."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fusedmdn import FusedLSTMMDN, Strokes, preparing, sealed, train
from fusedmdn.checkpoint import FORMAT, CheckpointError
from fusedmdn.dataset import StrokeSet
from fusedmdn.evaluate import evaluate
from fusedmdn.train import SKIPS_ALLOWED, Trainer, TrainingDiverged, TrainOptions

from .synthetic import zigzags


def options(**changes):
    small = {"hidden_size": 12, "num_layers": 2, "num_mixtures": 3, "skip": True, "peephole": True, "dropout": 0.2}
    rest = {"epochs": 4, "batch_size": 16, "checkpoint_every": 3, "log_every": 1, "augment": 0.05, "warmup": 5}
    return TrainOptions(**{**small, **rest, **changes})


def state_of(trainer):
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    state = trainer.optimizer.state_dict()["state"]
    moments = [state[i][name].clone() for i in sorted(state) for name in sorted(state[i])]
    return weights, moments


def curve(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "points_per_second"} for line in lines]


class Killed(BaseException):
    pass


def run_until(trainer, step):
    def stop(report):
        if report.step == step:
            raise Killed

    with pytest.raises(Killed):
        trainer.run(stop)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "graves", "pen": "bernoulli", "clip_gates": 10.0, "clip_output": 100.0},
        {"precision": "bf16", "schedule": "constant"},
        {"drop": 0.3, "normalize": "mean-std", "simplify": 4.0},
    ],
)
@pytest.mark.parametrize("stops", [[8], [2, 11, 25]])
def test_resuming_is_bitwise_the_same(tmp_path, changes, stops):
    """Killed between checkpoints, any number of times: weights, moments, best model and curve are those of one run."""
    data = zigzags()
    straight = Trainer(options(**changes), data, tmp_path / "straight")
    straight.run()
    broken = Trainer(options(**changes), data, tmp_path / "broken")
    for stop in stops:
        run_until(broken, stop)
        torch.manual_seed(999)  # what the new process would have
        broken = Trainer.resume(data, tmp_path / "broken")
        assert broken.step <= stop
    broken.run()
    for a, b in zip(state_of(straight), state_of(broken), strict=True):
        for x, y in zip(
            a.values() if isinstance(a, dict) else a, b.values() if isinstance(b, dict) else b, strict=True
        ):
            assert torch.equal(x, y)
    assert curve(tmp_path / "straight") == curve(tmp_path / "broken")
    for part in ("best", "last"):
        digests = [
            json.loads((tmp_path / r / part / "config.json").read_text())["weights"] for r in ("straight", "broken")
        ]
        assert digests[0] == digests[1]


def test_it_learns_and_keeps_the_best(tmp_path):
    data = zigzags()
    trainer = Trainer(options(epochs=30, dropout=0.0), data, tmp_path / "run")
    before = evaluate(trainer.model, data.part("validation"))
    reports, validations = [], []
    trainer.run(reports.append, lambda step, result, better: validations.append((result.nats_per_row, better)))
    after = evaluate(FusedLSTMMDN.from_pretrained(tmp_path / "run"), data.part("validation"))
    assert after.nats_per_row < before.nats_per_row - 1.5
    assert after.sse < before.sse / 2
    assert after.nats_per_row == min(nats for nats, _ in validations) == trainer.best
    assert [better for _, better in validations].count(True) >= 5
    assert [r.step for r in reports] == list(range(1, trainer.steps + 1))
    assert reports[-1].rows == sum(len(data.part("train")[i]) + 1 for i in trainer._order[-1])
    for report, batch in zip(reports, trainer.batches.order(0), strict=False):
        assert report.nats_per_row * report.rows == pytest.approx(report.nats_per_sequence * len(batch))


def test_early_stop(tmp_path, monkeypatch):
    trainer = Trainer(options(epochs=50, patience=3, lr=1e-9), zigzags(), tmp_path / "run")
    results = iter([1.0, 0.5, 0.6, 0.7, 0.8, 0.1])
    real = evaluate(trainer.model, trainer.validation_part)

    def scripted(*args):
        return type(real)(**{**vars(real), "nats_per_row": next(results)})

    monkeypatch.setattr("fusedmdn.train.evaluate", scripted)
    trainer.run()
    assert trainer.step == 5 * len(trainer.batches)
    assert trainer.best == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_steps_are_skipped(tmp_path, monkeypatch, bad):
    trainer = Trainer(options(), zigzags(), tmp_path / "run")
    loss, before = Trainer.loss, {}

    def sometimes(self, *args):
        if self.step in (4, 5, 9):
            before[self.step] = state_of(self)
            return loss(self, *args) * bad
        if self.step - 1 in before:
            weights, moments = before[self.step - 1]
            assert all(torch.equal(v, weights[k]) for k, v in self.model.state_dict().items())
            assert all(torch.equal(a, b) for a, b in zip(state_of(self)[1], moments, strict=True))
        return loss(self, *args)

    monkeypatch.setattr(Trainer, "loss", sometimes)
    reports = []
    trainer.run(reports.append)
    assert [r.step for r in reports if r.skipped] == [5, 6, 10]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # JSON has no NaN
    assert [line["step"] for line in logged if line.get("nats_per_row", 0) is None] == [5, 6, 10]
    assert trainer.step == trainer.steps
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_ten_bad_steps_in_a_row_stop_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    trainer = Trainer(options(checkpoint_every=1), zigzags(), tmp_path / "run")
    loss = Trainer.loss
    monkeypatch.setattr(Trainer, "loss", lambda self, *a: loss(self, *a) * (math.nan if self.step >= 6 else 1))
    with pytest.raises(TrainingDiverged, match=f"{SKIPS_ALLOWED} steps in a row, up to step 16.*last good checkpoint"):
        trainer.run()
    monkeypatch.undo()
    again = Trainer.resume(zigzags(), tmp_path / "run")
    assert again.step == 6
    again.run()
    assert again.step == again.steps


def test_a_run_is_not_overwritten_and_not_resumed_on_other_data(tmp_path):
    Trainer(options(), zigzags(), tmp_path / "run")
    with pytest.raises(FileExistsError, match="already holds a training run"):
        Trainer(options(), zigzags(), tmp_path / "run")
    data = zigzags()
    moved = StrokeSet(data.points * np.float32([2, 1, 1]), data.offsets, data.labels, data.quantum)
    for other in (zigzags(100), moved):
        with pytest.raises(ValueError, match="was trained on other data"):
            Trainer.resume(other, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"nowhere/last/config\.json"):
        Trainer.resume(zigzags(), tmp_path / "nowhere")


def test_a_set_without_validation_part_is_refused(tmp_path):
    lonely = zigzags().part("train")
    with pytest.raises(ValueError, match=rf"the validation part of the data is empty \({len(lonely)} sequences in all"):
        Trainer(options(), lonely, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pen": "quill"}, "pen must be one of bernoulli, categorical; got 'quill'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, graves; got 'sgd'"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"epochs": 1.5}, "epochs: expected int, got 1.5"),
        ({"epochs": 1 << 64}, "epochs: expected at most 64 bits, got 18446744073709551616"),
        ({"lr": 0.0}, "lr must be > 0 and finite, got 0.0"),
        ({"augment": -0.1}, "augment must be >= 0 and finite, got -0.1"),
        ({"augment": math.inf}, "augment must be >= 0 and finite, got inf"),
        ({"normalize": "minmax"}, "normalize must be one of std, mean-std; got 'minmax'"),
        ({"simplify": -1.0}, "simplify must be >= 0 and finite, got -1.0"),
        ({"resample": 0.0}, "resample must be > 0 and finite, got 0.0"),
        ({"simplify": 1.0, "resample": 1.0}, "simplify 1.0 and resample 1.0 cannot both be given"),
        ({"drop": 1.5}, r"drop must be in \[0, 1\], got 1.5"),
        ({"seed": -1}, r"seed must be in \[0, 2\^63\), got -1"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        options(**change)


def test_clipping_by_norm_and_inside(tmp_path):
    """By norm the update is bounded; inside backpropagation it is every step's gradient, and the norm is left free."""
    assert options().norm_bound == 1.0
    assert options(clip_gates=10.0).norm_bound == math.inf
    assert options(clip_output=100.0, clip_norm=5.0).norm_bound == 5.0
    for name, change in (("norm", {"clip_norm": 1e-3}), ("inside", {"clip_output": 1e-5})):
        trainer = Trainer(options(**change), zigzags(), tmp_path / name)
        trainer._train_step(0, trainer.batches.order(0)[0])
        gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        if name == "norm":
            assert gradients.norm().item() == pytest.approx(1e-3, rel=1e-3)
        else:
            assert 0 < trainer.model.head.bias.grad.abs().max() <= 1e-5 * 16 * 16


def test_bounds_inside_are_on_one_sequence_s_derivatives(tmp_path):
    """A batch clips as its sequences would one by one: the average of their clipped gradients."""
    bounds = {"clip_output": 0.3, "clip_gates": 0.05, "dropout": 0.0}
    trainer = Trainer(options(**bounds, batch_size=8, optimizer="graves"), zigzags(), tmp_path / "run")
    batch = trainer.batches.order(0)[0]
    rows, lengths = trainer.batches.collate(batch, 0)
    expected = [torch.zeros_like(p) for p in trainer.model.parameters()]
    free = [torch.zeros_like(p) for p in trainer.model.parameters()]
    plain = options(**{**bounds, "clip_output": None, "clip_gates": None}).build(trainer.train_part)
    plain.load_state_dict(trainer.model.state_dict())
    for b in range(len(batch)):
        for model, sums in ((trainer.model, expected), (plain, free)):
            loss = model.nll(rows[: int(lengths[b]), b : b + 1], reduction="sum")
            for s, g in zip(sums, torch.autograd.grad(loss, model.parameters()), strict=True):
                s += g / len(batch)
    trainer._train_step(0, batch)
    for p, want, unclipped in zip(trainer.model.parameters(), expected, free, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(want, unclipped, rtol=1e-3)


def test_the_curve_is_on_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    """A machine that loses its power after a save has lost no line of what was saved."""
    trainer, synced, fsync = Trainer(options(epochs=1), zigzags(), tmp_path / "run"), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file)) or fsync(file))
    seen, save_model = [], train.save_model

    def seeing(model, directory, *state, **prepared):
        seen.append((directory.name, synced[-1:]))
        save_model(model, directory, *state, **prepared)

    monkeypatch.setattr(train, "save_model", seeing)
    trainer.run()
    path = tmp_path / "run" / "metrics.jsonl"
    sizes = [stat.st_size for name, (stat,) in seen if name == "last" if stat.st_ino == path.stat().st_ino]
    assert len(sizes) == 3  # after steps 3, 6 and 7, the validation
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == path.stat().st_size


def test_every_step_drops_out_anew(tmp_path):
    """And again in the same way when the same step is taken again, whatever the generator has done meanwhile."""
    trainer = Trainer(options(dropout=0.6, lr=1e-30), zigzags(), tmp_path / "run")
    batch, losses = trainer.batches.order(0)[0], []
    for step in (0, 1, 2, 0):
        trainer.step = step
        losses.append(trainer._train_step(0, batch)[0].nats_per_row)
    assert len(set(losses[:3])) == 3
    assert losses[3] == losses[0]


def test_options_do_what_they_say(tmp_path, monkeypatch):
    """Each option changes the first steps; the rate rises, then falls as a cosine or stays."""
    data, results = zigzags(), {}
    changes = {
        "plain": {}, "augment": {"augment": 0.3}, "graves": {"optimizer": "graves"}, "bf16": {"precision": "bf16"},
        "drop": {"drop": 0.3}, "normalize": {"normalize": "mean-std"}, "simplify": {"simplify": 4.0},
        "resample": {"resample": 3.0},
        "lr": {"lr": 1e-2}, "clip": {"clip_norm": 1e-3}, "seed": {"seed": 1}, "dropout": {"dropout": 0.6},
        "warmup": {"warmup": 50}, "schedule": {"schedule": "constant"},
        "clip_gates": {"clip_gates": 1e-3, "clip_norm": 1.0}, "clip_output": {"clip_output": 1e-3, "clip_norm": 1.0},
    }  # fmt: skip
    for name, change in changes.items():
        trainer = Trainer(options(**change), data, tmp_path / name)
        run_until(trainer, 3)
        results[name] = tuple(trainer.model.head.bias.tolist())
    assert len(set(results.values())) == len(changes)
    trainer = Trainer(options(warmup=5, lr=1.0), data, tmp_path / "rates")
    rates = []
    n = trainer.steps
    for step in range(n):
        trainer.step = step
        rates.append(trainer._learning_rate())
    assert rates[:5] == [pytest.approx((k + 1) / 5 * (1 + math.cos(math.pi * k / n)) / 2) for k in range(5)]
    assert rates[n // 2] == pytest.approx(0.5)
    assert rates[-1] < 0.02


def test_a_run_is_prepared_by_its_own_options(tmp_path):
    """Simplified once, scaled as what that leaves, and again so when it is resumed: with the data as it was given."""
    data = zigzags()
    trainer = Trainer(
        options(simplify=4.0, drop=0.2, dropout=0.0, normalize="mean-std", epochs=1), data, tmp_path / "run"
    )
    for name, part in (("train", trainer.train_part), ("validation", trainer.validation_part)):
        assert part.digest() == preparing.simplify(data.part(name), 4.0).digest() != data.part(name).digest()
    scale = trainer.train_part.scale("mean-std")
    assert trainer.model.scale == trainer.batches.scale == trainer.validation_batches.scale == scale
    assert (trainer.batches.drop, trainer.validation_batches.drop, trainer.validation_batches.augment) == (0.2, 0, 0)
    rows, lengths = trainer.batches.collate([0, 1], 0)
    loss = trainer.loss(rows, lengths)  # the row before the first is zero, whatever the scale
    assert loss.item() == pytest.approx(trainer.model.nll(rows, lengths, reduction="sum").item(), rel=1e-6)
    reports = []
    trainer.run(reports.append)
    counts = [int(trainer.batches.collate(batch, 0).lengths.sum()) for batch in trainer.batches.order(0)]
    assert [r.rows for r in reports] == counts
    assert Trainer.resume(data, tmp_path / "run").train_part.digest() == trainer.train_part.digest()
    assert FusedLSTMMDN.from_pretrained(tmp_path / "run").scale == scale
    prepared = preparing.simplify(data.part("validation"), 4.0)
    assert evaluate(FusedLSTMMDN.from_pretrained(tmp_path / "run"), prepared).nats_per_row == trainer.best
    with pytest.raises(ValueError, match="was trained on other data"):
        Trainer.resume(preparing.simplify(data, 5.0), tmp_path / "run")


def test_a_run_from_before_there_were_options_goes_on(tmp_path):
    """What a saved run does not say is as it was then."""
    data = zigzags()
    straight = Trainer(options(), data, tmp_path / "straight")
    straight.run()
    run_until(Trainer(options(), data, tmp_path / "old"), 8)
    path = tmp_path / "old" / "last" / "config.json"
    config = sealed.read(path, FORMAT)
    for name in ("normalize", "simplify", "resample", "drop"):
        del config["progress"]["options"][name]
    sealed.write(path, config)
    then = {"normalize": "std", "simplify": None, "resample": None, "drop": 0.0}
    resumed = Trainer.resume(data, tmp_path / "old", options=options(**then))
    assert resumed.model.scale.shift == (0.0, 0.0)
    resumed.run()
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_empty_sequences_are_left_out_of_training(tmp_path):
    sequences = [s if i % 2 else Strokes(np.zeros((0, 3)), s.label) for i, s in enumerate(zigzags())]
    data = StrokeSet.of(sequences, 0.5)
    trainer = Trainer(options(pen="bernoulli", epochs=1), data, tmp_path / "run")
    trainer.run()
    assert len(trainer.train_part) < len(data.part("train"))
    with pytest.raises(ValueError, match="the 1 sequences have no points"):
        evaluate(trainer.model, StrokeSet.of([sequences[0]]))


def test_weights_that_fail_are_not_the_last_good_checkpoint(tmp_path):
    """A step that blows the weights up is finite by the loss before it; what it leaves is not saved."""
    data = zigzags()
    trainer = Trainer(options(checkpoint_every=1, dropout=0.0), data, tmp_path / "run")
    run_until(trainer, 3)
    object.__setattr__(trainer.options, "lr", 1e30)
    with pytest.raises(TrainingDiverged):
        trainer.run()
    again = Trainer.resume(data, tmp_path / "run")
    assert again.step == 2  # killed before step 3 was saved
    assert evaluate(again.model, data.part("validation")).nats_per_row < 100
    hopeless = Trainer(options(epochs=1, lr=1e30, warmup=0), data, tmp_path / "hopeless")
    with pytest.raises(TrainingDiverged, match="no validation gave a finite loss"):
        hopeless.run()


def test_a_lost_best_is_found_again(tmp_path):
    trainer = Trainer(options(epochs=2), zigzags(), tmp_path / "run")
    run_until(trainer, len(trainer.batches) + 1)
    shutil.rmtree(tmp_path / "run" / "best")
    Trainer.resume(zigzags(), tmp_path / "run").run()
    assert FusedLSTMMDN.from_pretrained(tmp_path / "run" / "best")
    shutil.rmtree(tmp_path / "run" / "last")
    with pytest.raises(FileExistsError, match="already holds a training run"):
        Trainer(options(), zigzags(), tmp_path / "run")


def test_a_finished_run_whose_best_is_damaged_says_so(tmp_path):
    Trainer(options(epochs=1), zigzags(), tmp_path / "run").run()
    (weights,) = (tmp_path / "run" / "best").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(CheckpointError, match=r"best: is damaged, and the run is at its end; .*last is intact"):
        Trainer.resume(zigzags(), tmp_path / "run")


def test_tensorboard_gets_the_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_until(Trainer(options(epochs=2, checkpoint_every=3), zigzags(), tmp_path / "run"), 8)
    Trainer.resume(zigzags(), tmp_path / "run").run()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    steps = [line for line in curve(tmp_path / "run") if "nats_per_row" in line]
    logged = events.Scalars("train/nats_per_row")
    assert [(e.step, pytest.approx(e.value)) for e in logged] == [(s["step"], s["nats_per_row"]) for s in steps]
    assert [e.step for e in events.Scalars("validation/sse")] == [7, 14]


def train_command(data, run, *more):
    return [sys.executable, "-m", "fusedmdn", "train", str(data), "--out", str(run), "--threads", "1",
            "--hidden", "12", "--mixtures", "3", "--batch-size", "16", "--checkpoint-every", "2", *more]  # fmt: skip


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "training ended early"
        assert time.monotonic() < until
        time.sleep(0.01)


def steps_logged(run):
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_so(tmp_path, number):
    zigzags().save(tmp_path / "data.npz")
    run = tmp_path / "run"
    command = train_command(tmp_path / "data.npz", run, "--epochs", "100000", "--log-every", "1")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: steps_logged(run) > 3, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    saved = json.loads((run / "last" / "config.json").read_text())["progress"]["step"]
    assert f"stopped at step {saved} of" in out
    assert "--resume" in out
    assert saved == max(line["step"] for line in curve(run))
