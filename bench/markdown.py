"""A run's cells as Markdown tables: a row for each cell, a column for each contender of a dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from .cell import title
from .results import Json, dtypes, of_dtype, ours, over_floor, ratio, works
from .table import PHASES, name_of, number, phases_of, times

WORKS = {
    "training": "Milliseconds for the forward and backward pass of one step, without the optimiser.",
    "loss": "Milliseconds for the loss and its gradient of raw, the network's output.",
    "sampling": "Microseconds for a step of the whole batch, each row fed back as the next input.",
}
Text = Callable[[Json, Json], str]  # of a cell and a result
Of = Callable[[Json, str], str]  # of a cell and a dtype
NO_MORE: Mapping[str, Of] = MappingProxyType({})


def of_works(cells: Sequence[Json]) -> Iterator[str]:
    """A section for each work, and in it one for each dtype."""
    for work in works(cells):
        alike = [cell for cell in cells if cell["work"] == work]
        yield f"### {work.capitalize()}\n\n{WORKS.get(work, '')}\n"
        for dtype in dtypes(alike):
            yield f"#### {work.capitalize()}, {dtype}\n"
            for group in same_contenders(alike, dtype):
                yield from of_group(group, dtype)
        yield from notes(alike)


def same_contenders(cells: Sequence[Json], dtype: str) -> list[list[Json]]:
    """The cells that have a dtype, in groups that one table can hold."""
    groups: dict[tuple[str, ...], list[Json]] = {}
    for cell in cells:
        if of_dtype(cell, dtype):
            groups.setdefault(tuple(names(cell, dtype)), []).append(cell)
    return list(groups.values())


def of_group(cells: Sequence[Json], dtype: str) -> Iterator[str]:
    """Times, ratios and floors; folded away: points per second of samplers, phases, memory."""
    yield "Median (20 % to 80 %):\n"
    yield from one_table(cells, dtype, spread)
    yield "Over ours, median of the ratios in each repetition; last, ours over the floor:\n"
    yield from one_table(cells, dtype, over_ours, {"floor": floor, "ours / floor": ours_over_floor})
    folded: list[str] = []
    if cells[0]["work"] == "sampling":
        folded += ["Points per second:\n", *one_table(cells, dtype, points)]
    if any(phases_of(result) for cell in cells for result in of_dtype(cell, dtype)):
        folded += ["Medians of the phases, forward / backward / optimiser:\n", *one_table(cells, dtype, phases)]
    if any(result.get("peak_memory") is not None for cell in cells for result in of_dtype(cell, dtype)):
        folded += ["Peak memory in MB, above what was held before:\n", *one_table(cells, dtype, memory)]
    if folded:
        yield "<details><summary>More of these cells</summary>\n"
        yield from folded
        yield "</details>\n"


def one_table(cells: Sequence[Json], dtype: str, text: Text, more: Mapping[str, Of] = NO_MORE) -> Iterator[str]:
    """A table of what `text` says of each cell and contender, a dash for one that was not timed; then of each cell."""
    rows = []
    for cell in cells:
        shown = [text(cell, result) if result["values"] else "–" for result in of_dtype(cell, dtype)]
        rows.append([where(cell), *shown, *(say(cell, dtype) for say in more.values())])
    yield from table(["", *names(cells[0], dtype), *more], rows)


def spread(cell: Json, result: Json) -> str:
    """The median and the percentiles."""
    return f"{number(result['median'])} ({number(result['percentile_20'])}–{number(result['percentile_80'])})"


def over_ours(cell: Json, result: Json) -> str:
    """The ratio to ours; bold for a peer that is ahead."""
    base = ours(cell, result["dtype"])
    measured = ratio(result, base) if base else None
    if measured is None:
        return "–"
    shown = f"{measured.median:.2f}"
    return f"**{shown}**" if measured.median < 1 and result["role"] == "peer" else shown


def floor(cell: Json, dtype: str) -> str:
    """The floor and what sets it."""
    least = cell["floors"].get(dtype)
    return f"{number(least['time'])}, {least.get('bound', '')}".rstrip(", ") if least else "–"


def ours_over_floor(cell: Json, dtype: str) -> str:
    """How far ours is from the floor."""
    base = ours(cell, dtype)
    return times(over_floor(cell, base)) or "–" if base else "–"


def points(cell: Json, result: Json) -> str:
    """Rows drawn in a second, of all sequences."""
    return f"{cell['setup']['B'] * 1e6 / result['median']:,.0f}"


def phases(cell: Json, result: Json) -> str:
    """Forward, backward and optimiser, or whatever a contender has instead."""
    of = phases_of(result)
    if not set(of) <= set(PHASES):
        return "; ".join(f"{name} {number(phase['median'])}" for name, phase in of.items())
    return " / ".join(number(of[name]["median"]) if name in of else "–" for name in PHASES)


def memory(cell: Json, result: Json) -> str:
    """The peak in MB."""
    peak = result.get("peak_memory")
    return "–" if peak is None else number(peak / 1e6)


def notes(cells: Sequence[Json]) -> Iterator[str]:
    """What else is to be known of a work: repetitions, errors, plans, and why contenders were not timed."""
    results = [result for cell in cells for result in cell["results"]]
    repeats = sorted({len(result["values"]) for result in results if result["values"]})
    load = max((cell["load_before"][0] for cell in cells if cell["load_before"]), default=0.0)
    span = "none" if not repeats else "–".join(str(each) for each in dict.fromkeys((repeats[0], repeats[-1])))
    yield f"- repetitions: {span}; load average before: at most {load:.2f}"
    errors: dict[str, dict[str, float]] = {}
    for result in results:
        if result.get("error") is not None and result["values"]:
            of = errors.setdefault(result["dtype"], {})
            of[name_of(result)] = max(of.get(name_of(result), 0.0), result["error"])
    for dtype, of in errors.items():
        yield f"- largest error, {dtype}: " + ", ".join(f"{name} {error:.0e}" for name, error in of.items())
    yield from plans(cells)
    yield from reasons(cells)
    yield ""


def plans(cells: Sequence[Json]) -> Iterator[str]:
    """The plans that ours took, each with its cells."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for result in cell["results"]:
            if result.get("plan"):
                plan = ", ".join(f"{key} {value}" for key, value in result["plan"].items())
                found.setdefault(f"{result['contender']}, {result['dtype']}: {plan}", []).append(where(cell))
    for plan, places in found.items():
        yield f"- plan of {plan}: {'; '.join(places)}"


def reasons(cells: Sequence[Json]) -> Iterator[str]:
    """Why contenders were not timed, each reason once with its contenders and the number of their cells."""
    found: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        for result in cell["results"]:
            if result.get("reason"):
                who = f"{name_of(result)} in {result['dtype']}"
                found.setdefault(result["reason"], {}).setdefault(who, []).append(where(cell))
    for reason, of in found.items():
        whom = ", ".join(f"{who} ({at[0] if len(at) == 1 else f'{len(at)} cells'})" for who, at in of.items())
        yield f"- not timed: {whom}: {verbatim(reason)}"


def where(cell: Json) -> str:
    """The cell within its work."""
    return title("", cell["model"], cell["setup"])


def names(cell: Json, dtype: str) -> list[str]:
    """The cell's contenders of a dtype."""
    return [name_of(result) for result in of_dtype(cell, dtype)]


def one_line(words: str) -> str:
    """The words without line breaks, so that they stay in their cell or list item."""
    return " ".join(words.split())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table, and an empty line after it."""
    yield "| " + " | ".join(map(escaped, header)) + " |"
    yield "|" + "---|" * len(header)
    yield from ("| " + " | ".join(map(escaped, row)) + " |" for row in rows)
    yield ""


def escaped(words: str) -> str:
    """The words as they are to be read in a table's cell."""
    return one_line(words).replace("|", "\\|").replace("<", "\\<")


def verbatim(words: str) -> str:
    """The words as code: what a contender or a process said, which is not Markdown."""
    return f"`{one_line(words).replace('`', chr(39))}`"
