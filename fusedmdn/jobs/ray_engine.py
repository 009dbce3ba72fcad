"""A job's shards on Ray: an actor holds the model and makes one shard at a time; one that dies is replaced.

The actors write shards and records themselves, so every machine must see the job's directory, under the same path. A
shard whose actor died is given to another, a bounded number of times; its bytes are the same whoever makes it.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .errors import JobError, ShardError
from .job import Job, Record
from .running import Engine, Outcome, Reports, Stopped, attempt
from .shard import ShardWriter

POLL = 0.25  # seconds between two looks at whether to stop
GIVEN_UP = 3  # shards in a row that ended every process that tried them: it is not the shards, then
OBJECT_STORE = 80 << 20  # bytes, Ray's least: nothing but names and records goes through it


def on_ray(
    workers: int | None = None,
    num_cpus: int = 1,
    num_gpus: float = 0.0,
    *,
    address: str | None = None,
    retries: int = 3,
    wait: float = 60.0,
    make_writer: Callable[[Job], ShardWriter] = ShardWriter,
) -> Engine:
    """Many processes, on this machine or a cluster.

    A program that has called `ray.init` keeps its Ray; else the cluster at `address` is joined, or Ray is started here
    and ended with the run.

    Args:
        workers: actors; by default as many as the cluster holds, at most one a shard.
        num_cpus: CPUs of an actor, and threads that it samples with.
        num_gpus: GPUs of an actor, fractions too; a job of a GPU takes 1 by default.
        address: of a running cluster; by default $RAY_ADDRESS, else there is none.
        retries: of a shard whose actor dies.
        wait: seconds to wait for the first actor; the others join when they have started.
        make_writer: what makes the shards in an actor.

    Raises:
        ModuleNotFoundError: Ray is missing.
        JobError: an argument is out of range. When run: no cluster is there, no actor could start, or every process
            dies; and what `ShardWriter` raises.
    """
    _module()
    for name, value, least in (("num_cpus", num_cpus, 1), ("retries", retries, 0), ("workers", workers, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise JobError(f"{name}: expected an integer >= {least}, got {value!r}")
    if not 0 <= num_gpus < float("inf") or (num_gpus > 1 and num_gpus != int(num_gpus)):
        raise JobError(f"num_gpus: expected a share of one GPU or a whole number of them, got {num_gpus}")
    if not 0 <= wait < float("inf"):
        raise JobError(f"wait: expected seconds >= 0, got {wait}")

    @contextmanager
    def engine(job: Job, shards: list[int], reports: Reports) -> Iterator[Iterator[Outcome]]:
        environment = job.spec.environment
        on_gpu = environment["backend"] == "triton" or environment.get("device") == "cuda"
        needs = {"CPU": num_cpus, "GPU": num_gpus or float(on_gpu)}
        with _ray(address) as ray:
            most = min(int(ray.cluster_resources().get(name, 0) / n) for name, n in needs.items() if n)
            made_of = str(job.directory.absolute()), job.digest, num_cpus, make_writer
            crew = _Crew(ray, needs, made_of, shards, reports, retries, wait)
            try:
                crew.assemble(min(workers or max(most, 1), len(shards)))
                yield crew.outcomes()
            finally:
                crew.dismiss()

    return engine


class _Maker:
    """What runs in an actor."""

    def __init__(self, directory: str, digest: str, threads: int, make_writer: Callable[[Job], ShardWriter]) -> None:
        self.directory, self.digest, self.threads, self.make_writer = directory, digest, threads, make_writer

    def ready(self) -> None:
        """Load the model."""
        torch.set_num_threads(self.threads)
        try:
            job = Job(self.directory)
            if job.digest != self.digest:
                raise JobError(f"{self.directory}: is another job there; all machines must see the same directory")
            self.writer = self.make_writer(job)
        except JobError as error:
            raise type(error)(f"{platform.node()}: {error}") from error

    def make(self, shard: int) -> Record | ShardError:
        """Make a shard."""
        return attempt(self.writer, shard, lambda sequences, points: None)


class _Crew:
    """Actors, each of which starts, is idle or makes a shard, and the shards that are left to be given to them."""

    def __init__(
        self,
        ray: Any,
        needs: Mapping[str, float],
        made_of: tuple[Any, ...],
        shards: list[int],
        reports: Reports,
        retries: int,
        wait: float,
    ) -> None:
        self.ray, self.needs, self.made_of = ray, needs, made_of
        self.reports, self.retries, self.wait = reports, retries, wait
        self.left = deque(shards)
        self.tasks: dict[Any, tuple[Any, int | None]] = {}  # of each actor at work, its shard; None while it starts
        self.idle: list[Any] = []
        self.deaths: Counter[int | None] = Counter()  # of the actors that made a shard; None: while they started
        self.given_up = 0  # shards in a row
        self.begun = self.since = time.monotonic()  # the latter: when an actor was last up
        self.late = False  # whether it was told that not all have started

    def assemble(self, workers: int) -> None:
        """Wait until there is an actor that is ready to make shards."""
        for _ in range(workers):
            self._hire()
        while not self.idle:
            for _ in self._turn():
                pass

    def outcomes(self) -> Iterator[Outcome]:
        """The shards as they are made."""
        while self.left or any(shard is not None for _, shard in self.tasks.values()):
            while self.left and self.idle:
                actor, shard = self.idle.pop(), self.left.popleft()
                self.tasks[actor.make.remote(shard)] = actor, shard
            yield from self._turn()

    def dismiss(self) -> None:
        """End all actors, whatever they are at."""
        for actor in [*self.idle, *(actor for actor, _ in self.tasks.values())]:
            self.ray.kill(actor)

    def _hire(self) -> None:
        options: dict[str, Any] = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs["GPU"]}
        if set_here := {name: value for name, value in os.environ.items() if name.startswith("FUSEDMDN_")}:
            options["runtime_env"] = {"env_vars": set_here}
        actor = self.ray.remote(_Maker).options(**options).remote(*self.made_of)
        self.tasks[actor.ready.remote()] = actor, None

    def _turn(self) -> Iterator[Outcome]:
        """Wait a moment for an actor to end what it does, and see what that was."""
        done, _ = self.ray.wait([*self.tasks], timeout=POLL)
        if self.reports.stopping():
            raise Stopped
        for task in done:
            actor, shard = self.tasks.pop(task)
            try:
                outcome = self.ray.get(task)
            except self.ray.exceptions.RayTaskError as error:
                others = [*self.idle, *(at for _, at in self.tasks.values() if at is not None)]
                if shard is None and others and isinstance(error.cause, JobError):
                    self.ray.kill(actor)  # one machine that will not do; there are others
                    self.reports.said(f"a worker is done without: {error.cause}")
                    continue
                raise error.cause from error  # what the actor raised, without the traceback in its message
            except self.ray.exceptions.RayError as error:
                self.ray.kill(actor)  # it may be out of reach only
                yield from self._died(shard, error)
                continue
            self.idle.append(actor)
            if shard is None:
                self.deaths[None] = 0
                continue
            self.given_up = 0
            if isinstance(outcome, Record):
                self.reports.drawn(outcome.sequences, outcome.points)
            yield shard, outcome
        self._look_at_the_clock()

    def _died(self, shard: int | None, error: Exception) -> Iterator[Outcome]:
        """Have an actor in the place of one that died; its shard is for whoever is free next, so many times."""
        self.deaths[shard] += 1
        times, reason = self.deaths[shard], _reason(error)
        if shard is None:
            if times > self.retries + len(self.tasks):
                raise JobError(f"Ray's workers die while they start, {times} in a row; of the last: {reason}")
        elif times <= self.retries:
            self.left.appendleft(shard)
        else:
            self.given_up += 1
            told = f"shard {shard}: the processes that made it died, {times} of {times}; of the last: {reason}"
            if self.given_up == GIVEN_UP:
                raise JobError(f"{GIVEN_UP} shards in a row could not be made by any process; {told}")
            yield shard, ShardError(told)
        self._hire()

    def _look_at_the_clock(self) -> None:
        """See that not all actors have waited too long for their place."""
        now, waiting = time.monotonic(), sum(shard is None for _, shard in self.tasks.values())
        up = len(self.tasks) - waiting + len(self.idle)
        if up:
            self.since = now
        elif now - self.since > self.wait:
            raise JobError(f"no worker could start within {self.wait:g} s: {self._room()}")
        if waiting and up and not self.late and now - self.begun > self.wait:
            self.late = True
            self.reports.said(f"{up} of {up + waiting} workers have started, the others join later: {self._room()}")

    def _room(self) -> str:
        """What an actor needs, and what there is."""
        total, free = self.ray.cluster_resources(), self.ray.available_resources()
        told = [
            f"{n:g} {name}s a worker, of {total.get(name, 0):g} in the cluster {free.get(name, 0):g} are free"
            for name, n in self.needs.items()
            if n
        ]
        return ", ".join(told) + "; end what takes them, or ask for less"


@contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """The module, connected."""
    ray = _module()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers about this machine
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    inside = ray._private.worker
    shown = getattr(inside, "_worker_logs_enabled", True)
    inside._worker_logs_enabled = False  # else Ray prints a paragraph for each process that dies
    try:
        with _own_handlers():
            try:
                ray.init(address, **options)
            except (OSError, ValueError, RuntimeError) as error:
                raise JobError(f"Ray at {address!r} cannot be had: {_reason(error)}") from error
        yield ray
    finally:
        ray.shutdown()
        inside._worker_logs_enabled = shown


@contextmanager
def _own_handlers() -> Iterator[None]:
    """What this process does about SIGTERM: Ray puts its own in, which exits; what comes meanwhile comes afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, came = signal.getsignal(signal.SIGTERM), False
    try:
        yield
    except SystemExit:
        came = True
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        os.kill(os.getpid(), signal.SIGTERM)
        raise Stopped


def _reason(error: Exception) -> str:
    """What matters of what Ray says: the last line of a traceback, else a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "creation task" in lines[0]:
        return lines[-1]
    return " ".join(" ".join(lines).split()).split("Worker exit detail: ")[-1].split(". ")[0]


def _module() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the engine ray needs Ray: pip install 'fusedmdn[jobs]'") from error
    return ray
