"""Training that is killed: what is on the disk is right at any moment, and the run ends as if nothing had happened."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import psutil
import pytest

from fusedmdn import curve as curves
from fusedmdn import files, train
from fusedmdn.checkpoint import load_model, load_training
from fusedmdn.distributed import ALONE
from fusedmdn.train import Trainer, TrainOptions, holds_run

from ..conftest import ROOT
from ..killer import Killer
from .synthetic import zigzags
from .test_train import curve, train_command
from .together import apart, together

INTERVAL = 2  # steps between checkpoints: train_command's
WORDS = ["--layers", "2", "--dropout", "0.2", "--epochs", "20", "--validate-every", "3", "--log-every", "1"]
OPTIONS = TrainOptions(
    hidden_size=12, num_mixtures=3, batch_size=16, num_layers=2, dropout=0.2, epochs=20, validate_every=3, log_every=1,
    checkpoint_every=1,
)  # fmt: skip


def digest(tensors):
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return content.hexdigest()


def undisturbed(world, folder, options=OPTIONS, n=120):
    """Train in folder/straight; what every checkpoint must hold, by step, goes to folder/table.json."""
    table, best, save_model = {}, None, train.save_model

    def noting(model, directory, tensors=None, progress=None, **prepared):
        nonlocal best
        if directory.name == "best":
            best = digest(model.state_dict())
        else:
            standing = [progress["best"], progress["since_best"]]
            table[progress["step"]] = [digest(model.state_dict()), digest(tensors), standing, best]
        save_model(model, directory, tensors, progress, **prepared)

    with mock.patch.object(train, "save_model", noting):
        Trainer(options, zigzags(n), folder / "straight", "cpu", world).run()
    if world.leads:
        (folder / "table.json").write_text(json.dumps(table))


class Witness:
    """Knows what an undisturbed run had at every step."""

    def __init__(self, folder):
        self.straight = folder / "straight"
        self.table = {int(step): row for step, row in json.loads((folder / "table.json").read_text()).items()}
        self.checkpoints = self.lost = 0

    def check(self, run):
        """Every checkpoint of a killed run loads and is right, and no more than one interval of steps is lost."""
        logged = logged_steps(run)
        if not holds_run(run):
            assert not logged
            return
        model, tensors, progress = load_training(run / "last")
        step = progress["step"]
        weights, moments, standing, _ = self.table[step]
        assert digest(model.state_dict()) == weights
        assert digest(tensors) == moments
        assert [progress["best"], progress["since_best"]] == standing
        self.checkpoints += 1
        best = {self.table[s][3] for s in range(step, step + INTERVAL + 1) if s in self.table}  # may be a save ahead
        if (run / "best" / "config.json").exists():
            assert digest(load_model(run / "best").state_dict()) in best
            self.checkpoints += 1
        else:
            assert None in best
        lost = max(logged, default=0) - step
        assert 0 <= lost <= INTERVAL
        self.lost = max(self.lost, lost)

    def check_end(self, run, saved=True):
        """Nothing tells the run from the undisturbed one; once a save has followed the last kill, no file either."""
        for part in ("last", "best"):
            wanted, found = (json.loads((r / part / "config.json").read_text()) for r in (self.straight, run))
            assert found["weights"] == wanted["weights"]
            assert found.get("training") == wanted.get("training")
            assert not saved or len(list((run / part).iterdir())) == {"last": 3, "best": 2}[part]
        assert curve(run) == curve(self.straight)
        assert not leftovers(run)


def logged_steps(run):
    """Steps of the whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def leftovers(run):
    return list(run.rglob(".*.tmp"))


class Training:
    """`fusedmdn train`, one process or torchrun with several: the real thing."""

    def __init__(self, processes, data, run, *more):
        resume = (run / "last" / "config.json").exists()
        words = train_command(data, run, "--device", "cpu", *WORDS)
        if resume:
            words = [*words[:9], "--device", "cpu", "--resume"]
        if processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *more]
            words[1:1] = torchrun
        self.processes, self.run = processes, run
        self.before = self.state()
        self.main = psutil.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def state(self):
        paths = [self.run / "metrics.jsonl", *(self.run / part / "config.json" for part in ("last", "best"))]
        return [(p.stat().st_mtime_ns, p.stat().st_ino) if p.exists() else None for p in paths]

    @property
    def began(self):
        """Whether it has written anything."""
        return self.state() != self.before

    @property
    def saved(self):
        """Whether it has written RUN/last."""
        return self.state()[1] != self.before[1]

    def trainers(self):
        """The processes that train, in the order of ranks."""
        if self.processes == 1:
            return [self.main]
        ranks = {}
        with contextlib.suppress(psutil.NoSuchProcess):  # torchrun has ended
            for child in self.main.children():
                with contextlib.suppress(KeyError, psutil.Error):  # not, or no longer, one that trains
                    ranks[int(child.environ()["RANK"])] = child
        return [ranks[rank] for rank in sorted(ranks)]

    def wait_for(self, condition, seconds=60):
        """Until it holds; whether it did before all ended."""
        until = time.monotonic() + seconds
        while self.main.poll() is None:
            if condition():
                return True
            assert time.monotonic() < until
            time.sleep(0.005)
        return condition()

    def some(self, random):
        """One of its processes that train, or everything."""
        if self.main.poll() is not None:
            return []
        trainers = self.trainers()
        choice = int(random.integers(len(trainers) + 1))
        return [self.main, *trainers] if choice == len(trainers) else [trainers[choice]]

    def end(self, kill=()):
        """Kill these, see all end; gives the exit status and what was said."""
        everyone = [self.main, *self.trainers()]
        try:
            for process in kill:
                process.kill()
            said, _ = self.main.communicate(timeout=90)
        finally:
            for process in everyone:
                if process.is_running():
                    process.kill()
            psutil.wait_procs(everyone, timeout=30)
        return self.main.returncode, said


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """Of a run of so many processes that nothing disturbed, and of its data."""
    path = tmp_path_factory.mktemp("undisturbed")
    zigzags().save(path / "data.npz")
    if request.param == 1:
        assert apart(undisturbed, (ALONE, path)) == [0]
    else:
        together(request.param, undisturbed, path)
    return path


@pytest.mark.parametrize(
    ("folder", "processes", "kills"),
    [
        (1, 1, 3),
        (2, 2, 1),
        pytest.param(1, 1, 200, marks=pytest.mark.chaos),
        pytest.param(2, 2, 20, marks=pytest.mark.chaos),
    ],
    indirect=["folder"],
)
def test_kill_9_at_random_moments(tmp_path, folder, processes, kills):
    """A trainer, or torchrun with everything: after each kill all checkpoints are right; then the run goes on."""
    witness, random = Witness(folder), np.random.default_rng(kills)
    done = ends = early = 0
    while not ends or done < kills:
        run = tmp_path / f"run-{ends}"
        training = Training(processes, folder / "data.npz", run)
        victims = []
        if done < kills:
            at_any_time = random.random() < 0.1
            if at_any_time:
                time.sleep(random.uniform(0, 5 * processes))
            elif training.wait_for(lambda training=training: training.saved):
                time.sleep(random.uniform(0, 0.3 * processes))
            victims = training.some(random)
        pids = {str(p.pid) for p in [training.main, *training.trainers()]}
        status, said = training.end(victims)
        if victims and status != 0:
            done += 1
            early += at_any_time
            witness.check(run)
            if training.began:
                assert {path.name.split(".")[-2] for path in leftovers(run)} <= pids
        else:
            assert status == 0, said
            witness.check_end(run, training.saved)
            ends += 1
    print(f"{done} kills of {processes} processes ({early} of them at any time), {ends} runs to their end bitwise;")
    print(f"{witness.checkpoints} checkpoints found right; at most {witness.lost} steps lost")


@pytest.mark.parametrize("folder", [2], indirect=True)
def test_torchrun_restarts_a_run_and_stops_it(tmp_path, folder):
    """One process is killed: all begin again from RUN/last. SIGTERM: one save, and a later start goes on."""
    witness, run = Witness(folder), tmp_path / "run"
    training = Training(2, folder / "data.npz", run, "--max-restarts=1")
    try:
        assert training.wait_for(lambda: max(logged_steps(run), default=0) > 20)
        training.trainers()[1].kill()
        assert training.wait_for(lambda: max(logged_steps(run), default=0) > 60)
        training.main.terminate()
    finally:
        status, said = training.end()
    assert status != 0
    assert said.count("2 processes") == 2  # one of them speaks, at the start and after the restart
    last = max(logged_steps(run))
    assert said.count(f"stopped at step {last} of {max(witness.table)}; saved in") == 1
    witness.check(run)
    assert witness.lost == 0
    training = Training(2, folder / "data.npz", run)
    status, said = training.end()
    assert status == 0, said
    witness.check_end(run)


SHORT = TrainOptions(
    hidden_size=6, num_mixtures=2, batch_size=16, num_layers=2, dropout=0.2, epochs=2, log_every=1,
    checkpoint_every=INTERVAL,
)  # fmt: skip


def begin(n, run):
    Killer(n).install(files, curves)
    Trainer(SHORT, zigzags(60), run).run()


def go_on(n, run):
    Killer(n).install(files, curves)
    Trainer.resume(zigzags(60), run).run()


class Cut(Exception):
    pass


def broken_off(run):
    """A run that was killed after a step that it had not saved, while it wrote a line and a checkpoint."""

    def cut(report):
        if report.step == 5:
            raise Cut

    trainer = Trainer(SHORT, zigzags(60), run)
    with pytest.raises(Cut):
        trainer.run(cut)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "nats')
    for part in (".", "last", "best"):
        (run / part / ".config.json.0.tmp").write_text("{")


@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("action", [begin, go_on])
def test_kill_9_at_every_write(tmp_path, action, every):
    """A training run from its start, and one resumed: each write, fsync, rename and removal is its last, in turn."""
    options = dataclasses.replace(SHORT, checkpoint_every=1)
    assert apart(undisturbed, (ALONE, tmp_path, options, 60)) == [0]
    witness = Witness(tmp_path)
    broken_off(tmp_path / "broken")
    for n in range(0, 10_000, every):
        run = tmp_path / "run"
        if action is go_on:
            shutil.copytree(tmp_path / "broken", run)
        (status,) = apart(action, (n, run))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        witness.check(run)
        trainer = Trainer.resume(zigzags(60), run) if holds_run(run) else Trainer(SHORT, zigzags(60), run)
        assert not leftovers(run)
        saved = trainer.step < trainer.steps
        trainer.run()
        witness.check_end(run, saved)
        shutil.rmtree(run)
    witness.check_end(run)
    assert n > 100
    print(f"{action.__name__}: killed {n // every} times, {witness.checkpoints} checkpoints found right")


FAILING = """
import sys
import torch
from fusedmdn import distributed
from fusedmdn.train import Trainer
from tests.fusedmdn.test_train_chaos import OPTIONS, zigzags

def fail(report):
    if report.step == 5 and world.leads:
        raise OSError("no space left on this process's device")

with distributed.join(torch.device("cpu")) as world:
    Trainer(OPTIONS, zigzags(), sys.argv[1], "cpu", world).run(fail)
"""


def test_an_error_of_one_process_ends_all(tmp_path):
    (tmp_path / "script.py").write_text(FAILING)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += [str(tmp_path / "script.py"), str(tmp_path / "run")]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(words, env=paths, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "no space left on this process's device" in result.stderr
    assert load_training(tmp_path / "run" / "last")[2]["step"] in (4, 5)
