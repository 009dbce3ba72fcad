"""How far a job is, and whether what is there is what was written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import JobError, Unreadable
from .job import MANIFEST, RECORDS, STROKES, Job, Record


@dataclass
class Status:
    """What a job's directory holds.

    Attributes:
        written: records of shards whose files are there (`status`), or are what was written (`verify`).
        missing: shards that are not recorded.
        damaged: shards that are recorded, and not what was written.
        problems: of each shard or file that is damaged or cannot be read, what is wrong; the message names it.
        manifest_wrong: the manifest is damaged, or is not what the records say.
        leftovers: temporary files of writers that were killed, or are at work.
        strays: files in strokes/ or records/ that are no shard's: somebody else's, and left alone.
        complete: the manifest is there, and nothing is missing or wrong.
    """

    written: list[Record] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    manifest_wrong: bool = False
    leftovers: list[Path] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)
    complete: bool = False

    @property
    def points(self) -> int:
        """Of the shards that are written."""
        return sum(record.points for record in self.written)

    @property
    def bytes(self) -> int:
        """Of the shards that are written."""
        return sum(record.bytes for record in self.written)

    @property
    def sequences(self) -> int:
        """Of the shards that are written."""
        return sum(record.sequences for record in self.written)


def status(job: Job) -> Status:
    """What is there, by records and sizes alone: quick, and blind to damage that leaves the size."""

    def trouble(record: Record) -> str | None:
        path = job.directory / STROKES / record.file
        try:
            size = path.stat().st_size
        except OSError:
            return f"{path}: is missing, and recorded as written"
        return None if size == record.bytes else f"{path}: damaged: {size} bytes, expected {record.bytes}"

    return _examine(job, trouble, lambda shard: None)


def verify(job: Job, clean: bool = False, on_shard: Callable[[int], None] = lambda shard: None) -> Status:
    """Read everything: the spec's weights and prefixes, the records, the manifest, and every byte of every shard.

    Args:
        job: which.
        clean: also delete temporary files, and shards and records that are damaged, so that `run` makes them again; not
            what cannot be read, which may be intact.
        on_shard: told of each shard that was read.

    Raises:
        JobError: with `clean`, a process is at work on the job.
    """
    if not clean:
        return _verified(job, on_shard)
    with job.claim(range(job.spec.shards)):
        found = _verified(job, on_shard)
        if found.damaged or found.missing or found.manifest_wrong:
            (job.directory / MANIFEST).unlink(missing_ok=True)
        for shard in found.damaged:
            job.record_of(shard).unlink(missing_ok=True)
            job.file_of(shard).unlink(missing_ok=True)
        for leftover in found.leftovers:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    return found


def _verified(job: Job, on_shard: Callable[[int], None]) -> Status:
    found = _examine(job, job.trouble, on_shard)
    for read in (job.model, job.prime):
        try:
            read()
        except (JobError, OSError) as error:
            found.problems.append(str(error))
            found.complete = False
    return found


def _examine(job: Job, trouble: Callable[[Record], str | None], on_shard: Callable[[int], None]) -> Status:
    found = Status(leftovers=job.leftovers())
    records: list[Record | None] = []
    for shard in range(job.spec.shards):
        record, wrong, unreadable = None, None, False
        try:
            record = job.read_record(shard)
            wrong = None if record is None else trouble(record)
        except JobError as error:
            wrong, unreadable = str(error), isinstance(error, Unreadable)
        if wrong is not None:
            found.problems.append(wrong)
            if not unreadable:
                found.damaged.append(shard)
        elif record is None:
            found.missing.append(shard)
        else:
            found.written.append(record)
        records.append(record)
        on_shard(shard)
    expected = {path(k).name for k in range(job.spec.shards) for path in (job.file_of, job.record_of)}
    there = [path for folder in (STROKES, RECORDS) for path in (job.directory / folder).glob("*")]
    found.strays = sorted(path for path in there if path.name not in expected and path not in found.leftovers)
    manifest, wrong = None, None
    try:
        manifest = job.read_manifest()
        if manifest is not None and manifest != records:
            wrong = f"{job.directory / MANIFEST}: is not what the records say"
    except JobError as error:
        wrong = str(error)
    if wrong is not None:
        found.problems.append(wrong)
        found.manifest_wrong = True
    found.complete = manifest is not None and not found.problems and not found.missing
    return found
