"""`python -m bench`: measure this machine's GPU or CPU against every peer; right before fast, one JSON for each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import environment
from .precision import DTYPES
from .processes import available_cores
from .record import Record
from .run import Run
from .screen import console
from .settings import DTYPES as DEFAULT_DTYPES
from .settings import EVERY_DTYPE, MODELS, QUICK_HIDDEN, WORKS, Settings, models_of, parts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MOST = 10  # repetitions, if there is time
WORDS = f"some of {', '.join(MODELS)}, and 1xH for one layer of H units"


@app.command()
def bench(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")] = "auto",
    full: Annotated[bool, typer.Option("--full", help="The whole grid, as long as it takes: hours.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: does everything run?")] = False,
    works: Annotated[str, typer.Option(help="What is measured.")] = ",".join(WORKS),
    models: Annotated[str | None, typer.Option(help=f"{WORDS}; default: the grid's.", show_default=False)] = None,
    dtypes: Annotated[str | None, typer.Option(help=f"Some of {', '.join(DTYPES)}.", show_default=False)] = None,
    threads: Annotated[
        str | None, typer.Option(help="Of the CPU; 1,2 makes a run for each. Default: all cores.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Nothing new is begun after these; default 10, with --full none.", min=0.1)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Repetitions at the least.", min=1)] = 3,
    without: Annotated[
        str, typer.Option(help="Leave contenders out that have one of these words in their names.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Directory of the JSON files; each run's is written anew.")] = Path(
        "bench/results"
    ),
) -> None:
    """Training steps, the loss alone and sampling, against every peer that is installed, and the machine's own floor.

    Each contender's outputs and gradients are compared with a float64 reference before it is timed; one that is wrong,
    missing or unable is shown with its reason. `python -m bench.report` makes a page of the results.
    """
    if full and quick:
        raise typer.BadParameter("--full and --quick exclude each other")
    where = _device(device)
    grid = "full" if full else "quick" if quick else "default"
    chosen = parts(grid, where.type, _some("works", works, WORKS), _models(models) if models else models_of(grid))
    if not chosen:
        raise typer.BadParameter(f"--works {works} --models {models}: nothing of these is in the {grid} grid")
    known = EVERY_DTYPE[where.type]
    numbers = (EVERY_DTYPE if full else DEFAULT_DTYPES)[where.type]
    if dtypes:
        numbers = _some("dtypes", dtypes, known, f" of a {where.type}")
    well = True
    for count in _threads(threads):
        settings = Settings(
            str(where), count, grid, chosen, numbers,
            without=_words(without), minutes=minutes or (None if full else 10.0), least=2 if quick else repeats,
            most=2 if quick else max(repeats, MOST), hidden=QUICK_HIDDEN if quick else None,
        )  # fmt: skip
        described = environment.describe(count, where) | {"options": {"grid": grid, "minutes": settings.minutes}}
        if where.type == "cpu":
            described["pinned_to"] = available_cores()[-count:]
        record = Record(out / environment.file_of(described, grid), described)
        record.write()
        screen = console()
        try:
            well &= Run(settings, record, screen).perform()
        except KeyboardInterrupt:
            screen.print(f"interrupted; {record.path} has what was measured", highlight=False, soft_wrap=True)
            raise typer.Exit(130) from None
        screen.print(f"wrote {record.path}", highlight=False, soft_wrap=True)
    if not well:
        raise typer.Exit(1)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        line = str(error).strip().splitlines()[0]
        raise typer.BadParameter(f"--device {name} cannot be used: {line}") from error
    if found.type not in DEFAULT_DTYPES:
        raise typer.BadParameter(f"--device {name}: expected one of {', '.join(DEFAULT_DTYPES)}")
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _some(option: str, text: str, known: Sequence[str], of: str = "") -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        if word not in known:
            raise typer.BadParameter(f"--{option}: {word!r} is none of {', '.join(known)}{of}")
    return words


def _models(text: str) -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        hidden = word.removeprefix("1x")
        if word not in MODELS and not (word.startswith("1x") and hidden.isdigit() and int(hidden) > 0):
            raise typer.BadParameter(f"--models: {word!r} is none of {', '.join(MODELS)}, nor 1xH with H units")
    return words


def _threads(text: str | None) -> tuple[int, ...]:
    most = len(available_cores())
    if text is None:
        return (most,)
    counts = []
    for word in _words(text):
        if not word.isdigit() or not 1 <= int(word) <= most:
            raise typer.BadParameter(f"--threads: {word!r} is none of 1 to {most}, the cores that this process may use")
        counts.append(int(word))
    return tuple(counts)


if __name__ == "__main__":
    app(prog_name="python -m bench")
