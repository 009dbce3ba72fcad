"""`fusedmdn draw`: strokes, and what a network predicts of them, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import FusedLSTMMDN, Strokes, render
from ..loaders import load
from .common import Device, Threads, View, check_output, device_of, say, told_plainly


@told_plainly
def draw(
    file: Annotated[
        list[str],
        typer.Argument(help='Strokes, in files that train reads, or "kanjivg" (embedded), one after another.'),
    ],
    out: Annotated[list[Path], typer.Option(help=".svg, .png or .gif; may be given several times.")],
    view: View = "plain",
    model: Annotated[
        str | None,
        typer.Option(help='A checkpoint or run directory, or "kanji" (embedded), for eos, mixture and density.'),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Sequences.", min=1)] = 36,
    first: Annotated[int, typer.Option(help="Index of the first one, counted through all files.", min=0)] = 0,
    columns: Annotated[int | None, typer.Option(help="Of the grid; default: a square.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the colours of vectors and strokes.", min=0)] = 0,
    step: Annotated[
        int | None, typer.Option(help="Of density: so many points, and where the next one is expected.", min=0)
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Draw sequences: in ink, in colours, or over what a network expected at each of their points."""
    for path in out:
        check_output(path, ".svg", ".png", ".gif")
        if step is not None and path.suffix == ".gif":
            raise ValueError(f"{path}: a .gif shows every step; --step is of a still picture")
    if view in render.BY_MODEL and model is None:
        raise ValueError(f"--view {view} draws what a network predicts: give one with --model")
    render.check_view(view, model is not None, step)
    where = device_of(device, threads)
    strokes = _some(file, first, n)
    render.check_step(step, strokes)
    network = None
    if view in render.BY_MODEL and model is not None:
        network = FusedLSTMMDN.from_pretrained(model, where)
    render.draw(strokes, out, columns, view, network, seed, step)
    for path in out:
        say(f"wrote {path}: {len(strokes)} sequence{'s' * (len(strokes) != 1)}")


def _some(files: list[str], first: int, n: int) -> list[Strokes]:
    """Sequences first to first + n of all the files' together; those that are not reached are not read."""
    some: list[Strokes] = []
    before = 0
    for file in files:
        strokes = load(file)
        some += [strokes[i] for i in range(max(first - before, 0), min(first + n - before, len(strokes)))]
        before += len(strokes)
        if len(some) == n:
            break
    if not some:
        raise ValueError(f"{', '.join(files)}: nothing to draw from sequence {first} on; there are {before}")
    return some
