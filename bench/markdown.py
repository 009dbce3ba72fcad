"""Cells as Markdown tables: a row for each cell, a column for each contender."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .cell import title
from .judge import to_limit
from .results import Json, of_role, ratio
from .table import number

WORKS = {
    "sampling": "Microseconds for a step of the whole batch, each row fed back as the next input.",
    "loss": "Milliseconds for the loss and its gradient of the raw output y.",
    "loss memory": "Peak resident memory above y during the same, gradient of y included, in multiples of y.",
    "train": "Milliseconds for forward and backward pass, no optimiser. A stand-in does less than asked.",
    "limit": "Microseconds for a sampling step at batch 1, and for one read of a buffer as large as the weights.",
}


def works(run: Json) -> Iterator[str]:
    """A section for each work."""
    for work, text in WORKS.items():
        cells = [cell for cell in run["cells"] if cell["work"] == work]
        if cells:
            yield f"### {work.capitalize()}\n\n{text}\n"
        for alike in same_contenders(cells):
            yield from group(work, alike)


def same_contenders(cells: Sequence[Json]) -> list[list[Json]]:
    """The cells in groups that one table can hold."""
    groups: dict[tuple[str, ...], list[Json]] = {}
    for cell in cells:
        groups.setdefault(tuple(names(cell)), []).append(cell)
    return list(groups.values())


def group(work: str, cells: Sequence[Json]) -> Iterator[str]:
    """Figures, ratios and, of samplers, points per second; then errors, reasons and the load."""
    yield from one_table(cells, lambda cell, result: f"{number(result['median'])} ({number(result['minimum'])})")
    if of_role(cells[0], "limit"):
        yield "Over the fastest read of any, by medians (by minima):\n"
        yield from one_table(cells, over_limit)
        yield "Gigabytes per second, by medians (by minima):\n"
        yield from one_table(cells, bandwidth)
    else:
        bases = " / ".join(base["contender"] for base in of_role(cells[0], "ours"))
        yield f"Over {bases}:\n"
        yield from one_table(cells, over_ours)
    if work == "sampling":
        yield "Points per second:\n"
        yield from one_table(cells, lambda cell, result: f"{cell['setup']['batch'] * 1e6 / result['median']:,.0f}")
    yield from notes(cells)


def one_table(cells: Sequence[Json], text: Callable[[Json, Json], str]) -> Iterator[str]:
    """A table of what `text` says of each cell and contender; a dash for one that has no figures."""
    rows = []
    for cell in cells:
        shown = [text(cell, result) if result["values"] else "–" for result in cell["results"]]
        rows.append([where(cell), *shown])
    yield from table(["", *names(cells[0])], rows)


def over_ours(cell: Json, result: Json) -> str:
    """The ratio to each of ours."""
    ratios = [ratio(result, base) for base in of_role(cell, "ours")]
    return " / ".join("–" if measured is None else f"{measured.median:.2f}" for measured in ratios)


def over_limit(cell: Json, result: Json) -> str:
    """Our ratio to the machine's limit."""
    measured = to_limit(cell, result) if result["role"] == "ours" else None
    return "" if measured is None else f"{measured.median:.2f} ({measured.minima:.2f})"


def bandwidth(cell: Json, result: Json) -> str:
    """The bytes of all weights over the time: 1e9 bytes in 1e6 microseconds are 1 GB/s."""
    median, minimum = (cell["setup"]["bytes"] / result[key] / 1e3 for key in ("median", "minimum"))
    return f"{median:.1f} ({minimum:.1f})"


def notes(cells: Sequence[Json]) -> Iterator[str]:
    """What else is to be known of a table."""
    errors: dict[str, float] = {}
    for result in (result for cell in cells for result in cell["results"]):
        if result["error"] is not None and result["values"]:
            errors[result["contender"]] = max(errors.get(result["contender"], 0.0), result["error"])
    repeats = sorted({result["repeats"] for cell in cells for result in cell["results"] if result["values"]})
    load = max(cell["load_before"][0] for cell in cells)
    yield f"- repetitions: {', '.join(map(str, repeats)) or 'none'}; load average before: at most {load:.2f}"
    if errors:
        yield "- largest error: " + ", ".join(f"{name} {error:.0e}" for name, error in errors.items())
    for cell in cells:
        for result in cell["results"]:
            if result["reason"]:
                yield f"- not timed: {result['contender']} ({where(cell)}): {result['reason']}"
    yield ""


def where(cell: Json) -> str:
    """The cell within its work."""
    return title("", cell["model"], cell["setup"])


def names(cell: Json) -> list[str]:
    """The cell's contenders."""
    return [result["contender"] for result in cell["results"]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table, and an empty line after it."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"
    yield ""
