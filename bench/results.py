"""Reading results: runs from their files, and ratios of contenders that were timed in turn."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

DEVICES = ("cpu", "cuda")
CELL = {"work": str, "setup": dict, "unit": str, "floors": dict, "results": list, "load_before": list}
RESULT = {"contender": str, "dtype": str, "role": str, "values": list}
SETUP = {"training": {"T": int, "B": int}, "loss": {"rows": int, "columns": int}, "sampling": {"B": int}}
FLOOR = {"time": (int, float)}
FIGURES = ("median", "minimum", "percentile_20", "percentile_80")
OPTIONAL: dict[str, Callable[[], Any]] = {"ceilings": dict, "parts": dict, "troubles": dict, "left_out": list}


class DamagedError(ValueError):
    """A file that does not hold a run's results; the message names it and says what is wrong."""


class Run(NamedTuple):
    """One run: its results, and its file's name without the ending."""

    slug: str
    json: Json

    @property
    def where(self) -> Json:
        """The environment."""
        return self.json["environment"]

    @property
    def device(self) -> str:
        """The processor or GPU by name."""
        return str(self.where["gpu"]["name"] if self.where["device"] == "cuda" else self.where["cpu"])

    @property
    def title(self) -> str:
        """The device, of a processor the number of threads, and the grid unless it is the default one."""
        grid = (self.where.get("options") or {}).get("grid", "default")
        words = [self.device] + ([f"{grid} grid"] if grid != "default" else [])
        if self.where["device"] == "cpu":
            count = self.where["threads"]
            words.insert(1, f"{count} thread{'' if count == 1 else 's'}")
        return ", ".join(words)


class Ratio(NamedTuple):
    """How many times as much a contender takes as a base.

    median, percentile_20, percentile_80: of the ratios in each repetition, in which both ran one after the other;
    minima: of their minima.
    """

    median: float
    percentile_20: float
    percentile_80: float
    minima: float


def files(directory: Path) -> list[Path]:
    """The results in a directory; quick runs are not looked at."""
    return sorted([*directory.glob("cpu-*.json"), *directory.glob("gpu-*.json")])


def load(path: Path) -> Run:
    """The run in a file.

    Raises:
        DamagedError: the file cannot be read, or is not what a run writes.
    """
    try:
        run = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise DamagedError(f"{path}: is not JSON: {error}") from error
    trouble = next(troubles(run), None)
    if trouble:
        raise DamagedError(f"{path}: is not a run's results: {trouble}")
    return Run(path.stem, {**{key: empty() for key, empty in OPTIONAL.items()}, **run})


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Processors before GPUs, those of one device together and by threads."""
    return sorted(runs, key=lambda run: (run.where["device"], run.device, run.where["threads"], run.slug))


def troubles(run: Any) -> Iterator[str]:
    """What a run's results lack, or have otherwise than a run writes them."""
    yield from _lacks("the file", run, {"environment": dict, "cells": list})
    where = run["environment"]
    yield from _lacks("environment", where, {"device": str, "cpu": str, "threads": int})
    if where["device"] not in DEVICES:
        yield f"environment.device must be one of {', '.join(DEVICES)}, got {where['device']!r}"
    if where["device"] == "cuda":
        yield from _lacks("environment", where, {"gpu": dict})
        yield from _lacks("environment.gpu", where["gpu"], {"name": str})
    for number, cell in enumerate(run["cells"]):
        yield from _of_cell(f"cells[{number}]", cell)


def _of_cell(name: str, cell: Any) -> Iterator[str]:
    yield from _lacks(name, cell, CELL)
    if "model" not in cell:
        yield f"{name} lacks 'model'"
    if cell["work"] not in SETUP:
        yield f"{name}.work must be one of {', '.join(SETUP)}, got {cell['work']!r}"
    yield from _lacks(f"{name}.setup", cell["setup"], SETUP[cell["work"]])
    for dtype, floor in cell["floors"].items():
        yield from _lacks(f"{name}.floors[{dtype!r}]", floor, FLOOR)
    for number, result in enumerate(cell["results"]):
        of_result = f"{name}.results[{number}]"
        yield from _lacks(of_result, result, RESULT)
        if result["values"]:
            yield from _lacks(of_result, result, dict.fromkeys(FIGURES, (int, float)))
        elif not result.get("reason"):
            yield f"{of_result} has neither values nor a reason"


def _lacks(name: str, entry: Any, needed: dict[str, Any]) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{name} must be an object, got {type(entry).__name__}"
        return
    for key, kind in needed.items():
        if key not in entry:
            yield f"{name} lacks {key!r}"
        elif not isinstance(entry[key], kind):
            yield f"{name}.{key} must not be a {type(entry[key]).__name__}"


def ratio(result: Json, base: Json) -> Ratio | None:
    """The ratio of two contenders of one cell, or None where one was not timed or is too small to be told from 0."""
    if not all(entry["values"] and entry["minimum"] > 0 for entry in (result, base)):
        return None
    each = [a / b for a, b in zip(result["values"], base["values"], strict=False)]  # where one ended early, as far
    low, high = percentiles(each)
    return Ratio(statistics.median(each), low, high, result["minimum"] / base["minimum"])


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The 20th and the 80th."""
    if len(values) == 1:
        return values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def find(cell: Json, name: str, dtype: str) -> Json | None:
    """The entry of a contender in a dtype, if the cell has it."""
    return next((r for r in cell["results"] if (r["contender"], r["dtype"]) == (name, dtype)), None)


def ours(cell: Json, dtype: str) -> Json | None:
    """What the others of the dtype are compared with."""
    return find(cell, "ours", dtype)


def dtypes(cells: Iterable[Json]) -> list[str]:
    """Those of the cells' contenders, as they come."""
    return list(dict.fromkeys(result["dtype"] for cell in cells for result in cell["results"]))


def of_dtype(cell: Json, dtype: str) -> list[Json]:
    """The cell's contenders in a dtype."""
    return [result for result in cell["results"] if result["dtype"] == dtype]


def over_floor(cell: Json, result: Json) -> float | None:
    """A contender's median over the floor of its dtype; None where there is none, or it was not timed."""
    floor = cell["floors"].get(result["dtype"])
    if floor is None or not result["values"] or floor["time"] <= 0:
        return None
    return float(result["median"] / floor["time"])


def works(cells: Iterable[Json]) -> list[str]:
    """Those of the cells, as they come."""
    return list(dict.fromkeys(cell["work"] for cell in cells))
