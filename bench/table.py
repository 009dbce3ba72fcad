"""A cell's results as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .cell import title
from .results import of_role, ratio


def table(cell: dict[str, Any], threads: int) -> Table:
    """Medians, minima, processor time and ratios to ours; a reason where a contender was not timed."""
    bases = of_role(cell, "ours")
    columns = ["median", "minimum", "CPU minimum", *(f"x {base['contender']}" for base in bases), "error", ""]
    name = title(cell["work"], cell["model"], cell["setup"])
    shown = Table("contender", title=f"{name}, {threads} threads ({cell['unit']})", title_justify="left")
    for column in columns:
        shown.add_column(column, justify="right")
    for result in cell["results"]:
        ratios = [ratio(result, base) for base in bases]
        shown.add_row(
            result["contender"],
            number(result["median"]),
            number(result["minimum"]),
            number(result["cpu_minimum"]),
            *("" if r is None else f"{r.median:.2f}" for r in ratios),
            "" if result["error"] is None else f"{result['error']:.0e}",
            result["reason"] or "",
        )
    return shown


def number(value: float | None) -> str:
    """A figure to four digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
