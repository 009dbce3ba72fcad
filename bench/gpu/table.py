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
SHOWN = ("passed", "failed", "skipped", "runs", "different", "variants", "left out")


def shown(name: str, part: Json) -> Iterator[str | Table]:
    """A line on the part, its failures, and a table if it has times."""
    facts = [f"{key} {part[key]}" for key in SHOWN if key in part]
    yield f"{name}: " + ", ".join([part["trouble"] or "as it should be", *facts, f"{part['seconds']:.0f} s"])
    for failure in part.get("failures", []):
        yield f"  {failure['test']}: {failure['message']}"
    if part.get("cells"):
        yield times(name, part["cells"])


def times(name: str, cells: list[Json]) -> Table:
    """All cells: medians, percentiles, and ratios to the first of ours that was timed."""
    table = Table("", "contender", title=f"{name} (ms)", title_justify="left")
    for column in ("median", "20 %", "80 %", "x ours", "error", ""):
        table.add_column(column, justify="right")
    for cell in cells:
        base = next((result for result in of_role(cell, "ours") if result["values"]), None)
        for place, result in enumerate(cell["results"]):
            multiple = ratio(result, base) if base else None
            table.add_row(
                "" if place else title(cell["work"], None, cell["setup"]),
                result["contender"],
                *(number(result[key]) for key in ("median", "percentile_20", "percentile_80")),
                "" if multiple is None else f"{multiple.median:.2f}",
                "" if result["error"] is None else f"{result['error']:.0e}",
                escape(result["reason"] or ""),
            )
        table.add_section()
    return table
