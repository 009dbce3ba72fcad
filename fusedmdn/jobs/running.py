"""Running a job: what is missing is made, by an engine; the manifest is written when nothing is missing any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch

from .errors import JobError, ShardError
from .job import MANIFEST, Job, Record
from .shard import ShardWriter


class Stopped(Exception):
    """The work was asked to stop; shards that were at hand are not written."""


class Reports:
    """Who is told how a run goes on; this one does nothing about it."""

    def checked(self, shards: int) -> None:
        """So many shards more have been looked at, before work begins."""

    def begun(self, shards: int, sequences: int) -> None:
        """So much is to be made."""

    def drawn(self, sequences: int, points: int) -> None:
        """So much more was drawn."""

    def stopping(self) -> bool:
        """Whether to stop; asked often."""
        return False

    def written(self, record: Record) -> None:
        """A shard is written and recorded."""

    def failed(self, shard: int, reason: str) -> None:
        """A shard could not be made; the others are gone on with."""

    def said(self, line: str) -> None:
        """Something is not as it was asked for, and the work goes on."""


Outcome = tuple[int, Record | ShardError]
# Entered, it has refused what cannot be; it gives the shards as they are made, in any order; left, nothing of it runs.
Engine = Callable[[Job, list[int], Reports], AbstractContextManager[Iterator[Outcome]]]


@dataclass
class Run:
    """How it ended.

    Attributes:
        written: shards that were made.
        kept: shards that were there already, and verified.
        failed: shards that could not be made, and why.
        stopped: whether it was asked to stop.
        complete: whether the job is: the manifest is written.
    """

    written: list[Record] = field(default_factory=list)
    kept: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    stopped: bool = False
    complete: bool = False


def run(job: Job, shards: range | None = None, engine: Engine | None = None, reports: Reports | None = None) -> Run:
    """Make the shards that are not there, or not what their records say.

    Args:
        job: what.
        shards: which; all by default.
        engine: by what; in this process by default.
        reports: who is told.

    Raises:
        JobError: the range is not the job's, another process has claimed some of it, or the weights are damaged.
        EnvironmentRefused: this machine would write other bits.
        OSError: a shard cannot be written; those before it are.
    """
    shards = check_range(job, shards)
    reports = reports or Reports()
    engine = engine or in_this_process()
    result = Run()
    with job.claim(shards):
        job.make_folders()
        for leftover in job.leftovers(shards):
            leftover.unlink(missing_ok=True)
        missing = []
        try:
            for shard in shards:
                if job.done(shard) is None:
                    missing.append(shard)
                else:
                    result.kept += 1
                reports.checked(1)
                if reports.stopping():
                    raise Stopped
            if missing:
                with engine(job, missing, reports) as outcomes:  # which refuses before anything is touched
                    # neither the manifest nor a record may say that it is there while it is made again
                    for path in (job.directory / MANIFEST, *map(job.record_of, missing)):
                        path.unlink(missing_ok=True)
                    reports.begun(len(missing), sum(len(job.spec.sequences_of(shard)) for shard in missing))
                    for shard, outcome in outcomes:
                        if isinstance(outcome, ShardError):
                            result.failed[shard] = str(outcome)
                            reports.failed(shard, str(outcome))
                        else:
                            result.written.append(outcome)
                            reports.written(outcome)
        except Stopped:
            result.stopped = True
        if not result.stopped and not result.failed:
            result.complete = job.write_manifest()
    return result


def in_this_process(device: object = None) -> Engine:
    """One shard after the other, here."""

    @contextmanager
    def engine(job: Job, shards: list[int], reports: Reports) -> Iterator[Iterator[Outcome]]:
        writer = ShardWriter(job, device)

        def on_batch(sequences: int, points: int) -> None:
            reports.drawn(sequences, points)
            if reports.stopping():
                raise Stopped

        yield ((shard, attempt(writer, shard, on_batch)) for shard in shards)

    return engine


def attempt(writer: ShardWriter, shard: int, on_batch: Callable[[int, int], None]) -> Record | ShardError:
    """The record of a shard that was made, or why it could not be while others may; raises as `ShardWriter.write`."""
    try:
        return writer.write(shard, on_batch)
    except ShardError as error:
        return error
    except torch.OutOfMemoryError as error:
        return ShardError(f"shard {shard}: {error}")


def check_range(job: Job, shards: range | None) -> range:
    """The shards asked for.

    Raises:
        JobError: they are not the job's.
    """
    last = job.spec.shards
    if shards is None:
        return range(last)
    if shards.step != 1 or not 0 <= shards.start < min(shards.stop, last):
        raise JobError(f"shards: expected a:b with 0 <= a < b and a < {last}, got {shards.start}:{shards.stop}")
    return range(shards.start, min(shards.stop, last))  # the last of equal parts may be shorter
