"""`python -m bench.gpu`: all tests on this machine's GPU, the kernels' promises, and the benchmark; one JSON file.

Every part has a process of its own: what a kernel breaks or hangs is that part's failure, and the rest still runs.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from .. import environment, settings
from ..processes import available_cores, converse
from ..record import Record
from ..run import Run
from ..screen import console
from . import table
from .machine import cuda
from .parts import parts
from .sizes import Sizes

Json = dict[str, Any]
PART = [sys.executable, "-m", "bench.gpu.parts"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    full: Annotated[bool, typer.Option("--full", help="The benchmark's whole grid, as long as it takes.")] = False,
    out: Annotated[Path, typer.Option(help="Directory of the JSON file.")] = Path("bench/results"),
    limit: Annotated[float, typer.Option(help="Seconds for a part, then it is ended.", min=1)] = 3600.0,
) -> None:
    """All tests on this machine's GPU, what the kernels promise, and the benchmark; one JSON file.

    Ends with 0; with 1 where a part failed or one of our own contenders is wrong; with 2 where there is no GPU.
    """
    if not torch.cuda.is_available():
        line = f"bench.gpu needs a GPU, and torch {torch.__version__} sees none: nothing was run"
        print(line, file=sys.stderr)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # on the way out a part's process is ended
    machine, threads = cuda(), min(len(available_cores()), torch.get_num_threads())
    grid = "full" if full else "default"
    chosen = settings.parts(grid, "cuda", settings.WORKS, settings.models_of(grid))
    asked = settings.Settings(
        str(machine.device), threads, grid, chosen, settings.DEFAULT_DTYPES["cuda"], minutes=None if full else 10.0
    )
    where = environment.describe(threads, machine.device) | {"options": {"grid": grid, "minutes": asked.minutes}}
    record, screen = Record(out / environment.file_of(where, grid), where), console()
    kept = promises([*parts(machine, Sizes())], PART, record, screen, limit, threads)
    well = Run(asked, record, screen).perform()
    screen.print(f"wrote {record.path}", highlight=False, soft_wrap=True)
    if not (kept and well):
        raise typer.Exit(1)


def promises(
    names: Sequence[str], command: Sequence[str], record: Record, screen: Console, limit: float, threads: int
) -> bool:
    """Perform and print every part, and keep it in the record; says whether all is as it should be."""
    done = record.run["parts"] = {}
    for name in names:
        start, found = time.monotonic(), {}
        trouble = converse(command, {"part": name}, found.update, threads=threads, kind="cuda", silence=limit)
        part = found.get("part") or {"trouble": "it had no results"}
        if trouble is not None:
            part = {**part, "trouble": f"its process {trouble}"}
        done[name] = {**part, "seconds": time.monotonic() - start}
        record.write()
        for line in table.shown(name, done[name]):
            screen.print(line, highlight=False, soft_wrap=True, markup=False)
    return not any(part["trouble"] for part in done.values())


if __name__ == "__main__":
    app(prog_name="python -m bench.gpu")
