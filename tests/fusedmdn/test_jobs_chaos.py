"""Jobs that are killed anywhere, or cannot write: run again, they end as if nothing had happened, byte for byte."""

import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from fusedmdn import FusedLSTMMDN, files, jobs
from fusedmdn.jobs import ShardError
from fusedmdn.jobs.shard import ShardWriter

from ..killer import Killer, in_a_child
from .job_runs import (
    PATIENCE,
    actors,
    assert_whole,
    command,
    ended,
    run_to_the_end,
    session,
    tree,
    wait_until,
    wait_until_empty,
)


def small_job(directory, **changes):
    """Three shards of a tiny model."""
    torch.manual_seed(0)
    model = FusedLSTMMDN(3, 8, 1, 2)
    for name, value in changes.items():
        torch.nn.init.constant_(model.get_parameter(name), value)
    model.save_pretrained(directory / "model")
    return jobs.create(directory / "job", directory / "model", 8, shard_size=3, max_steps=9, seed=3)


def killed_at(n, action):
    """`action` in a forked process that is killed at its n-th chance; gives its exit status, or minus the signal."""

    def killed():
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        killer = Killer(n)
        killer.install(files)
        os.rename, os.mkdir = killer.around(os.rename), killer.around(os.mkdir)
        action()

    return in_a_child(killed)


def whole_records(job):
    """Of the shards that are recorded; there is none whose record or file is not as it was meant to be."""
    records = job.records(partial=True)
    assert [job.trouble(record) for record in records] == [None] * len(records)
    return records


def test_killed_at_every_step_of_a_run(tmp_path):
    job = small_job(tmp_path)
    fresh, directory = shutil.copytree(job.directory, tmp_path / "fresh"), tmp_path / "killed"
    assert jobs.run(job).complete
    expected, recorded = tree(job.directory), []
    for n in range(1000):
        shutil.copytree(fresh, directory)
        killed = jobs.Job(directory)
        status = killed_at(n, lambda killed=killed: jobs.run(killed))
        recorded.append(len(whole_records(killed)))
        assert jobs.run(killed).complete
        assert_whole(directory, expected)
        shutil.rmtree(directory)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert n > 60
    assert recorded == sorted(recorded)
    assert {*recorded} == {0, 1, 2, 3}


def test_killed_at_every_step_of_making_a_job(tmp_path):
    expected = tree(small_job(tmp_path).directory)
    there = []
    for n in range(1000):
        parent = tmp_path / str(n)

        def make(parent=parent):
            return jobs.create(parent / "job", tmp_path / "model", 8, shard_size=3, max_steps=9, seed=3)

        status = killed_at(n, make)
        there.append((parent / "job").exists())
        if not there[-1]:
            make()
        jobs.verify(jobs.Job(parent / "job"), clean=True)
        assert tree(parent) == {f"job/{name}": data for name, data in expected.items()}  # nothing half made is left
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert n > 30
    assert there == sorted(there)
    assert {*there} == {False, True}


SEQUENCES, SHARD_SIZE = 1440, 60
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A job of 24 shards of the embedded weights, of which nothing is made; its files when it is; seconds of a run."""
    parent = tmp_path_factory.mktemp("undisturbed")
    fresh = jobs.create(parent / "fresh", "kanji", SEQUENCES, shard_size=SHARD_SIZE, max_steps=150).directory
    made = shutil.copytree(fresh, parent / "made")
    began = time.monotonic()
    run_to_the_end(made)
    seconds = time.monotonic() - began
    expected = tree(made)
    assert_whole(made, expected)
    return fresh, expected, seconds


class Kills:
    """Runs that are killed, each after a time of its own, spread over all of a run's; then run to the end."""

    def __init__(self, undisturbed, parent, seed=0):
        self.fresh, self.expected, self.seconds = undisturbed
        self.directory, self.random = parent / "killed", random.Random(seed)
        self.counts, self.began, self.lingering = Counter(), time.monotonic(), []

    def times(self, n, seconds):
        return [seconds * (k + self.random.random()) / n for k in range(n)]

    def begin(self):
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(self.fresh, self.directory)

    def end(self, kind, *options):
        """Note how far the run had come, and see that another completes it."""
        job = jobs.Job(self.directory)
        done = len(whole_records(job))
        stage = (
            "before the first shard" if not done else "between" if done < job.spec.shards else "after the last shard"
        )
        self.counts[f"{kind}, {stage}"] += 1
        self.counts["runs with files left over"] += bool(job.leftovers())
        run_to_the_end(self.directory, *options)
        assert_whole(self.directory, self.expected)

    def local(self, after):
        self.begin()
        with command(self.directory) as process:
            time.sleep(after)
            process.kill()
            process.wait()
        self.end("local")

    def halves(self, after):
        """Two runs at once, each killed at a time of its own."""
        self.begin()
        with ExitStack() as stack:
            first, second = (
                stack.enter_context(command(self.directory, "--shards", shards)) for shards in ("0:12", "12:24")
            )
            wait = sorted((after, self.random.uniform(0, self.seconds)))
            time.sleep(wait[0])
            first.kill()
            time.sleep(wait[1] - wait[0])
            second.kill()
        self.end("two halves at once")

    def ray(self, after, kind, again):
        """An actor, the driver, or both; `again` is how it is then run to the end.

        What makes and schedules shards goes with the driver; Ray's agents, which see after a minute that they are
        alone, are waited for in the end.
        """
        self.begin()
        with command(self.directory, "--engine", "ray", "--workers", "2", lingering=self.lingering) as process:
            time.sleep(after)
            if kind != "driver":
                found = wait_until(lambda: actors(process.pid) or process.poll() is not None, "an actor")
                if found is not True:
                    os.kill(self.random.choice(found), signal.SIGKILL)
                    self.counts["actors killed"] += 1
            if kind != "actor":
                process.kill()
            process.communicate(timeout=PATIENCE)
            assert process.returncode in ({0} if kind == "actor" else {0, -signal.SIGKILL})
            wait_until(lambda: {*session(process.pid).values()} <= AGENTS, "Ray to be gone")
        self.end(f"Ray, {kind}", *again)

    def report(self):
        minutes = (time.monotonic() - self.began) / 60
        return "\n".join([f"{n:4} {kind}" for kind, n in sorted(self.counts.items())] + [f"{minutes:.1f} minutes"])


def test_killed_at_random(undisturbed, tmp_path):
    kills = Kills(undisturbed, tmp_path)
    kills.local(kills.seconds * 0.8)
    kills.halves(kills.seconds * 0.6)
    assert sum(n for kind, n in kills.counts.items() if kind.endswith("between")) > 0


@pytest.mark.chaos
def test_killed_at_random_70_times(undisturbed, tmp_path, capsys):
    """10 of them are two runs at once."""
    kills = Kills(undisturbed, tmp_path)
    for after in kills.times(60, kills.seconds):
        kills.local(after)
    for after in kills.times(10, kills.seconds):
        kills.halves(after)
    with capsys.disabled():
        print(f"\n{kills.report()}")


@pytest.mark.chaos
def test_killed_at_random_30_times_on_ray(undisturbed, tmp_path, monkeypatch, capsys):
    directory = tempfile.mkdtemp(prefix="ray")
    monkeypatch.setenv("RAY_TMPDIR", directory)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kills, on_ray = Kills(undisturbed, tmp_path), ("--engine", "ray", "--workers", "2")
    kills.begin()
    run_to_the_end(kills.directory, *on_ray)
    seconds = time.monotonic() - kills.began
    assert_whole(kills.directory, kills.expected)
    for kind, n in (("actor", 8), ("both", 8), ("driver", 14)):
        for k, after in enumerate(kills.times(n, seconds)):
            kills.ray(after, kind, () if k % 2 else on_ray)
    for leader in kills.lingering:
        wait_until_empty(leader)
    shutil.rmtree(directory, ignore_errors=True)
    with capsys.disabled():
        print(f"\n{kills.report()}")


def test_disk_full(tmp_path):
    job = small_job(tmp_path)
    directory = job.directory
    assert jobs.run(job).complete
    expected = tree(directory)
    for left in (directory / "manifest.json", job.record_of(1), job.file_of(1), job.record_of(2)):
        left.unlink()
    before = tree(directory)

    def limited():  # Python ignores SIGXFSZ
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    with command(directory, preexec_fn=limited) as process:
        code, out, err = ended(process)
    assert (code, out) == (2, "looking at what is there\n")
    assert err == f"error: [Errno 27] File too large: '{job.file_of(1)}'\n"
    assert tree(directory) == before
    assert jobs.run(job).complete
    assert_whole(directory, expected)


def test_a_directory_that_may_not_be_written(tmp_path):
    """By another user, for root may write anywhere."""
    fresh = small_job(tmp_path).directory
    parent = Path(tempfile.mkdtemp(prefix="job"))
    directory = shutil.copytree(fresh, parent / "job")
    parent.chmod(0o755)
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    job, before = jobs.Job(directory), tree(directory)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            jobs.run(job)
        except PermissionError as error:
            code = 7 if str(error.filename) == f"{directory}/.claims" else 8
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    after = tree(directory)
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(parent)
    assert status == 7  # it says what may not be written
    assert after == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(undisturbed, tmp_path, number):
    fresh, expected, _ = undisturbed
    directory = shutil.copytree(fresh, tmp_path / "job")
    with command(directory) as process:
        assert process.stdout.readline().startswith("shard 0 ")
        process.send_signal(number)
        began = time.monotonic()
        code, out, err = ended(process)
        assert time.monotonic() - began < PATIENCE / 4
    job = jobs.Job(directory)
    assert (code, err) == (128 + number, "")
    assert out.splitlines()[-1] == f"stopped; `fusedmdn jobs run {directory}` goes on"
    assert 0 < len(job.records(partial=True)) < job.spec.shards
    assert not job.leftovers()
    assert jobs.run(job).complete
    assert_whole(directory, expected)


def test_stopped_while_it_looks_at_what_is_there(tmp_path):
    """Which takes its time: every byte of a big job is read."""
    job = small_job(tmp_path)
    assert jobs.run(job).complete
    before, reports = tree(job.directory), jobs.Reports()
    reports.stopping = lambda: True
    result = jobs.run(job, reports=reports)
    assert (result.stopped, result.kept, result.complete) == (True, 1, False)
    assert tree(job.directory) == before


def test_weights_that_give_no_strokes(tmp_path):
    """Each shard says so, by the command's exit code too."""
    job = small_job(tmp_path, **{"head.bias": float("nan")})
    with command(job.directory) as process:
        code, out, err = ended(process)
    why = "is not finite from point 0 on; do the weights diverge?"
    lines = [f"shard {k}: sequence {3 * k} {why}" for k in range(3)]
    assert code == 1
    assert (out + err).count("error: ") == 3
    assert all(f"error: {line}\n" in out + err for line in lines)
    assert "0 shards written (0 points), 0 were there and verified, 3 failed" in out
    assert not job.leftovers()


def test_a_shard_that_fails_leaves_the_others(tmp_path, monkeypatch):
    job, draw = small_job(tmp_path), ShardWriter.draw
    shutil.copytree(job.directory, tmp_path / "made")
    jobs.run(jobs.Job(tmp_path / "made"))
    expected = tree(tmp_path / "made")

    def failing(self, sequences):
        if sequences.start == 3:
            raise ShardError("shard 1: cannot be")
        return draw(self, sequences)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "draw", failing)
        result = jobs.run(job)
    assert result.failed == {1: "shard 1: cannot be"}
    assert [record.shard for record in result.written] == [0, 2]
    assert not result.complete
    assert jobs.run(job).complete
    assert_whole(job.directory, expected)
