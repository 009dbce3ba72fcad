"""One process's share of a benchmark: every work on one number of threads, printed and kept as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import environment
from .cell import measure, title
from .settings import Settings
from .table import table
from .works import limit, loss, sampling, train

FILE_WIDTH = 150  # of tables that no terminal shows
LIMIT_REPEATS = 3  # times as many as of the others: its calls are short, and a bandwidth is a best of many


def run(settings: Settings, out: Path, *, quick: bool) -> Path:
    """Measure, print a table for each cell, and write the JSON file anew after each; gives its path."""
    torch.set_num_threads(settings.threads)
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    where = environment.describe(settings.threads)
    path = out / f"{'quick' if quick else 'cpu'}-{environment.slug(where['cpu'])}-{settings.threads}t.json"
    out.mkdir(parents=True, exist_ok=True)
    cells: list[dict[str, Any]] = []
    with console.status("") as status:
        for cell in measured(settings, status.update):
            cells.append(cell)
            path.write_text(json.dumps({"environment": where, "cells": cells}, indent=1) + "\n")
            console.print(table(cell, settings.threads))
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return path


def measured(settings: Settings, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The results of every cell, as they come."""
    works = {
        "sampling": (sampling.cells, settings.repeats),
        "loss": (loss.cells, settings.repeats),
        "train": (train.cells, settings.repeats_train),
        "limit": (limit.cells, LIMIT_REPEATS * settings.repeats),
    }
    for work in settings.works:
        cells, repeats = works[work]
        for cell in cells(settings):
            name = title(cell.work, cell.model, cell.setup)
            result = measure(cell, repeats, settings.without, functools.partial(_say, say, name))
            yield result
            if work == "loss":
                yield loss.memory(settings, result, say)


def _say(say: Callable[[str], None], name: str, line: str) -> None:
    say(f"{name}: {line}")
