"""The curve of a run: RUN/metrics.jsonl, a line of JSON for every logged step and validation; TensorBoard too."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import files


class Curve:
    """What a run has logged so far; one process of a run writes it."""

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / "metrics.jsonl"
        self.board: Any = None

    def begin(self) -> None:
        """Make an empty file."""
        files.write(self.path, "")

    def log(self, line: dict[str, Any]) -> None:
        """Append a step's numbers, or a validation's. It is on the disk when `sync` has been called."""
        with open(self.path, "a") as file:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
        if self.board is not None:
            prefix, values = ("validation", line["validation"]) if "validation" in line else ("train", line)
            for name, value in values.items():
                self.board.add_scalar(f"{prefix}/{name}", value, line["step"])

    def sync(self) -> None:
        """Called before a checkpoint is written: the curve reaches as far as the step from which a resume goes on."""
        with open(self.path, "a") as file:
            os.fsync(file.fileno())

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a killed run took after its last checkpoint: they will be taken again."""
        kept = []
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):  # cut short by the kill, or damaged
                break
        files.write(self.path, "".join(kept))

    @contextmanager
    def on_board(self, step: int) -> Iterator[None]:
        """What is logged after this step goes to TensorBoard too, where that is installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            yield
            return
        with SummaryWriter(str(self.run / "tensorboard"), purge_step=step + 1) as self.board:
            yield
        self.board = None


def _finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
