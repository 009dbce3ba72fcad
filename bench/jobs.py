"""`python -m bench.jobs`: what a sampling job costs beside sampling alone, and whether its memory stays flat.

Wall time: of a job from an existing directory to its manifest (weights read, shards sampled, encoded, flushed,
recorded). Before each shard `generate` draws the same sequences; the seconds of that are what the job's others are
compared with. Writing: of the job's seconds those that are not drawing. Memory: what is resident after each shard of a
job of many small ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fusedmdn import files, jobs
from fusedmdn.jobs.shard import ShardWriter

from .environment import describe
from .models import build

SEED = 0
SETTLED = 20  # shards after which memory is looked at


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.jobs", description=__doc__)
    parser.add_argument("--model", default="B", help="A to D or 1xH")
    parser.add_argument("-n", type=int, default=10_000, help="sequences")
    parser.add_argument("--max-steps", type=int, default=600)
    parser.add_argument("--shard-size", type=int, default=1_000)
    parser.add_argument("--output", default="parquet", help="parquet, npz or svg")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shards", type=int, default=200, help="of the job whose memory is looked at")
    parser.add_argument("--out", type=Path, default=Path("bench/results/jobs.json"), metavar="FILE")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = {"environment": describe(given.threads)}
        found["cost"] = cost(given, Path(scratch))
        found["memory"] = memory(given.shards, Path(scratch))
    files.write(given.out, json.dumps(found, indent=1) + "\n")
    for line in told(found["cost"], found["memory"]):
        print(line)
    return 0


def told(cost: dict[str, Any], memory: dict[str, Any]) -> list[str]:
    """What was found, in lines."""
    return [
        f"generate alone {cost['generate']:.1f} s, the job {cost['job']:.1f} s: {cost['ratio']:.3f} times",
        f"writing takes {cost['writing_share']:.2%} of drawing; {cost['bytes'] / 1e6:,.0f} MB",
        f"resident after {SETTLED} shards {memory['settled'] / 1e6:.1f} MB, "
        f"at most {memory['most'] / 1e6:.1f} MB until the {memory['shards']}th",
    ]


def cost(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Seconds of `generate`, of the job, and in it of drawing; bytes written."""
    model = build(given.model)
    model.save_pretrained(scratch / "model")
    options = {"shard_size": given.shard_size, "max_steps": given.max_steps, "output": given.output}
    job = jobs.create(scratch / "job", scratch / "model", given.n, seed=SEED, **options)
    model.generate(given.shard_size, 2, seed=SEED)  # weights packed, memory touched
    alone, drawing = Seconds(), Seconds()

    @contextmanager
    def engine(job: jobs.Job, shards: list[int], reports: jobs.Reports) -> Iterator[Iterator[tuple[int, jobs.Record]]]:
        writer = ShardWriter(job)
        writer.draw = drawing.of(writer.draw)  # type: ignore[method-assign]

        def make(shard: int) -> tuple[int, jobs.Record]:
            sequences = job.spec.sequences_of(shard)
            alone.of(model.generate)(len(sequences), given.max_steps, seed=SEED, first_index=sequences.start)
            return shard, writer.write(shard)

        yield map(make, shards)

    began = time.perf_counter()
    result = jobs.run(job, engine=engine)
    whole = time.perf_counter() - began - sum(alone)
    return {
        "model": given.model, "sequences": given.n, **options,
        "generate": sum(alone), "job": whole, "ratio": whole / sum(alone),
        "writing_share": (whole - sum(drawing)) / sum(drawing),
        "bytes": sum(record.bytes for record in result.written), "points": sum(r.points for r in result.written),
    }  # fmt: skip


class Seconds(list[float]):
    """What each call of some function took."""

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls timed."""

        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **options)
            self.append(time.perf_counter() - began)
            return result

        return timed


def memory(shards: int, scratch: Path) -> dict[str, Any]:
    """Resident bytes after each shard of a job of the shipped weights."""
    job = jobs.create(scratch / "many", "kanji", 250 * shards, shard_size=250, max_steps=300)
    resident: list[int] = []

    class Watch(jobs.Reports):
        def written(self, record: jobs.Record) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * 4096)

    jobs.run(job, reports=Watch())
    later = resident[min(SETTLED, shards) - 1 :]
    return {"shards": shards, "settled": later[0], "most": max(later), "all": resident}


if __name__ == "__main__":
    sys.exit(main())
