"""`fusedmdn info`, `doctor` and `tune`: what this machine runs, whether it is right, and which plans are fastest."""

from __future__ import annotations

import json
import platform
import textwrap
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .. import __version__, doctor, files, ops, tune
from ..doctor.installation import Finding, as_json
from ..ops import launch, tuned
from .common import Device, Threads, console, device_of, say, told_plainly

HIDDEN, BATCHES, TUNED_PRECISIONS = [128, 256, 400, 512, 900, 1024], [1, 16, 64, 256, 1024], ["bf16", "float32"]


@told_plainly
def info() -> None:
    """Versions, devices, and which backend runs each operator, and why."""
    say(f"fusedmdn {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    isa = ops.cpu_isa()
    kernels = f"kernels' instruction set {isa}" if isa else "no kernels"
    say(f"CPU: {platform.machine()}, {torch.get_num_threads()} threads, {kernels}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    say(f"CUDA devices: {', '.join(gpus) or 'none'}")
    table = Table("operator", "device", "backend", "why", title="backends")
    for choice in ops.report():
        table.add_row(*choice)
    console.print(table)


@told_plainly
def doctor_command(
    device: Device = "auto",
    threads: Threads = None,
    report: Annotated[Path | None, typer.Option("--json", help="The same, for a bug report.")] = None,
) -> None:
    """Check this installation in under a minute: every operator beside plain PyTorch, versions, plans, speed.

    The CPU is always checked, and the GPU in use, where the first run takes longer: it compiles the kernels. Exit code
    1 if something is wrong.
    """
    if report is not None and not report.parent.is_dir():
        raise ValueError(f"{report}: there is no directory {report.parent}")
    if threads is not None:
        torch.set_num_threads(threads)
    found: list[Finding] = []
    for finding in doctor.examine(device):
        if not found or found[-1].part != finding.part:
            console.print(finding.part, style="bold", markup=False, highlight=False, soft_wrap=True)
        _indented(f"  {finding.name:22} {finding.value}", "red" if finding.problems else None)
        found.append(finding)
    problems = [problem for finding in found for problem in finding.problems]
    if report is not None:
        content = {"good": not problems, "findings": [as_json(finding) for finding in found]}
        files.write(report, json.dumps(content, indent=2) + "\n")
    if not problems:
        console.print("all good", style="bold green")
        return
    console.print("what is wrong", style="bold red")
    for problem in problems:
        _indented(f"  {problem.wrong}", "red", 4)
        _indented(f"    {problem.remedy}", None, 6)
    raise typer.Exit(1)


def _indented(line: str, style: str | None, indent: int = 25) -> None:
    """A line that a terminal wraps under its own beginning, and that a pipe gets whole."""
    if console.is_terminal:
        width = max(console.width, 2 * indent)
        line = textwrap.fill(
            line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@told_plainly
def tune_command(
    hidden: Annotated[list[int], typer.Option(help="Units of a layer; may be given several times.", min=1)] = HIDDEN,
    batch: Annotated[list[int], typer.Option(help="Sequences; may be given several times.", min=1)] = BATCHES,
    precision: Annotated[
        list[str], typer.Option(help="bf16, fp16, float32, or tf32 (where torch's setting allows it).")
    ] = TUNED_PRECISIONS,
    steps: Annotated[int, typer.Option(help="Of a run that is timed.", min=1)] = 100,
    rounds: Annotated[int, typer.Option(help="Runs of every plan, of which the median counts.", min=1)] = 20,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, …")] = "cuda",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be measured.")] = False,
) -> None:
    """Measure which plan of the LSTM is fastest on this GPU for given sizes; later calls take it.

    Other batches take the plan of the next larger size measured. The choices are kept in
    plans-DEVICE-triton-VERSION.json, in $FUSEDMDN_CACHE, else in fusedmdn of $XDG_CACHE_HOME or ~/.cache.
    """
    where = device_of(device, None)
    name = tune.gpu_name(where)
    path = tuned.path_of(name)
    sizes = tune.sizes(hidden, batch, precision)
    tune.read(path, name)
    if dry_run:
        table = Table("H", "B", "precision", "direction", "plans", title=escape(f"to be measured on {name}"))
        properties = launch.device_of(torch.empty(0, device=where))
        for size in sizes:
            plans = ", ".join(tune.title(plan) for plan in tune.candidates(size, properties))
            table.add_row(str(size.H), str(size.B), size.precision, size.direction, plans)
        console.print(table)
        say(f"{len(sizes)} sizes; the choices would be written to {path}")
        return
    results: list[tune.Result] = []
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(compact=True), TextColumn("{task.fields[size]}"))
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("tuning", total=len(sizes), size=str(sizes[0]))
            for result in tune.tune(sizes, where, name, path, steps=steps, rounds=rounds):
                results.append(result)
                for plan, reason in result.left_out.items():
                    line = f"{result.size}: {tune.title(plan)} is left out: {' '.join(reason.split())}"
                    bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
                bar.update(task, completed=len(results), size=str(sizes[min(len(results), len(sizes) - 1)]))
    finally:
        if results:
            console.print(_tuned_table(results, name))
            say(f"{sum(bool(r.medians) for r in results)} of {len(sizes)} sizes written to {path}")


def _tuned_table(results: list[tune.Result], name: str) -> Table:
    columns = ("H", "B", "precision", "direction", "plan", "µs a step", "unmeasured choice", "its µs a step")
    table = Table(*columns, title=escape(f"measured on {name}"))
    for result in results:
        size, times = result.size, {plan: f"{1e6 * seconds:.2f}" for plan, seconds in result.medians.items()}
        chosen = (tune.title(result.best), times[result.best]) if times else ("none", "")
        static = tune.title(result.static), times.get(result.static, "left out")
        table.add_row(str(size.H), str(size.B), size.precision, size.direction, *chosen, *static)
    return table
