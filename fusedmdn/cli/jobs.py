"""`fusedmdn jobs`: bulk sampling in shards, which survives being killed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .. import jobs, render
from ..jobs.creating import SHARD_SIZE
from ..signals import stopping
from .common import (
    Checkpoint,
    Device,
    Threads,
    check_output,
    console,
    device_of,
    given,
    say,
    told_plainly,
)

app = typer.Typer(
    help="Sample millions of sequences in shards; killed anywhere, `run` goes on. The bytes depend on the spec alone.",
    no_args_is_help=True,
)
OF_RAY = {"workers", "num_cpus", "num_gpus", "address", "retries", "wait"}
OF_LOCAL = {"device", "threads"}
Directory = Annotated[Path, typer.Argument(help="Directory of the job.", metavar="JOB")]


@app.command()
@told_plainly
def create(
    directory: Directory,
    checkpoint: Checkpoint,
    n: Annotated[int, typer.Option("-n", help="Sequences.", min=1)],
    seed: Annotated[int, typer.Option(help="Sequence i is a function of the weights, the seed and i.")] = 0,
    first_index: Annotated[int, typer.Option(help="Index of the first sequence.", min=0)] = 0,
    shard_size: Annotated[int, typer.Option(help="Sequences of a shard.", min=1)] = SHARD_SIZE,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences drawn at once; default: 500, on a GPU what fits 256 MiB.", min=1)
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Rows of a sequence that does not end by itself.", min=1)] = 500,
    bias: Annotated[float, typer.Option(help="Neater samples (Graves: 0 to 10).", min=0)] = 0.0,
    temperature: Annotated[float, typer.Option(help="Below 1 more typical, above 1 wilder.")] = 1.0,
    prime: Annotated[
        Path | None, typer.Option(help="Strokes, as train takes them; sequence i goes on from number i (modulo).")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the weights: float32, or bf16 (faster).")] = "float32",
    plan: Annotated[
        str | None, typer.Option(help="On a GPU: resident, rows or graph; default: the batch's best.")
    ] = None,
    output: Annotated[
        str, typer.Option(help="parquet; npz (stroke-3, what train reads); or svg (a zip of drawings a shard).")
    ] = "parquet",
    device: Device = "auto",
) -> None:
    """Write the spec, with this machine's versions, and a copy of the weights; nothing is sampled yet."""
    job = jobs.create(
        directory, checkpoint, n, seed=seed, first_index=first_index, shard_size=shard_size, batch_size=batch_size,
        max_steps=max_steps, bias=bias, temperature=temperature, precision=precision, plan=plan, prime=prime,
        output=output, device=device_of(device, None),
    )  # fmt: skip
    needs = ", ".join(f"{name} {value}" for name, value in job.spec.environment.items())
    say(f"{n:,} sequences in {job.spec.shards:,} shards; bits of {needs}")
    say(f"fusedmdn jobs run {directory}")


@app.command()
@told_plainly
def run(
    context: typer.Context,
    directory: Directory,
    shards: Annotated[
        str | None, typer.Option(help="a:b, from a to before b: for Slurm arrays and Kubernetes jobs.", metavar="A:B")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local (this process), or ray (many, on one machine or a cluster).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Ray: actors, each with the model; default: as many as fit.", min=1)
    ] = None,
    num_cpus: Annotated[int, typer.Option(help="Ray: CPUs, and threads, of an actor.", min=1)] = 1,
    num_gpus: Annotated[float, typer.Option(help="Ray: GPUs of an actor; default: 1 for a GPU's job.", min=0)] = 0,
    address: Annotated[
        str | None, typer.Option(help="Ray: of a running cluster; default: $RAY_ADDRESS, else one here.")
    ] = None,
    retries: Annotated[int, typer.Option(help="Ray: of a shard whose actor dies.", min=0)] = 3,
    wait: Annotated[float, typer.Option(help="Ray: seconds to wait for free CPUs and GPUs.", min=0)] = 60,
    device: Annotated[str | None, typer.Option(help="local: cuda:1, …; default: what the job is of.")] = None,
    threads: Threads = None,
) -> None:
    """Make the shards that are missing or damaged. Exit code 1 if one could not be made, 130 or 143 if stopped."""
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be local or ray; got {engine!r}")
    other = OF_RAY if engine == "local" else OF_LOCAL
    if unused := given(context) & other:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        raise ValueError(f"{names}: of no use to the engine {engine}")
    job = jobs.Job(directory)
    if job.spec.environment["backend"] == "cpu" and torch.cuda.is_available():
        say("this job is one of the CPU, as the machine was where it was made; the GPU here is not used")
    wanted = jobs.check_range(job, None if shards is None else _range(shards))
    if engine == "ray":
        from ..jobs.ray_engine import on_ray

        chosen = on_ray(workers, num_cpus, num_gpus, address=address, retries=retries, wait=wait)
    else:
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = jobs.in_this_process(None if device is None else device_of(device, None))
    with stopping() as stop, _progress(job, stop) as reports:
        result = jobs.run(job, wanted, chosen, reports)
    points = sum(record.points for record in result.written)
    say(
        f"{len(result.written)} shards written ({points:,} points), {result.kept} were there and verified"
        + (f", {len(result.failed)} failed" if result.failed else "")
    )
    if result.stopped:
        say(f"stopped; `fusedmdn jobs run {directory}` goes on")
        raise SystemExit(128 + stop[0])
    if result.failed:
        raise typer.Exit(1)
    say("complete: the manifest is written" if result.complete else "shards of other ranges are still to be written")


@app.command()
@told_plainly
def status(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How far it is, by records and sizes alone; `verify` reads every byte."""
    job = jobs.Job(directory)
    found = jobs.status(job)
    if as_json:
        document = {"shards": job.spec.shards, "written": len(found.written)}
        fields = "missing", "damaged", "sequences", "points", "bytes", "problems", "complete"
        typer.echo(json.dumps(document | {name: getattr(found, name) for name in fields}))
        return
    say(f"{len(found.written):,} of {job.spec.shards:,} shards written: {_held(found)}")
    if found.missing or found.damaged:
        say(f"to be made: {_ranges(sorted({*found.missing, *found.damaged}))}")
    _tell(found)
    say("complete" if found.complete else f"`fusedmdn jobs run {directory}` makes what is to be made")


@app.command()
@told_plainly
def verify(
    directory: Directory,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Delete leftovers of killed writers, and damaged shards: run makes them again."),
    ] = False,
) -> None:
    """Read every byte against its SHA-256. Exit code 1 if something is missing, damaged or left over."""
    job = jobs.Job(directory)
    with _shards_bar(job.spec.shards) as on_shard:
        found = jobs.verify(job, clean, on_shard)
    say(f"{len(found.written):,} of {job.spec.shards:,} shards are what was written: {_held(found)}")
    if found.missing:
        say(f"not written: {_ranges(found.missing)}")
    _tell(found)
    if clean and (found.damaged or found.leftovers):
        say(f"deleted {len(found.damaged)} damaged shards and {len(found.leftovers)} leftovers")
    if not found.complete or (found.leftovers and not clean):
        raise typer.Exit(1)
    say("complete and verified")


@app.command()
@told_plainly
def merge(
    directory: Directory,
    out: Annotated[Path, typer.Argument(help="One file: .parquet, .npz, or .zip (a drawing a sequence).")],
) -> None:
    """Write a complete job into one file, each shard verified on the way."""
    job = jobs.Job(directory)
    check_output(out, ".parquet", ".npz", ".zip")
    with _shards_bar(job.spec.shards) as on_shard:
        n = jobs.merge(job, out, on_shard)
    say(f"wrote {out}: {n:,} sequences")


@app.command()
@told_plainly
def preview(
    directory: Directory,
    out: Annotated[Path, typer.Option(help=".svg, .png or .gif.")],
    n: Annotated[int, typer.Option("-n", help="Sequences.", min=1)] = 36,
    columns: Annotated[int | None, typer.Option(help="Of the grid; default: a square.", min=1)] = None,
) -> None:
    """Draw some of what is written, spread over the job; before anything is, the first ones as they will be."""
    check_output(out, ".svg", ".png", ".gif")
    strokes = jobs.preview(jobs.Job(directory), n)
    render.draw(strokes, out, columns)
    say(f"wrote {out}: {len(strokes)} sequences")


class _Progress(jobs.Reports):
    """A bar on a terminal, a line a shard elsewhere; and whether somebody asked to stop."""

    def __init__(self, job: jobs.Job, stop: list[int], bar: Progress) -> None:
        self.job, self.stop, self.bar = job, stop, bar
        if not console.is_terminal and any(job.directory.glob("records/*")):
            say("looking at what is there")  # which reads every byte of it
        self.task = bar.add_task("looking at what is there", total=job.spec.shards, numbers="")
        self.points, self.shards, self.total, self.since = 0, 0, 0, time.monotonic()

    def checked(self, shards: int) -> None:
        self.bar.advance(self.task, shards)

    def begun(self, shards: int, sequences: int) -> None:
        self.total, self.since = shards, time.monotonic()
        self.bar.reset(self.task, description="sampling", total=sequences)

    def drawn(self, sequences: int, points: int) -> None:
        self.points += points
        self.bar.update(self.task, advance=sequences, numbers=self._numbers())

    def stopping(self) -> bool:
        return bool(self.stop)

    def written(self, record: jobs.Record) -> None:
        self.shards += 1
        self.bar.update(self.task, numbers=self._numbers())
        if not console.is_terminal:
            told = f"{record.sequences:,} sequences, {record.points:,} points, {record.bytes / 1e6:,.1f} MB"
            say(f"shard {record.shard} ({self.shards} of {self.total}): {told}; {self._rate()}")

    def failed(self, shard: int, reason: str) -> None:
        self.shards += 1
        self.bar.console.print("[red]error:[/]", escape(reason), highlight=False, soft_wrap=True)

    def said(self, line: str) -> None:
        self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _numbers(self) -> str:
        return f"{self.shards:,} of {self.total:,} shards  {self._rate()}"

    def _rate(self) -> str:
        return f"{self.points / max(time.monotonic() - self.since, 1e-9):,.0f} points/s"


@contextmanager
def _progress(job: jobs.Job, stop: list[int]) -> Iterator[_Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, expand=True, transient=True, disable=not console.is_terminal) as bar:
        yield _Progress(job, stop, bar)


@contextmanager
def _shards_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of shards; gives the function that is told of each."""
    columns = TextColumn("reading"), BarColumn(bar_width=None), TaskProgressColumn(), TimeRemainingColumn(compact=True)
    with Progress(*columns, console=console, expand=True, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda shard: bar.advance(task)


def _range(text: str) -> range:
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    if match is None:
        raise ValueError(f"shards: expected a:b, as 0:100, got {text!r}")
    return range(int(match[1]), int(match[2]))


def _ranges(numbers: list[int]) -> str:
    """Numbers as a:b, in the words of --shards."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    told = ", ".join(f"{a}:{b}" for a, b in runs[:8])
    return f"shards {told}" + (f" and {len(runs) - 8} ranges more" if len(runs) > 8 else "")


def _held(found: jobs.Status) -> str:
    return f"{found.sequences:,} sequences, {found.points:,} points, {found.bytes / 1e6:,.1f} MB"


def _tell(found: jobs.Status) -> None:
    for problem in found.problems:
        say(f"wrong: {problem}")
    for path in found.strays:
        say(f"no file of this job, and left alone: {path}")
    for path in found.leftovers:
        say(f"left over, or being written: {path}")
