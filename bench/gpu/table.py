"""A part's results in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..cell import title
from ..results import of_role, ratio
from ..table import number

Json = dict[str, Any]
SHOWN = ("passed", "failed", "skipped", "runs", "rows", "different", "variants", "left out")


def shown(name: str, part: Json) -> Iterator[str | Table]:
    """A line on the part, its failures, and a table if it has times."""
    facts = [f"{key} {part[key]}" for key in SHOWN if key in part]
    yield f"{name}: " + ", ".join([part["trouble"] or "as it should be", *facts, f"{part['seconds']:.0f} s"])
    for failure in part.get("failures", []):
        yield f"  {failure['test']}: {failure['message']}"
    if part.get("cells"):
        yield times(name, part["cells"])


def times(name: str, cells: list[Json]) -> Table:
    """All cells: medians, percentiles, ratios to the first of ours that was timed, peak memory in MB.

    Of samplers points a second too. The plan that is taken by default, where one is, is marked: ratios are to it if it
    was timed.
    """
    table = Table("", "contender", title=f"{name} ({cells[0]['unit']})", title_justify="left")
    points = any("points_per_second" in result for result in cells[0]["results"])
    for column in ("median", "20 %", "80 %", "x ours", *["points/s"] * points, "MB", "error", ""):
        table.add_column(column, justify="right")
    for cell in cells:
        chosen = cell.get("chosen", {}).get("name")
        timed = [result for result in of_role(cell, "ours") if result["values"]]
        base = next((result for result in timed if result["contender"] == chosen), timed[0] if timed else None)
        for place, result in enumerate(cell["results"]):
            multiple = ratio(result, base) if base else None
            table.add_row(
                "" if place else title(cell["work"], cell["model"], cell["setup"]),
                result["contender"] + (", chosen" if result["contender"] == chosen else ""),
                *(number(result[key]) for key in ("median", "percentile_20", "percentile_80")),
                "" if multiple is None else f"{multiple.median:.2f}",
                *[number(result.get("points_per_second"))] * points,
                "" if result["peak_memory"] is None else number(result["peak_memory"] / 1e6),
                "" if result["error"] is None else f"{result['error']:.0e}",
                escape(result["reason"] or ""),
            )
        table.add_section()
    return table
