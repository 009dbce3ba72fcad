"""A cell's results as a table in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .cell import title
from .results import Json, dtypes, of_dtype, ours, over_floor, ratio

PHASES = {"forward": "fwd", "backward": "bwd", "optimiser": "optim."}


def table(cell: Json, threads: int) -> Table:
    """Medians, percentiles, phases, ratios to ours and to the floor, memory; under it, why one was not timed.

    The reasons are the caption, which is wrapped and never cut.
    """
    phases = [name for name in PHASES if any(name in phases_of(result) for result in cell["results"])]
    sampling = cell["work"] == "sampling"
    name = title(cell["work"], cell["model"], cell["setup"])
    shown = Table(
        title=escape(f"{name}, {threads} thread{'' if threads == 1 else 's'}, {cell['unit']}"),
        caption="\n".join(reasons(cell)) or None,
        title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False,
    )  # fmt: skip
    shown.add_column("contender", overflow="fold", min_width=14)
    columns = [
        "median",
        "20 %",
        "80 %",
        *(PHASES[name] for name in phases),
        "x ours",
        "x floor",
        "MB",
        *["points/s"] * sampling,
        "error",
    ]
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for dtype in dtypes([cell]):
        floor = cell["floors"].get(dtype)
        shown.add_row(f"{dtype}, floor {number(floor['time'])}" if floor else dtype, style="italic")
        for result in of_dtype(cell, dtype):
            style = "bold" if result["role"] == "ours" else None
            shown.add_row("  " + escape(name_of(result)), *figures(cell, result, phases, sampling), style=style)
        shown.add_section()
    return shown


def figures(cell: Json, result: Json, phases: list[str], sampling: bool) -> list[str]:
    """A contender's figures, column by column; empty where there is none."""
    base = ours(cell, result["dtype"])
    multiple = ratio(result, base) if base else None
    peak, error, median = result.get("peak_memory"), result.get("error"), result.get("median")
    points = [number(cell["setup"]["B"] * 1e6 / median if median else None)] if sampling else []
    return [
        *(number(result.get(key)) for key in ("median", "percentile_20", "percentile_80")),
        *(number(phases_of(result).get(name, {}).get("median")) for name in phases),
        "" if multiple is None else f"{multiple.median:.2f}",
        times(over_floor(cell, result)),
        "" if peak is None else number(peak / 1e6),
        *points,
        "" if error is None else f"{error:.0e}",
    ]


def reasons(cell: Json) -> list[str]:
    """Why contenders were not timed."""
    untimed = [result for result in cell["results"] if result.get("reason")]
    return [escape(f"not timed: {r['contender']}, {r['dtype']}: {r['reason']}") for r in untimed]


def name_of(result: Json) -> str:
    """A contender's name, which says of a stand-in that it is one."""
    name: str = result["contender"]
    return f"{name} (stand-in)" if result["role"] == "stand-in" and "stand-in" not in name else name


def phases_of(result: Json) -> Json:
    """A contender's phases; none where it was not timed, or has but one."""
    return result.get("phases") or {}


def number(value: float | None) -> str:
    """A figure to four digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def times(value: float | None) -> str:
    """A multiple to three digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"
