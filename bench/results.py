"""Reading results: ratios of contenders that were timed in turn."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]


class Ratio(NamedTuple):
    """How many times as much a contender takes as a base.

    median: of the ratios in each repetition, in which both ran one after the other; minima: of their minima.
    """

    median: float
    minima: float


def load(directory: Path) -> list[Json]:
    """The runs in a directory, those of one processor together and by threads; quick ones are not looked at."""
    runs = [json.loads(path.read_text()) for path in sorted(directory.glob("cpu-*.json"))]
    return sorted(runs, key=lambda run: (run["environment"]["cpu"], run["environment"]["threads"]))


def ratio(result: Json, base: Json) -> Ratio | None:
    """The ratio of two contenders of one cell, or None where one was not timed or is too small to be told from 0."""
    if not all(entry["values"] and entry["minimum"] > 0 for entry in (result, base)):
        return None
    each = [a / b for a, b in zip(result["values"], base["values"], strict=True)]
    return Ratio(statistics.median(each), result["minimum"] / base["minimum"])


def find(cell: Json, name: str) -> Json | None:
    """The entry of a contender, if the cell has it."""
    return next((result for result in cell["results"] if result["contender"] == name), None)


def of_role(cell: Json, role: str) -> list[Json]:
    """The contenders of a role."""
    return [result for result in cell["results"] if result["role"] == role]


def limit(cell: Json) -> float | None:
    """The machine's own time in a cell that has readers: the fastest read of any."""
    return min((reader["minimum"] for reader in of_role(cell, "limit") if reader["values"]), default=None)
