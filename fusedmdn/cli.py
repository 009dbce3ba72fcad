"""The command `fusedmdn`: info, doctor, train, sample, eval, tune."""

from __future__ import annotations

import json
import platform
import textwrap
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import FusedLSTMMDN, Strokes, __version__, doctor, files, ops, render, tune
from .checkpoint import CheckpointError
from .dataset import PARTS, StrokeFileError, StrokeSet, load
from .doctor.installation import Finding, as_json
from .evaluate import Evaluation, evaluate
from .ops import forced, launch, tuned
from .train import Step, Trainer, TrainingDiverged, TrainOptions

app = typer.Typer(
    help="Train and sample LSTM + mixture density networks that write and draw.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
Function = TypeVar("Function", bound=Callable[..., Any])
Default = TrainOptions()
SAMPLING_PLANS = [name for name, family in forced.FAMILY.items() if family == "generate"]
SAMPLING_DTYPES = {"float32": None, "bf16": torch.bfloat16}
HIDDEN, BATCHES, TUNED_PRECISIONS = [128, 256, 400, 512, 900, 1024], [1, 16, 64, 256, 1024], ["bf16", "float32"]

Data = Annotated[str, typer.Argument(help='A .npz file of strokes, or "kanjivg" (embedded).')]
Checkpoint = Annotated[str, typer.Argument(help='A checkpoint or run directory, or "kanji" (embedded).')]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: torch's.", min=1)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]


def _told_plainly(command: Function) -> Function:
    """Expected errors become one line on stderr and exit code 2 (1 where training itself failed)."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except TrainingDiverged as error:
            code, message = 1, str(error)
        except (StrokeFileError, CheckpointError, tune.TuneError, ValueError, OSError, ModuleNotFoundError) as error:
            code, message = 2, str(error)
        except (torch.OutOfMemoryError, forced.PlanError) as error:
            code, message = 2, str(error)
        Console(stderr=True).print("[red]error:[/]", escape(message), highlight=False, soft_wrap=True)
        raise typer.Exit(code)

    return run  # type: ignore[return-value]


def _device(name: str, threads: int | None) -> torch.device:
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _say(line: str) -> None:
    """A line that is not cut where the terminal ends, so that a pipe gets it whole."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
@_told_plainly
def info() -> None:
    """Versions, devices, and which backend runs each operator, and why."""
    _say(f"fusedmdn {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    isa = ops.cpu_isa()
    kernels = f"kernels' instruction set {isa}" if isa else "no kernels"
    _say(f"CPU: {platform.machine()}, {torch.get_num_threads()} threads, {kernels}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    _say(f"CUDA devices: {', '.join(gpus) or 'none'}")
    table = Table("operator", "device", "backend", "why", title="backends")
    for choice in ops.report():
        table.add_row(*choice)
    console.print(table)


@app.command("doctor")
@_told_plainly
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


@app.command()
@_told_plainly
def train(
    context: typer.Context,
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from RUN/last, with the run's own options.")] = False,
    hidden: Annotated[int, typer.Option(help="Units of every LSTM layer.", min=1)] = Default.hidden_size,
    layers: Annotated[int, typer.Option(help="LSTM layers.", min=1)] = Default.num_layers,
    mixtures: Annotated[int, typer.Option(help="Components of the mixture.", min=1)] = Default.num_mixtures,
    pen: Annotated[str, typer.Option(help="categorical (can end) or bernoulli (Graves).")] = Default.pen,
    skip: Annotated[bool, typer.Option("--skip", help="Input to every layer, every layer to the head.")] = False,
    peephole: Annotated[bool, typer.Option("--peephole", help="Peephole connections.")] = False,
    dropout: Annotated[float, typer.Option(help="Between layers.", min=0, max=1)] = Default.dropout,
    optimizer: Annotated[str, typer.Option(help="adam, or graves (his RMSProp).")] = Default.optimizer,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate (adam: 0.002, graves: 0.0001).")] = Default.lr,
    schedule: Annotated[str, typer.Option(help="cosine or constant.")] = Default.schedule,
    warmup: Annotated[int, typer.Option(help="Steps of rising rate.")] = Default.warmup,
    epochs: Annotated[int, typer.Option(help="Passes over the training part.")] = Default.epochs,
    batch_size: Annotated[int, typer.Option(help="Sequences of a step.")] = Default.batch_size,
    clip_norm: Annotated[
        float | None, typer.Option(help="Bound of the gradient's norm (1; none with --clip-gates or --clip-output).")
    ] = Default.clip_norm,
    clip_gates: Annotated[
        float | None, typer.Option(help="Bound of gate gradients at every step of backpropagation (Graves: 10).")
    ] = Default.clip_gates,
    clip_output: Annotated[
        float | None, typer.Option(help="Bound of the raw output's gradient (Graves: 100).")
    ] = Default.clip_output,
    augment: Annotated[float, typer.Option(help="Random stretch and shear, standard deviation.")] = Default.augment,
    precision: Annotated[str, typer.Option(help="float32, or bf16 (autocast).")] = Default.precision,
    patience: Annotated[int, typer.Option(help="Validations without a better one before it stops.")] = Default.patience,
    validate_every: Annotated[int, typer.Option(help="Epochs between validations.")] = Default.validate_every,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = Default.checkpoint_every,
    log_every: Annotated[int, typer.Option(help="Steps between lines of metrics.jsonl.")] = Default.log_every,
    seed: Annotated[int, typer.Option(help="Of weights, batches, noise and dropout.")] = Default.seed,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train a network on strokes; RUN/best and RUN/last are checkpoints, RUN/metrics.jsonl the curve."""
    where, strokes = _device(device, threads), load(data)
    if resume:
        changed = _given(context) - {"data", "out", "resume", "device", "threads"}
        if changed:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(changed))
            raise ValueError(f"--resume goes on with the run's own options; {names} cannot be given again")
        trainer = Trainer.resume(strokes, out, where)
    else:
        options = TrainOptions(
            hidden_size=hidden, num_layers=layers, num_mixtures=mixtures, pen=pen, skip=skip, peephole=peephole,
            dropout=dropout, clip_gates=clip_gates, clip_output=clip_output, optimizer=optimizer, lr=lr,
            schedule=schedule, warmup=warmup, epochs=epochs, batch_size=batch_size, clip_norm=clip_norm,
            augment=augment, precision=precision, patience=patience, validate_every=validate_every,
            checkpoint_every=checkpoint_every, log_every=log_every, seed=seed,
        )  # fmt: skip
        trainer = Trainer(options, strokes, out, where)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    _say(
        f"{len(trainer.train_part)} sequences to train on, {len(trainer.validation_part)} to judge by; "
        f"{parameters:,} parameters; {trainer.steps} steps; {where.type}"
    )
    try:
        _run_with_progress(trainer)
    except SystemExit:
        _say(f"stopped at step {trainer.step} of {trainer.steps}; saved in {out / 'last'}, go on with --resume")
        raise
    _say(f"best on validation: {trainer.best:.3f} nats per row, in {out / 'best'}")


def _given(context: typer.Context) -> set[str]:
    """The parameters that the user gave."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _run_with_progress(trainer: Trainer) -> None:
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("training", total=trainer.steps, completed=trainer.step, numbers="")
        rows, since = 0, bar.get_time()

        def on_step(step: Step) -> None:
            nonlocal rows, since
            rows += step.rows
            now = bar.get_time()
            if now - since > 1 or step.step == 1:
                numbers = (
                    f"{rows / max(now - since, 1e-9):,.0f} points/s {step.nats_per_row:+.2f} nats/point "
                    f"{step.nats_per_sequence:+.0f} nats/seq |g| {step.grad_norm:.2f}"
                )
                bar.update(task, numbers=numbers)
                rows, since = 0, now
            if step.skipped:
                bar.console.print(f"step {step.step}: loss or gradient not finite; skipped", highlight=False)
            bar.update(task, completed=step.step)

        def on_validation(step: int, result: Evaluation, better: bool) -> None:
            bar.console.print(
                f"step {step}: validation {result.nats_per_row:+.4f} nats/row, "
                f"{result.nats_per_sequence:+.1f} nats/sequence, SSE {result.sse:.4f}{'  (best)' if better else ''}",
                highlight=False,
                soft_wrap=True,
            )

        trainer.run(on_step, on_validation)


@app.command()
@_told_plainly
def sample(
    checkpoint: Checkpoint,
    out: Annotated[list[Path], typer.Option(help=".svg, .png, .gif or .npz; may be given several times.")],
    n: Annotated[int, typer.Option("-n", help="Sequences.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Sequence i is a function of the weights, the seed and i.")] = 0,
    first_index: Annotated[int, typer.Option(help="Index of the first sequence.", min=0)] = 0,
    bias: Annotated[float, typer.Option(help="Neater samples (Graves: 0 to 10).", min=0)] = 0.0,
    temperature: Annotated[float, typer.Option(help="Below 1 more typical, above 1 wilder.")] = 1.0,
    max_steps: Annotated[int, typer.Option(help="Rows of a sequence that does not end by itself.", min=1)] = 500,
    prime: Annotated[
        Path | None, typer.Option(help="A .npz file; its first sequence is what each goes on from.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the weights: float32, or bf16 (faster).")] = "float32",
    plan: Annotated[
        str | None,
        typer.Option(help="On a GPU: resident, rows or graph. Default: by -n, on which bits then depend."),
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Of the grid; default: a square.", min=1)] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Sample sequences and draw them (.svg, .png, .gif) or keep them as strokes (.npz)."""
    if precision not in SAMPLING_DTYPES:
        raise ValueError(f"precision must be one of {', '.join(SAMPLING_DTYPES)}; got {precision!r}")
    if plan not in (None, *SAMPLING_PLANS):
        raise ValueError(f"plan must be one of {', '.join(SAMPLING_PLANS)}; got {plan!r}")
    for path in out:
        if path.suffix not in (".svg", ".png", ".gif", ".npz"):
            raise ValueError(f"{path}: the output ends in .svg, .png, .gif or .npz")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no directory {path.parent}")
        if path.is_dir():
            raise ValueError(f"{path}: is a directory")
        if path.suffix in (".png", ".gif"):
            render.pillow()
    where = _device(device, threads)
    model = FusedLSTMMDN.from_pretrained(checkpoint, where)
    given = None if prime is None else _first(prime)
    rows = None
    if given is not None:
        rows = torch.from_numpy(given.rows(model.pen, model.scale)[: len(given)])  # without its end row
    run = partial(
        model.generate,
        n,
        seed=seed,
        first_index=first_index,
        bias=bias,
        temperature=temperature,
        prime=rows,
        dtype=SAMPLING_DTYPES[precision],
        to="cpu",
    )
    with nullcontext() if plan is None else ops.plan(plan):
        run(max_steps=1 if where.type == "cuda" else 0)  # a first call loads and compiles, which is not sampling
        started = time.monotonic()
        batch = run(max_steps=max_steps)
    points = int(batch.lengths.sum())
    rate = points / max(time.monotonic() - started, 1e-9)
    strokes = list(batch)
    if given is not None:
        strokes = [Strokes(np.concatenate([given.points, s.points])) for s in strokes]
    for path in sorted(out, key=lambda path: path.suffix != ".npz"):  # what cannot be drawn again first
        if path.suffix == ".npz":
            StrokeSet.of(strokes).save(path)
        else:
            render.draw(strokes, path, columns)
        _say(f"wrote {path}")
    ended = int(batch.state.done.sum())
    ending = f"; {ended} of them ended by themselves" if model.pen == "categorical" else ""
    _say(f"{n} sequences, {points:,} points ({rate:,.0f} points per second){ending}")


def _first(source: Path) -> Strokes:
    strokes = load(source)
    if not len(strokes) or not len(strokes[0]):
        raise ValueError(f"{source}: has no first sequence to go on from")
    return strokes[0]


@app.command("eval")
@_told_plainly
def evaluate_command(
    checkpoint: Checkpoint,
    data: Data,
    part: Annotated[str, typer.Option(help="train, validation, test or all.")] = "validation",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Nats per point and per sequence, and SSE, of a part of the data, in the checkpoint's units."""
    if part not in (*PARTS, "all"):
        raise ValueError(f"part must be one of {', '.join(PARTS)} or all; got {part!r}")
    model = FusedLSTMMDN.from_pretrained(checkpoint, _device(device, threads))
    strokes = load(data)
    result = evaluate(model, strokes if part == "all" else strokes.part(part))
    table = Table("measure", "value", title=escape(f"{checkpoint} on {data} ({part})"))
    table.add_row("nats per point (row)", f"{result.nats_per_row:.4f}")
    table.add_row("  of which the pen", f"{result.pen_nats_per_row:.4f}")
    table.add_row("nats per sequence", f"{result.nats_per_sequence:.2f}")
    table.add_row("SSE per point", f"{result.sse:.5f}")
    table.add_row("rows", f"{result.rows:,}")
    table.add_row("sequences", f"{result.sequences:,}")
    console.print(table)


@app.command("tune")
@_told_plainly
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
    where = _device(device, None)
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
        _say(f"{len(sizes)} sizes; the choices would be written to {path}")
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
            _say(f"{sum(bool(r.medians) for r in results)} of {len(sizes)} sizes written to {path}")


def _tuned_table(results: list[tune.Result], name: str) -> Table:
    columns = ("H", "B", "precision", "direction", "plan", "µs a step", "unmeasured choice", "its µs a step")
    table = Table(*columns, title=escape(f"measured on {name}"))
    for result in results:
        size, times = result.size, {plan: f"{1e6 * seconds:.2f}" for plan, seconds in result.medians.items()}
        chosen = (tune.title(result.best), times[result.best]) if times else ("none", "")
        static = tune.title(result.static), times.get(result.static, "left out")
        table.add_row(str(size.H), str(size.B), size.precision, size.direction, *chosen, *static)
    return table


if __name__ == "__main__":
    app()
