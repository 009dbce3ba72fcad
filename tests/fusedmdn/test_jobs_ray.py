"""The same shards on Ray: the same bytes, whatever dies, and errors in one line."""

import errno
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest
import torch

from fusedmdn import FusedLSTMMDN, jobs, sealed
from fusedmdn.jobs import EnvironmentRefused, JobError, Reports, ShardError, ray_engine
from fusedmdn.jobs.ray_engine import on_ray
from fusedmdn.jobs.shard import ShardWriter

from .job_runs import PATIENCE, actors, assert_whole, command, ended, session, tree, wait_until

SHARDS = 6


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A job of which nothing is made."""
    directory = tmp_path_factory.mktemp("jobs")
    torch.manual_seed(0)
    FusedLSTMMDN(3, 16, 1, 2).save_pretrained(directory / "model")
    return jobs.create(directory / "job", directory / "model", 28, shard_size=5, max_steps=20, seed=7).directory


@pytest.fixture(scope="module")
def expected(fresh, tmp_path_factory):
    """The files of that job, made in this process."""
    directory = tmp_path_factory.mktemp("expected") / "job"
    shutil.copytree(fresh, directory)
    assert jobs.run(jobs.Job(directory)).complete
    return tree(directory)


@pytest.fixture
def job(fresh, tmp_path):
    shutil.copytree(fresh, tmp_path / "job")
    return jobs.Job(tmp_path / "job")


@pytest.fixture(scope="module")
def ray_directory():
    """Short: the names of sockets there have at most 107 characters."""
    directory = tempfile.mkdtemp(prefix="ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", directory)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def ray(ray_directory):
    """Ray with two CPUs in this process, which `on_ray` then uses."""
    with ray_engine._own_handlers():
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield ray
    ray.shutdown()


class Log(Reports):
    """Keeps what it is told."""

    def __init__(self):
        self.lines, self.points = [], 0

    def said(self, line):
        self.lines.append(line)

    def drawn(self, sequences, points):
        self.points += points


def test_the_same_bytes_in_halves(ray, job, expected):
    """The second half by an actor, then the first by this process."""
    log = Log()
    result = jobs.run(job, range(3, SHARDS), on_ray(1), log)
    assert [record.shard for record in result.written] == [3, 4, 5]
    assert log.points == sum(record.points for record in result.written)
    assert not result.complete
    assert jobs.run(job, range(3)).complete
    assert_whole(job.directory, expected)


def test_the_same_bytes_by_one_worker(ray, job, expected):
    assert jobs.run(job, engine=on_ray(1)).complete
    assert_whole(job.directory, expected)


def test_a_killed_actor_is_replaced(ray, job, expected):
    class KilledOnce(ShardWriter):
        """Killed in the middle of a shard, the first time."""

        def draw(self, sequences):
            mark = self.job.directory.parent / "killed"
            if sequences.start == 10 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().draw(sequences)

    assert jobs.run(job, engine=on_ray(2, make_writer=KilledOnce)).complete
    assert (job.directory.parent / "killed").exists()
    assert_whole(job.directory, expected)


def test_a_shard_that_ends_its_process_is_given_up(ray, job, expected):
    class Poisoned(ShardWriter):
        def draw(self, sequences):
            if sequences.start == 10:
                with open(self.job.directory.parent / "tries", "a") as tries:
                    tries.write("x")
                os._exit(3)
            return super().draw(sequences)

    result = jobs.run(job, engine=on_ray(1, retries=1, make_writer=Poisoned))
    assert (job.directory.parent / "tries").read_text() == "xx"
    assert list(result.failed) == [2]
    assert result.failed[2].startswith("shard 2: the processes that made it died, 2 of 2; of the last: Worker unexp")
    assert "\n" not in result.failed[2]
    assert len(result.written) == SHARDS - 1
    assert not result.complete
    assert jobs.run(job).complete
    assert_whole(job.directory, expected)


def test_if_every_process_dies_it_stops(ray, job):
    class Dying(ShardWriter):
        def draw(self, sequences):
            os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(JobError, match=r"^3 shards in a row could not be made by any process; shard \d: [^\n]*$"):
        jobs.run(job, engine=on_ray(2, retries=0, make_writer=Dying))


def test_processes_that_die_while_they_start(ray, job):
    def dying(job):
        os._exit(1)

    with pytest.raises(JobError, match=r"^Ray's workers die while they start, 2 in a row; [^\n]*$"):
        jobs.run(job, engine=on_ray(1, retries=1, make_writer=dying))


def test_what_cannot_be_written_stops_and_a_failed_shard_is_not_tried_again(ray, job):
    class Failing(ShardWriter):
        def draw(self, sequences):
            with open(self.job.directory.parent / "tries", "a") as tries:
                tries.write(f"{sequences.start} ")
            if sequences.start == 5:
                raise ShardError("shard 1: not finite")
            if sequences.start == 15:
                raise OSError(errno.ENOSPC, "No space left on device", "part")
            return super().draw(sequences)

    failed = []
    log = Log()
    log.failed = lambda shard, reason: failed.append((shard, reason))
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: 'part'$"):
        jobs.run(job, engine=on_ray(1, make_writer=Failing), reports=log)
    assert failed == [(1, "shard 1: not finite")]
    assert (job.directory.parent / "tries").read_text() == "0 5 10 15 "


def test_no_room_for_an_actor(ray, job):
    @ray.remote(num_cpus=2)
    class Taker:
        def ready(self):
            pass

    taker = Taker.remote()
    ray.get(taker.ready.remote(), timeout=PATIENCE)
    try:
        (job.directory / "manifest.json").touch()
        with pytest.raises(JobError, match="^no worker could start within 1 s: 1 CPUs a worker, of 2 in"):
            jobs.run(job, engine=on_ray(wait=1))
        assert (job.directory / "manifest.json").exists()  # refused before anything was touched
    finally:
        ray.kill(taker)


def test_fewer_actors_than_asked_for(ray, job, expected, monkeypatch):
    """Three on two CPUs: those that have started work, and once `wait` is over that is told."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + clock.ahead, ahead=0)
    monkeypatch.setattr(ray_engine, "time", clock)
    log = Log()
    log.begun = lambda shards, sequences: setattr(clock, "ahead", 2 * PATIENCE)
    assert jobs.run(job, engine=on_ray(3, wait=PATIENCE), reports=log).complete
    assert len(log.lines) == 1
    assert re.match("[12] of 3 workers have started, the others join later: 1 CPUs a worker, of 2 in", log.lines[0])
    assert_whole(job.directory, expected)


def test_a_worker_that_will_not_do_is_done_without(ray, job, expected):
    """Where another is at work: a machine of another kind has joined, say."""
    first, refused, record = job.directory.parent / "first", job.directory.parent / "refused", job.record_of(0)

    class Patient(ShardWriter):
        def write(self, shard, on_batch):
            found = super().write(shard, on_batch)
            wait_until(refused.exists, "a refusal")
            return found

    def make_writer(job):
        try:
            first.touch(exist_ok=False)
        except FileExistsError:
            wait_until(record.exists, "a shard")
            refused.touch()
            raise EnvironmentRefused("isa is other") from None
        return Patient(job)

    log = Log()
    assert jobs.run(job, engine=on_ray(2, make_writer=make_writer), reports=log).complete
    assert len(log.lines) == 1
    assert re.fullmatch(r"a worker is done without: \S+: isa is other", log.lines[0])
    assert_whole(job.directory, expected)


def test_an_actors_refusal_is_the_users(ray, job):
    document = json.loads((job.directory / "job.json").read_text())
    document["environment"]["isa"] = "other"
    sealed.write(job.directory / "job.json", document)
    with pytest.raises(EnvironmentRefused, match=r"^[^\n]*: this machine would write other bits: isa is [^\n]*$"):
        jobs.run(jobs.Job(job.directory), engine=on_ray(1))


def test_a_directory_that_is_another_job_elsewhere(ray, job, monkeypatch):
    monkeypatch.setattr(job, "digest", "0" * 64)
    with pytest.raises(JobError, match="job: is another job there; all machines must see the same directory$"):
        jobs.run(job, engine=on_ray(1))


def test_asked_to_stop(ray, job):
    class Slow(ShardWriter):
        def draw(self, sequences):
            time.sleep(PATIENCE)

    log, polls = Log(), []
    log.begun = lambda shards, sequences: polls.append(time.monotonic())
    log.stopping = lambda: bool(polls)
    result = jobs.run(job, engine=on_ray(2, make_writer=Slow), reports=log)
    assert result.stopped
    assert time.monotonic() - polls[0] < PATIENCE / 2


def test_the_command_joins_a_cluster(ray, job, expected):
    """And by two workers the bytes are the same."""
    address = ray.get_runtime_context().gcs_address
    with command(job.directory, "--engine", "ray", "--workers", "2", "--address", address) as process:
        code, out, err = ended(process)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "complete: the manifest is written"
    assert_whole(job.directory, expected)


def test_no_cluster_there(ray_directory, job):
    with command(job.directory, "--engine", "ray", env={**os.environ, "RAY_ADDRESS": "localhost"}) as process:
        code, out, err = ended(process)
    assert (code, out) == (2, "")
    assert err.startswith("error: Ray at 'localhost' cannot be had: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("moment", ["starting", "working"])
def test_the_command_starts_ray_and_stops(ray_directory, job, moment):
    """By SIGTERM, while Ray starts or in the midst of the work; Ray's processes are gone with it."""
    document = json.loads((job.directory / "job.json").read_text())
    sealed.write(job.directory / "job.json", document | {"sequences": 100_000, "shard_size": 100})
    with command(job.directory, "--engine", "ray", "--workers", "1") as process:
        if moment == "starting":
            wait_until(lambda: any("gcs_server" in line for line in session(process.pid).values()), "Ray")
        else:
            assert process.stdout.readline().startswith("shard ")
            assert actors(process.pid)
        process.send_signal(signal.SIGTERM)
        code, out, err = ended(process)
        wait_until(lambda: not session(process.pid), "Ray to be gone")
    assert (code, err) == (128 + signal.SIGTERM, "")
    assert out.splitlines()[-1] == f"stopped; `fusedmdn jobs run {job.directory}` goes on"


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_two_runs_of_one_job(job, engine):
    with job.claim(range(2, 3)), command(job.directory, "--engine", engine) as process:
        code, out, err = ended(process)
    assert (code, out) == (2, "")
    told = "another process is at work on some of the shards 0:6; --shards divides a job"
    assert err == f"error: {job.directory}: {told}\n"


def test_without_ray(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"the engine ray needs Ray: pip install 'fusedmdn\[jobs\]'"):
        on_ray()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workers": 0}, "workers: expected an integer >= 1, got 0"),
        ({"num_cpus": 0.5}, "num_cpus: expected an integer >= 1, got 0.5"),
        ({"num_gpus": 1.5}, "num_gpus: expected a share of one GPU or a whole number of them, got 1.5"),
        ({"retries": -1}, "retries: expected an integer >= 0, got -1"),
        ({"wait": float("nan")}, "wait: expected seconds >= 0, got nan"),
    ],
)
def test_options_out_of_range(options, told):
    with pytest.raises(JobError, match=told):
        on_ray(**options)
