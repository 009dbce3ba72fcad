"""`fusedmdn sample` and `eval`: what a trained network draws, and how well it predicts."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.markup import escape
from rich.table import Table

from .. import FusedLSTMMDN, Strokes, ops, render
from ..checkpoint import preparation_of
from ..dataset import PARTS, StrokeSet
from ..evaluate import evaluate
from ..jobs.spec import DTYPES, PLANS
from ..loaders import load
from ..preparing import check_preparation, prepare, shapely
from .common import (
    Checkpoint,
    Data,
    Device,
    Resample,
    Simplify,
    Threads,
    View,
    check_output,
    console,
    device_of,
    say,
    told_plainly,
)

HOW = {"epsilon": "simplified to within", "step": "resampled at"}


@told_plainly
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
        Path | None, typer.Option(help="Strokes, as train takes them; the first sequence is what each goes on from.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the weights: float32, or bf16 (faster).")] = "float32",
    plan: Annotated[
        str | None,
        typer.Option(help="On a GPU: resident, rows or graph. Default: by -n, on which bits then depend."),
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Of the grid; default: a square.", min=1)] = None,
    view: View = "plain",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Sample sequences and draw them (.svg, .png, .gif) or keep them as strokes (.npz)."""
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}; got {precision!r}")
    if plan not in (None, *PLANS):
        raise ValueError(f"plan must be one of {', '.join(PLANS)}; got {plan!r}")
    for path in out:
        check_output(path, ".svg", ".png", ".gif", ".npz")
    render.check_view(view, has_model=True)
    where = device_of(device, threads)
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
        dtype=DTYPES[precision],
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
    kept = [path for path in out if path.suffix == ".npz"]
    pictures = [path for path in out if path.suffix != ".npz"]
    for path in kept:  # what cannot be drawn again first
        StrokeSet.of(strokes).save(path)
        say(f"wrote {path}")
    if pictures:
        render.draw(strokes, pictures, columns, view, model, seed % 2**64)  # as the generator reads a negative one
        for path in pictures:
            say(f"wrote {path}")
    ended = int(batch.state.done.sum())
    ending = f"; {ended} of them ended by themselves" if model.pen == "categorical" else ""
    say(f"{n} sequences, {points:,} points ({rate:,.0f} points per second){ending}")


def _first(source: Path) -> Strokes:
    strokes = load(source)
    if not len(strokes) or not len(strokes[0]):
        raise ValueError(f"{source}: has no first sequence to go on from")
    return strokes[0]


@told_plainly
def evaluate_command(
    checkpoint: Checkpoint,
    data: Data,
    part: Annotated[str, typer.Option(help="train, validation, test or all.")] = "validation",
    simplify: Simplify = None,
    resample: Resample = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Nats per point and per sequence, and SSE, of a part of the data, in the checkpoint's units.

    Strokes are prepared as those were that it was trained on, unless --simplify or --resample says otherwise.
    """
    check_preparation(simplify, resample)
    if simplify is not None:
        shapely()
    if part not in (*PARTS, "all"):
        raise ValueError(f"part must be one of {', '.join(PARTS)} or all; got {part!r}")
    model = FusedLSTMMDN.from_pretrained(checkpoint, device_of(device, threads))
    prepared = {"epsilon": simplify, "step": resample}
    if simplify is None and resample is None:
        prepared = dict(preparation_of(checkpoint))
    strokes = load(data)
    strokes = prepare(strokes if part == "all" else strokes.part(part), **prepared)
    result = evaluate(model, strokes)
    how = "".join(f", {HOW[name]} {value:g}" for name, value in prepared.items() if value is not None)
    table = Table("measure", "value", title=escape(f"{checkpoint} on {data} ({part}{how})"))
    table.add_row("nats per point (row)", f"{result.nats_per_row:.4f}")
    table.add_row("  of which the pen", f"{result.pen_nats_per_row:.4f}")
    table.add_row("nats per sequence", f"{result.nats_per_sequence:.2f}")
    table.add_row("SSE per point", f"{result.sse:.5f}")
    table.add_row("rows", f"{result.rows:,}")
    table.add_row("sequences", f"{result.sequences:,}")
    console.print(table)
