"""`python -m bench`: measure this machine's GPU or CPU against every peer; right before fast, one JSON for each run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import environment
from .models import CONFIGS, config_of
from .precision import DTYPES
from .processes import available_cores
from .record import Record
from .run import Run
from .screen import console
from .settings import DEFAULT_DTYPES, EVERY_DTYPE, QUICK_HIDDEN, WORKS, Settings, models_of, parts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
HELP = (  # in one piece: typer would keep a docstring's line breaks
    "Training steps, the loss alone and sampling, against every peer that is installed, and the machine's own floor. "
    "Each contender's outputs and gradients are compared with a float64 reference before it is timed; one that is "
    "wrong, missing or unable is shown with its reason. `python -m bench.report` makes a page of the results. Exit "
    "code: 0; 1 if one of ours was wrong or a part's process died; 2 for arguments that do not fit."
)
MOST = 10  # repetitions, if there is time
WORDS = f"some of {', '.join(CONFIGS)}, and 1xH for one layer of H units"


@app.command(help=HELP)
def bench(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")] = "auto",
    full: Annotated[bool, typer.Option("--full", help="The whole grid, as long as it takes: hours.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: does everything run?")] = False,
    works: Annotated[str, typer.Option(help="What is measured.")] = ",".join(WORKS),
    models: Annotated[str | None, typer.Option(help=f"{WORDS}; default: the grid's.", show_default=False)] = None,
    dtypes: Annotated[str | None, typer.Option(help=f"Some of {', '.join(DTYPES)}.", show_default=False)] = None,
    threads: Annotated[
        str | None, typer.Option(help="Of the CPU; 1,2 makes a run for each. Default: PyTorch's.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Nothing new is begun after these; default 10, with --full none.", min=0.1)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Repetitions at the least.", min=1)] = 3,
    without: Annotated[
        str, typer.Option(help="Leave contenders out that have one of these words in their names.")
    ] = "",
    out: Annotated[
        Path, typer.Option(help="A JSON file, or a directory of them; a partial run's own name there is partial-….")
    ] = Path("bench/results"),
) -> None:
    """Measure; see HELP."""
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
    counts = _threads(threads)
    if out.suffix == ".json" and len(counts) > 1:
        raise typer.BadParameter(f"--out {out}: a file holds one run, --threads {threads} makes {len(counts)}")
    partial = works != ",".join(WORKS) or bool(models or dtypes or without)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # on the way out the worker is ended
    well = True
    for count in counts:
        settings = Settings(
            str(where), count, grid, chosen, numbers,
            without=_words(without), minutes=minutes or (None if full else 10.0), least=2 if quick else repeats,
            most=2 if quick else max(repeats, MOST), hidden=QUICK_HIDDEN if quick else None,
        )  # fmt: skip
        described = environment.describe(count, where) | {"options": {"grid": grid, "minutes": settings.minutes}}
        if where.type == "cpu" and described["pinned_to"]:
            described["pinned_to"] = available_cores()[-count:]
        name = environment.file_of(described, grid, partial)
        record, screen = Record(out if out.suffix == ".json" else out / name, described), console()
        try:
            record.write()
        except OSError as error:
            raise typer.BadParameter(f"--out {out}: {error}") from error
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
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _some(option: str, text: str, known: Sequence[str], of: str = "") -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        if word not in known:
            raise typer.BadParameter(f"--{option}: {word!r} is none of {', '.join(known)}{of}")
    if not words:
        raise typer.BadParameter(f"--{option}: expected some of {', '.join(known)}{of}")
    return words


def _models(text: str) -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        try:
            config_of(word)
        except ValueError as error:
            raise typer.BadParameter(f"--models: {error}") from error
    if not words:
        raise typer.BadParameter(f"--models: expected {WORDS}")
    return words


def _threads(text: str | None) -> tuple[int, ...]:
    most = len(available_cores())
    if text is None:
        return (min(most, torch.get_num_threads()),)
    words, numbers = _words(text), [str(n) for n in range(1, most + 1)]
    for word in words or ("",):
        if word not in numbers:
            raise typer.BadParameter(f"--threads: {word!r} is none of 1 to {most}, the cores that this process may use")
    return tuple(map(int, words))


if __name__ == "__main__":
    app(prog_name="python -m bench")
