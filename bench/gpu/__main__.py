"""`python -m bench.gpu`: all tests on this machine's GPU, the kernels' promises, and the benchmark; one JSON file.

Every part has a process of its own: what a kernel breaks or hangs is that part's failure, and the rest still runs.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
from . import suite, table
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
    minutes: Annotated[float, typer.Option(help="Of the benchmark, where it is not --full.", min=0.1)] = 10.0,
    at_once: Annotated[int, typer.Option(help="Parts side by side; the benchmark is always alone.", min=1)] = 1,
    tests: Annotated[str, typer.Option(help="What pytest is told.")] = shlex.join(suite.WORDS),
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
        str(machine.device), threads, grid, chosen, settings.DEFAULT_DTYPES["cuda"], minutes=None if full else minutes
    )
    where = environment.describe(threads, machine.device) | {"options": {"grid": grid, "minutes": asked.minutes}}
    record, screen = Record(out / environment.file_of(where, grid), where), console()
    tasks = {name: {"part": name, "tests": shlex.split(tests)} for name in parts(machine, Sizes())}
    kept = promises(tasks, PART, record, screen, limit, threads, at_once)
    well = Run(asked, record, screen).perform()
    screen.print(f"wrote {record.path}", highlight=False, soft_wrap=True)
    if not (kept and well):
        raise typer.Exit(1)


def promises(
    tasks: Mapping[str, Json],
    command: Sequence[str],
    record: Record,
    screen: Console,
    limit: float,
    threads: int,
    at_once: int = 1,
) -> bool:
    """Perform and print every part, and keep it in the record; says whether all is as it should be."""
    stop = threading.Event()

    def perform(task: Json) -> Json:
        start, found = time.monotonic(), {}
        trouble = converse(command, task, found.update, threads=threads, kind="cuda", silence=limit, stop=stop)
        part = found.get("part") or {"trouble": "it had no results"}
        if trouble is not None:
            part = {**part, "trouble": f"its process {trouble}"}
        return {**part, "seconds": time.monotonic() - start}

    done: dict[str, Json] = {}
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(perform, task): name for name, task in tasks.items()}
        try:
            for ended in as_completed(running):
                name = running[ended]
                done[name] = ended.result()
                record.run["parts"] = {name: done[name] for name in tasks if name in done}
                record.write()
                for line in table.shown(name, done[name]):
                    screen.print(line, highlight=False, soft_wrap=True, markup=False)
        except BaseException:  # an interrupt too: what runs is ended, what waits is not begun
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return not any(part["trouble"] for part in done.values())


if __name__ == "__main__":
    app(prog_name="python -m bench.gpu")
