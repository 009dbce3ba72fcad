"""What the commands share: the console, arguments, the device, and errors told in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.markup import escape

from .. import render, tune
from ..ops import forced
from ..train import TrainingDiverged

console = Console()
Function = TypeVar("Function", bound=Callable[..., Any])

STROKES = 'Strokes: "kanjivg" (embedded), a .npz, .npy, .svg, .inkml or .xml file, or a directory (docs/strokes.md).'
Data = Annotated[str, typer.Argument(help=STROKES)]
Checkpoint = Annotated[str, typer.Argument(help='A checkpoint or run directory, or "kanji" (embedded).')]
View = Annotated[str, typer.Option(help=f"Of a drawing: {', '.join(render.VIEWS[:-1])} or {render.VIEWS[-1]}.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: torch's.", min=1)]
Simplify = Annotated[
    float | None,
    typer.Option(help="Take points out first, within this tolerance, in raw units (sketch-rnn: 2 in a 256 x 256 box)."),
]
Resample = Annotated[float | None, typer.Option(help="Set points evenly first, at this distance, in raw units.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]


def told_plainly(command: Function) -> Function:
    """Expected errors become one line on stderr and exit code 2 (1 where training itself failed)."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except TrainingDiverged as error:
            code, message = 1, str(error)
        except (tune.TuneError, ValueError, OSError, ModuleNotFoundError) as error:
            code, message = 2, str(error)
        except (torch.OutOfMemoryError, MemoryError, forced.PlanError) as error:
            code, message = 2, str(error) or "there is not enough memory"
        Console(stderr=True).print("[red]error:[/]", escape(message), highlight=False, soft_wrap=True)
        raise typer.Exit(code)

    return run  # type: ignore[return-value]


def device_of(name: str, threads: int | None) -> torch.device:
    """The device of that name, found usable; and so many threads for the CPU."""
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def given(context: typer.Context) -> set[str]:
    """The parameters that the user gave."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def check_output(path: Path, *endings: str) -> None:
    """Refuse what could not be written, before any work is done."""
    if path.suffix not in endings:
        raise ValueError(f"{path}: the output ends in {', '.join(endings[:-1])} or {endings[-1]}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no directory {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path}: is a directory")
    if path.suffix in (".png", ".gif"):
        render.pillow()


def say(line: str) -> None:
    """A line that is not cut where the terminal ends, so that a pipe gets it whole."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
