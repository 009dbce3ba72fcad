"""`python -m bench.worker FD`: one part in a process of its own; what it finds goes line by line to the descriptor.

It reads its task on its standard input: {"settings": …, "part": index, or null for the ceilings, "first": the cell to
begin with, "ceilings": …, "seconds": that the run still has, or null}. Lines are JSON: {"say": text}, {"cell":
results}, {"left out": cell}, {"ceilings": …}.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fusedmdn import ops

from . import ceilings, floors, works
from .budget import budget_of
from .cell import measure, title
from .machine import Machine, machine_of
from .models import build
from .settings import WEIGHT, Settings

Json = dict[str, Any]
Send = Callable[[Json], None]


def main() -> None:
    """Do the task."""
    with os.fdopen(int(sys.argv[1]), "w") as out:

        def send(message: Json) -> None:
            out.write(json.dumps(message, allow_nan=False) + "\n")
            out.flush()

        gc.freeze()  # what is imported stays, and need not be looked at in every collection
        task = json.load(sys.stdin)
        settings = Settings.from_json(task["settings"])
        # The reference is not what is to be timed; a plan that falls back to another is.
        warnings.filterwarnings("error", ".*runs the PyTorch reference", ops.FallbackWarning)
        machine = machine_of(torch.device(settings.device), settings.threads)
        if task["part"] is None:
            say = functools.partial(_say, send, "the machine's own rates")
            send({"ceilings": ceilings.measure(machine.device, settings.threads, read_sizes(settings), say)})
        else:
            perform(settings, task["part"], task["first"], task["ceilings"], task["seconds"], machine, send)


def read_sizes(settings: Settings) -> list[int]:
    """Bytes that are read again and again: weights by every network that samples, and what the loss reads."""
    sizes = set()
    for part, dtype in itertools.product(settings.parts, settings.dtypes):
        if part.work == "sampling" and part.model:
            sizes.add(floors.weight_bytes(build(part.model, settings.hidden), dtype))
        elif part.work == "loss":
            sizes |= {floors.loss_bytes(setup["T"] * setup["B"], works.loss.COLUMNS, dtype) for setup in part.setups}
    return sorted(sizes)


def perform(
    settings: Settings, index: int, first: int, rates: Json, seconds: float | None, machine: Machine, send: Send
) -> None:
    """Every cell of a part from the `first` on, as long as there is time."""
    part = settings.parts[index]
    end = None if seconds is None else time.monotonic() + seconds
    weight, rest = WEIGHT[part.work], sum(part.weight for part in settings.parts[index:])
    part = replace(part, setups=part.setups[first:])
    for place, cell in enumerate(works.cells(part, settings, machine, rates), first):
        left = rest - weight * place
        budget = budget_of(settings.least, settings.most, settings.minutes, end, weight, left)
        name = title(cell.work, cell.model, cell.setup)
        if budget.over():
            send({"left out": f"{name}: {budget.why}"})
            continue
        send({"cell": measure(cell, machine, budget, settings.without, functools.partial(_say, send, name))})


def _say(send: Send, name: str, line: str) -> None:
    send({"say": f"{name}: {line}"})


if __name__ == "__main__":
    main()
