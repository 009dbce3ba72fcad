"""`Job`: a directory, and what is done in it.

    job.json                   the spec, sealed
    model/, prime.npz          copies of the weights and of the prefixes: the job needs nothing from elsewhere
    strokes/part-000000.*      the shards
    records/part-000000.json   of each shard that is written: its size, its SHA-256, its points; sealed
    manifest.json              all records; written last, so its being there says that the job is complete

A shard is written under a temporary name, flushed, renamed, and then recorded. One that is not recorded, or is not what
its record says, is to be made again. No file says when or where it was written, so the whole directory is a function of
the spec. Who writes shards claims them, by a lock on that range of bytes in .claims: it ends with the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files, sealed
from ..checkpoint import CONFIG, CheckpointError, load_model, locate, save_model
from ..checkpoint import FORMAT as CHECKPOINT_FORMAT
from ..dataset import StrokeSet
from ..loaders import load as load_strokes
from ..module import FusedLSTMMDN
from .errors import JobError, Unreadable
from .formats import FORMATS, Format
from .spec import FORMAT, JobSpec

try:
    import fcntl
except ImportError:  # Windows: nobody is kept from making the same shards twice, which harms nothing
    fcntl = None  # type: ignore[assignment]

# where a file system has no locks, nobody is kept from it either
LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
SPEC, MANIFEST, CLAIMS, MODEL, PRIME = "job.json", "manifest.json", ".claims", "model", "prime.npz"
STROKES, RECORDS = "strokes", "records"
RECORD_FORMAT, MANIFEST_FORMAT = "fusedmdn-shard-1", "fusedmdn-manifest-1"


@dataclass(frozen=True)
class Record:
    """A shard that is written.

    Attributes:
        shard: its number.
        file: its name in strokes/.
        first: index of its first sequence.
        sequences: that it holds.
        points: of all of them.
        bytes: of the file.
        digest: the file's SHA-256.
    """

    shard: int
    file: str
    first: int
    sequences: int
    points: int
    bytes: int
    digest: str


class Job:
    """A job's directory, its spec read and found right.

    Attributes:
        directory: where it is.
        spec: what it is.
        digest: the SHA-256 that job.json is sealed with: the job's name in its records.

    Raises:
        JobError: job.json is missing, damaged, or no job.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / SPEC
        try:
            document = sealed.read(path, FORMAT)
            self.spec = JobSpec.from_json(document)
        except FileNotFoundError as error:
            raise JobError(f"{self.directory}: no {SPEC} there; `fusedmdn jobs create` makes a job") from error
        except sealed.SealError as error:
            raise JobError(str(error)) from error
        except JobError as error:
            raise JobError(f"{path}: {error}") from error
        self.digest: str = document["sha256"]

    @classmethod
    def create(cls, directory: str | Path, spec: JobSpec, model: FusedLSTMMDN, prime: StrokeSet | None = None) -> Job:
        """Make the directory, all at once: it is whole, or not there.

        `spec.checkpoint["sha256"]` and `spec.prime["sha256"]` are filled in from what is copied.

        Raises:
            FileExistsError: there is something of that name, other than an empty directory.
        """
        directory = Path(directory)
        taken = FileExistsError(f"{directory} is there already: a job is made in a directory of its own")
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise taken
        directory = directory.absolute()
        directory.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
        try:
            making.chmod(0o777 & ~_umask())
            save_model(model, making / MODEL)
            document = spec.to_json()
            document["checkpoint"] |= {"path": MODEL, "sha256": _sealed_with(making / MODEL)}
            if prime is not None:
                prime.save(making / PRIME)
                document["prime"] = {"path": PRIME, "sha256": _sha256(making / PRIME), "sequences": len(prime)}
            for name in (STROKES, RECORDS):
                (making / name).mkdir()
            (making / CLAIMS).touch()
            sealed.write(making / SPEC, document)
            try:
                os.rename(making, directory)  # onto an empty directory, at most
            except OSError as error:
                raise taken if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else error from None
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        files.sync_directory(directory.parent)
        return cls(directory)

    @property
    def format(self) -> Format:
        """Of its shards."""
        return FORMATS[self.spec.output]

    def file_of(self, shard: int) -> Path:
        """A shard's strokes."""
        return self.directory / STROKES / f"part-{shard:06d}{self.format.suffix}"

    def record_of(self, shard: int) -> Path:
        """A shard's record."""
        return self.directory / RECORDS / f"part-{shard:06d}.json"

    def model(self, device: Any = "cpu") -> FusedLSTMMDN:
        """The weights.

        Raises:
            JobError: they are missing, damaged, or not those that the job was made with; the message names the file.
        """
        directory = self.directory / self.spec.checkpoint["path"]
        try:
            found = _sealed_with(directory)
            if found != self.spec.checkpoint["sha256"]:
                raise JobError(f"{directory / CONFIG}: these are not the job's weights: SHA-256 {found}, expected "
                               f"{self.spec.checkpoint['sha256']}")  # fmt: skip
            return load_model(directory, device)
        except (CheckpointError, sealed.SealError, OSError) as error:
            raise JobError(f"the job's weights: {error}") from error

    def prime(self) -> StrokeSet | None:
        """The prefixes, if there are any; raises JobError as `model`."""
        if self.spec.prime is None:
            return None
        path = self.directory / self.spec.prime["path"]
        try:
            found = _sha256(path)
        except OSError as error:
            raise JobError(f"{path}: cannot be read: {error}") from error
        if found != self.spec.prime["sha256"]:
            raise JobError(f"{path}: damaged: SHA-256 {found}, expected {self.spec.prime['sha256']}")
        return load_strokes(path)

    def read_record(self, shard: int) -> Record | None:
        """What is recorded of a shard; None if nothing is.

        Raises:
            JobError: the record is damaged, or another's.
        """
        path = self.record_of(shard)
        try:
            document = sealed.read(path, RECORD_FORMAT)
        except FileNotFoundError:
            return None
        except sealed.SealError as error:
            unreadable = isinstance(error.__cause__, OSError)
            raise (Unreadable if unreadable else JobError)(str(error)) from error
        if document.get("job") != self.digest:
            raise JobError(f"{path}: is of another job: {document.get('job')!r}, expected {self.digest!r}")
        return self._record(path, {key: value for key, value in document.items() if key not in RECORD_FRAME}, shard)

    def records(self, partial: bool = False) -> list[Record]:
        """Of all shards, or with `partial` of those that are written.

        Raises:
            JobError: a shard is not written, or a record is damaged.
        """
        records = [self.read_record(shard) for shard in range(self.spec.shards)]
        missing = records.count(None)
        if missing and not partial:
            raise JobError(
                f"{self.directory}: {missing} of {self.spec.shards} shards are not written, "
                f"number {records.index(None)} first; `fusedmdn jobs run` makes them"
            )
        return [record for record in records if record is not None]

    def _record(self, path: Path, document: Any, shard: int) -> Record:
        sequences = self.spec.sequences_of(shard)
        if not isinstance(document, dict) or {key: type(value) for key, value in document.items()} != RECORDED:
            raise JobError(f"{path}: is no record of shard {shard}: {document!r}")
        record = Record(**document)
        found = record.shard, record.file, record.first, record.sequences
        expected = shard, self.file_of(shard).name, sequences.start, len(sequences)
        if found != expected:
            raise JobError(f"{path}: is no record of shard {shard}: expected {expected}, got {found}")
        return record

    def write_record(self, record: Record) -> None:
        """Record a shard whose file is in its place."""
        document = {"format": RECORD_FORMAT, "job": self.digest, **vars(record)}
        sealed.write(self.record_of(record.shard), document)

    def trouble(self, record: Record) -> str | None:
        """What is wrong with a recorded shard's file, named; None if it is what the record says.

        Raises:
            Unreadable: nobody can tell.
        """
        path = self.directory / STROKES / record.file
        try:
            size = path.stat().st_size
            if size != record.bytes:
                return f"{path}: damaged: {size} bytes, expected {record.bytes}"
            found = _sha256(path)
        except FileNotFoundError:
            return f"{path}: is missing, and recorded as written"
        except OSError as error:
            raise Unreadable(f"{path}: cannot be read: {error}") from error
        return None if found == record.digest else f"{path}: damaged: SHA-256 {found}, expected {record.digest}"

    def done(self, shard: int) -> Record | None:
        """The record of a shard that is there and verified; None where it is to be made (again)."""
        try:
            record = self.read_record(shard)
            return None if record is None or self.trouble(record) else record
        except JobError:
            return None

    def read_manifest(self) -> list[Record] | None:
        """All records, as the manifest has them; None if there is no manifest yet.

        Raises:
            JobError: it is damaged, or another job's.
        """
        path = self.directory / MANIFEST
        try:
            document = sealed.read(path, MANIFEST_FORMAT)
        except FileNotFoundError:
            return None
        except sealed.SealError as error:
            raise JobError(str(error)) from error
        shards = document.get("shards")
        if document.get("job") != self.digest or not isinstance(shards, list) or len(shards) != self.spec.shards:
            raise JobError(f"{path}: is not of this job's {self.spec.shards} shards")
        return [self._record(path, shard, k) for k, shard in enumerate(shards)]

    def write_manifest(self) -> bool:
        """Write it if every shard is recorded; whether they are."""
        try:
            records = [vars(record) for record in self.records()]
        except JobError:  # one is missing, or is damaged: whoever made it, or makes it, has to look
            return False
        totals = {name: sum(record[name] for record in records) for name in ("sequences", "points", "bytes")}
        document = {"format": MANIFEST_FORMAT, "job": self.digest, **totals, "shards": records}
        sealed.write(self.directory / MANIFEST, document)
        return True

    def make_folders(self) -> None:
        """Where shards and records lie, if somebody deleted them."""
        for name in (STROKES, RECORDS):
            (self.directory / name).mkdir(exist_ok=True)

    @contextlib.contextmanager
    def claim(self, shards: range) -> Iterator[None]:
        """Nobody else makes these shards, in a process that claims them, until the block or this process ends.

        Raises:
            JobError: another process has claimed one of them.
        """
        if fcntl is None:
            yield
            return
        with open(os.open(self.directory / CLAIMS, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(shards), shards.start)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise JobError(
                        f"{self.directory}: another process is at work on some of the shards "
                        f"{shards.start}:{shards.stop}; --shards divides a job"
                    ) from error
                if error.errno not in LOCKLESS:
                    raise
            yield

    def leftovers(self, shards: range | None = None) -> list[Path]:
        """Temporary files of writers that were killed, or are at work: of some shards, or of the whole job.

        Of the whole job also the directories in which a process that was killed had begun to make it.
        """
        folders = self.directory, self.directory / STROKES, self.directory / RECORDS
        found = sorted(path for folder in folders for path in folder.glob(".*.tmp"))
        if shards is None:
            here = self.directory.absolute()
            begun = re.compile(rf"\.{re.escape(here.name)}\.[a-z0-9_]{{8}}\.tmp")
            return found + sorted(path for path in here.parent.glob(".*.tmp") if begun.fullmatch(path.name))
        names = {path.name for k in shards for path in (self.file_of(k), self.record_of(k))}
        if len(shards) == self.spec.shards:
            names.add(MANIFEST)  # which nobody else can be writing
        return [path for path in found if path.name[1:].rsplit(".", 2)[0] in names]


RECORD_FRAME = ("format", "job", "sha256")
RECORDED = {field.name: {"int": int, "str": str}[str(field.type)] for field in dataclasses.fields(Record)}


def _sealed_with(directory: Path) -> str:
    return str(sealed.read(locate(directory) / CONFIG, CHECKPOINT_FORMAT)["sha256"])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
