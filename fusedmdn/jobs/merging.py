"""One file of a whole job, and some of its sequences to look at."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import files
from ..strokes import Strokes
from .errors import JobError
from .formats import FORMATS, put
from .job import Job
from .reading import bytes_of, decoded
from .shard import ShardWriter

BY_ENDING = {format.suffix: format for format in FORMATS.values()}
LOOKED_AT = 16  # shards that are read to be looked at, at most


def merge(job: Job, out: str | Path, on_shard: Callable[[int], None] = lambda shard: None) -> int:
    """Write all of a job's sequences into one file, atomically, each shard checked on the way; gives their number.

    Parquet and zip are written shard by shard; for .npz all points are in memory at once.

    Args:
        job: which; complete.
        out: ends in .parquet (a row group a shard), .npz, or .zip (a drawing a sequence).
        on_shard: told of each shard that was read.

    Raises:
        JobError: a shard is missing or damaged, the ending is another, or drawings are to become strokes.
        OSError: it cannot be written; what was there is intact.
    """
    out = Path(out)
    if out.suffix not in BY_ENDING:
        raise JobError(f"{out}: the output ends in {', '.join(BY_ENDING)}")
    if job.format.decode is None and out.suffix != job.format.suffix:
        raise JobError(f"{out}: a job of drawings becomes one {job.format.suffix} file; strokes cannot be had of it")
    records = job.records()
    about = {"job": job.digest}
    with files.replacing(out) as sink:
        if job.format.decode is None:
            with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
                for record in records:
                    with zipfile.ZipFile(io.BytesIO(bytes_of(job, record))) as part:
                        for name in part.namelist():
                            put(archive, name, part.read(name))
                    on_shard(record.shard)
        else:
            with BY_ENDING[out.suffix].writer(sink, about) as write:
                for record in records:
                    write(decoded(job, record))
                    on_shard(record.shard)
    return sum(record.sequences for record in records)


def preview(job: Job, n: int) -> list[Strokes]:
    """n of the sequences that are written, spread over the job.

    Where none are, and of a job of drawings, the first n of its first shard, drawn here and now.

    Raises:
        JobError: a shard that is looked at is damaged.
        EnvironmentRefused: they are to be drawn, and this machine would write other bits.
    """
    records = job.records(partial=True)
    if job.format.decode is None or not records:
        writer, chosen, size = ShardWriter(job), job.spec.sequences_of(0)[:n], job.spec.batch_size
        return [s for k in range(0, len(chosen), size) for s in writer.draw(chosen[k : k + size])]
    looked_at = [records[k] for k in _spread(len(records), min(n, LOOKED_AT))]
    wanted = _spread(sum(record.sequences for record in looked_at), n)
    strokes: list[Strokes] = []
    first = 0
    for record in looked_at:
        piece = decoded(job, record)
        strokes += [piece.strokes[i - first] for i in wanted if first <= i < first + record.sequences]
        first += record.sequences
    return strokes


def _spread(total: int, n: int) -> list[int]:
    """n of range(total), or all, at equal distances."""
    return np.unique(np.linspace(0, total - 1, min(n, total)).round().astype(int)).tolist()
