"""`fusedmdn train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import distributed, preparing
from ..dataset import StrokeSet
from ..distributed import World
from ..evaluate import Evaluation
from ..loaders import load
from ..train import Step, Trainer, TrainOptions, holds_run
from .common import Data, Device, Resample, Simplify, Threads, console, device_of, given, say, told_plainly

Default = TrainOptions()


@told_plainly
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
    batch_size: Annotated[int, typer.Option(help="Sequences of a step, over all processes.")] = Default.batch_size,
    clip_norm: Annotated[
        float | None, typer.Option(help="Bound of the gradient's norm (1; none with --clip-gates or --clip-output).")
    ] = Default.clip_norm,
    clip_gates: Annotated[
        float | None, typer.Option(help="Bound of gate gradients at every step of backpropagation (Graves: 10).")
    ] = Default.clip_gates,
    clip_output: Annotated[
        float | None, typer.Option(help="Bound of the raw output's gradient (Graves: 100).")
    ] = Default.clip_output,
    normalize: Annotated[
        str, typer.Option(help="std: offsets to standard deviation 1; mean-std: their mean to 0 as well.")
    ] = Default.normalize,
    simplify: Simplify = Default.simplify,
    resample: Resample = Default.resample,
    augment: Annotated[float, typer.Option(help="Random stretch and shear, standard deviation.")] = Default.augment,
    drop: Annotated[
        float, typer.Option(help="Probability of a point inside a pen stroke to be left out (sketch-rnn: 0.1).")
    ] = Default.drop,
    precision: Annotated[str, typer.Option(help="float32, or bf16 (autocast).")] = Default.precision,
    patience: Annotated[int, typer.Option(help="Validations without a better one before it stops.")] = Default.patience,
    validate_every: Annotated[int, typer.Option(help="Epochs between validations.")] = Default.validate_every,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = Default.checkpoint_every,
    log_every: Annotated[int, typer.Option(help="Steps between lines of metrics.jsonl.")] = Default.log_every,
    seed: Annotated[int, typer.Option(help="Of weights, batches, noise and dropout.")] = Default.seed,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train a network on strokes; RUN/best and RUN/last are checkpoints, RUN/metrics.jsonl the curve.

    On several processes: torchrun --nproc-per-node N -m fusedmdn train ...
    """
    if resume:
        changed = given(context) - {"data", "out", "resume", "device", "threads"}
        if changed:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(changed))
            raise ValueError(f"--resume goes on with the run's own options; {names} cannot be given again")
    options = TrainOptions(
        hidden_size=hidden, num_layers=layers, num_mixtures=mixtures, pen=pen, skip=skip, peephole=peephole,
        dropout=dropout, clip_gates=clip_gates, clip_output=clip_output, optimizer=optimizer, lr=lr,
        schedule=schedule, warmup=warmup, epochs=epochs, batch_size=batch_size, clip_norm=clip_norm,
        normalize=normalize, simplify=simplify, resample=resample, augment=augment, drop=drop, precision=precision,
        patience=patience, validate_every=validate_every, checkpoint_every=checkpoint_every, log_every=log_every,
        seed=seed,
    )  # fmt: skip
    if simplify is not None:
        preparing.shapely()
    where, strokes = device_of(distributed.own_device(device), threads), load(data)
    try:
        with distributed.join(where) as world:
            _train_in(world, options, strokes, out, resume, where)
    except SystemExit as stopped:  # by a signal, all of them
        distributed.leave(stopped.code if isinstance(stopped.code, int) else 1)
        raise
    distributed.leave(0)


def _train_in(
    world: World, options: TrainOptions, strokes: StrokeSet, out: Path, resume: bool, where: torch.device
) -> None:
    if resume:
        trainer = Trainer.resume(strokes, out, where, world)
    elif world.restarted(where) and holds_run(out):
        trainer = Trainer.resume(strokes, out, where, world, options)
    else:
        trainer = Trainer(options, strokes, out, where, world)
    if world.leads:
        _train_aloud(trainer)
    else:
        trainer.run()


def _train_aloud(trainer: Trainer) -> None:
    out, processes = trainer.run_directory, trainer.world.size
    parameters = sum(p.numel() for p in trainer.model.parameters())
    say(
        f"{len(trainer.train_part)} sequences to train on, {len(trainer.validation_part)} to judge by; "
        f"{parameters:,} parameters; {trainer.steps} steps; "
        f"{trainer.device.type}{f', {processes} processes' if processes > 1 else ''}"
    )
    try:
        _run_with_progress(trainer)
    except SystemExit:
        say(f"stopped at step {trainer.step} of {trainer.steps}; saved in {out / 'last'}, go on with --resume")
        raise
    say(f"best on validation: {trainer.best:.3f} nats per row, in {out / 'best'}")


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
