"""A work's cells as a picture (SVG): every contender against ours, on a logarithmic axis of multiples of ours.

A row is a cell in one dtype. Ours stands at 1x, so all that lies right of that line is slower than ours, and what
stands in the shade is faster. Absolute times are beside the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from .cell import title
from .judge import best_peer
from .results import Json, Run, dtypes, of_dtype, ours, ratio
from .table import name_of, number, times

WIDTH = 900
LABELS, PLOT, TIME, BEST = 20, (255, 610), 682, 698  # where each column is, from the left
ROW, LANE, MARK = 26, 8, 4.6  # heights of a row and of a lane in it; half a mark's width
LETTER = 6.4  # width of a character, at most
COLOURS = {  # by Okabe and Ito, told apart by colour-blind readers; darker and lighter where the ground asks for it
    "orange": ("#b36b00", "#f0a830"),
    "red": ("#c2410c", "#ff7a45"),
    "green": ("#00795a", "#2fc79c"),
    "sky": ("#1b7fb5", "#6cc4f5"),
    "purple": ("#a3487f", "#e08abf"),
    "grey": ("#57606a", "#aab4be"),
}
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
KNOWN = {  # the library is the colour, what is done with it the shape
    "nn.LSTM loop": ("orange", "circle"),
    "nn.LSTM + eager loss": ("orange", "circle"),
    "nn.LSTM + torch.compile loss": ("orange", "square"),
    "nn.LSTM padded": ("orange", "triangle"),
    "nn.LSTM packed": ("orange", "down"),
    "eager": ("orange", "circle"),
    "naive eager": ("orange", "cross"),
    "torch.compile": ("red", "square"),
    "torch.compile step": ("red", "square"),
    "nn.LSTMCell loop": ("green", "triangle"),
    "written-out cell loop": ("green", "down"),
    "TorchScript": ("grey", "down"),
    "JAX": ("purple", "diamond"),
    "JAX scan": ("purple", "diamond"),
    "ONNX Runtime": ("sky", "cross"),
}
VARYING = {"steps"}  # of a setup: no matter to a reader of ratios
DERIVED = {"training": {"rows"}}  # by work: what follows from the rest of the setup

GROUND = {  # of what is not a contender: on light and on dark ground
    "ground": ("fill", "#ffffff", "#0d1117"),
    "text": ("fill", "#1f2328", "#e6edf3"),
    "faint": ("fill", "#59636e", "#9198a1"),
    "ours": ("fill", "#0b3d91", "#79b8ff"),
    "behind": ("fill", "#c2410c", "#ff7a45"),
    "band": ("fill", "#f3f5f8", "#161b22"),
    "faster": ("fill", "#c2410c", "#ff7a45"),
    "grid": ("stroke", "#d5dae0", "#30363d"),
    "line": ("stroke", "#0b3d91", "#79b8ff"),
    "floor": ("stroke", "#1f2328", "#e6edf3"),
}
EXPLAINED = "Multiples of our time, logarithmic. Marks: medians of the ratios in each repetition; lines: 20 to 80 %."


class Mark(NamedTuple):
    """A contender in a row, in multiples of ours."""

    name: str
    middle: float
    low: float
    high: float


class Row(NamedTuple):
    """A cell in one dtype: its label, our time in words, its marks, its floor in multiples of ours, the best peer."""

    label: str
    dtype: str
    time: str
    marks: list[Mark]
    floor: float | None
    best: tuple[str, float] | None


class Axis(NamedTuple):
    """Multiples of ours from left to right, by their logarithms."""

    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a multiple stands."""
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return PLOT[0] + part * (PLOT[1] - PLOT[0])

    def ticks(self) -> list[float]:
        """Round multiples, as many as have room."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        within = [
            [
                step * 10.0**decade
                for decade in decades
                for step in steps
                if self.low <= step * 10.0**decade <= self.high
            ]
            for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
        ]
        return next((ticks for ticks in within if len(ticks) <= 8), within[-1])


def chart(run: Run, work: str) -> str | None:
    """The picture of a work as SVG, or None if ours was timed in none of its cells."""
    cells = [cell for cell in run.json["cells"] if cell["work"] == work]
    same = shared(cells)
    rows = list(rows_of(cells, same))
    if not rows:
        return None
    names = list(dict.fromkeys(mark.name for row in rows for mark in row.marks if mark.name != "ours"))
    styles = styles_of(names)
    legend = list(legend_of(names, styles, floors=any(row.floor for row in rows)))
    top = 56 + 20 * len(legend) + 42
    height = top + ROW * len(rows) + 54
    heading = f"{work.capitalize()}: each peer's time as a multiple of ours"
    common = title("", None, same)
    parts = [
        *head(height, heading, ", ".join([run.title, *([common] if common else [])])),
        *legend,
        *plot(rows, styles, axis_of(rows), top, cells[0]["unit"].replace("us", "µs")),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def shared(cells: Sequence[Json]) -> Json:
    """What the setups of all cells have in common; nothing of a single cell's."""
    if len(cells) < 2:
        return {}
    first = cells[0]["setup"].items()
    drop = VARYING | DERIVED.get(cells[0]["work"], set())
    return {k: v for k, v in first if k not in drop and all(cell["setup"].get(k) == v for cell in cells)}


def rows_of(cells: Iterable[Json], same: Json) -> Iterator[Row]:
    """Every cell and dtype in which ours was timed."""
    for cell in cells:
        drop = {*same, *VARYING, *DERIVED.get(cell["work"], set())}
        label = title("", cell["model"], {k: v for k, v in cell["setup"].items() if k not in drop})
        for dtype in dtypes([cell]):
            base = ours(cell, dtype)
            if base is None or not base["values"]:
                continue
            floor, best = cell["floors"].get(dtype), best_peer(cell, dtype)
            over = floor["time"] / base["median"] if floor and floor["time"] > 0 else None
            ahead = (best[0], best[1].median) if best else None
            yield Row(label, dtype, number(base["median"]), list(marks_of(cell, base)), over, ahead)
            label = ""


def marks_of(cell: Json, base: Json) -> Iterator[Mark]:
    """Ours first, and who was timed beside it."""
    middle = base["median"]
    yield Mark("ours", 1.0, base["percentile_20"] / middle, base["percentile_80"] / middle)
    for result in of_dtype(cell, base["dtype"]):
        measured = None if result is base else ratio(result, base)
        if measured:
            yield Mark(name_of(result), measured.median, measured.percentile_20, measured.percentile_80)


def styles_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and shape of each contender: its own, or the next that no other has."""
    styles = {name: KNOWN[name] for name in names if name in KNOWN}
    free = [(colour, shape) for shape in SHAPES for colour in COLOURS if (colour, shape) not in KNOWN.values()]
    for name in names:
        if name not in styles:
            styles[name] = free[sum(other not in KNOWN for other in styles) % len(free)]
    return styles


def axis_of(rows: Sequence[Row]) -> Axis:
    """From the least to the greatest of what is drawn, ours well inside."""
    drawn = [value for row in rows for mark in row.marks for value in (mark.low, mark.high)]
    drawn += [row.floor for row in rows if row.floor]
    low, high = min([0.8, *drawn]), max([1.5, *drawn])
    margin = (high / low) ** 0.03
    return Axis(low / margin, high * margin)


def head(height: int, heading: str, under: str) -> Iterator[str]:
    """The picture's frame, colours and title."""
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(heading)}">'
    yield "<style>"
    yield "text{font-family:-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:11px}"
    yield ".title{font-size:15px;font-weight:600}.strong{font-weight:600}.end{text-anchor:end}.mid{text-anchor:middle}"
    yield ".floor{stroke-width:2}.line{stroke-width:1.2}.whisker{stroke-width:1.3;fill:none}.faster{opacity:.09}"
    yield from rules(0)
    yield "@media(prefers-color-scheme:dark){"
    yield from rules(1)
    yield "}</style>"
    yield f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>'
    yield text(LABELS, 28, heading, "text title")
    yield text(LABELS, 46, under, "faint")


def rules(ground: int) -> Iterator[str]:
    """The colours on light (0) or dark (1) ground."""
    for name, (what, *colours) in GROUND.items():
        yield f".{name}{{{what}:{colours[ground]}}}"
    for name, shades in COLOURS.items():
        yield f".{name}{{fill:{shades[ground]};stroke:{shades[ground]}}}"
    edge = GROUND["ground"][1 + ground]
    yield f".mark{{stroke:{edge};stroke-width:.9}}"


def legend_of(names: Sequence[str], styles: dict[str, tuple[str, str]], floors: bool) -> Iterator[str]:
    """Lines of what each mark means, one string to a line."""
    entries = [(star(0, 0), "ours", "ours strong")]
    entries += [(mark(0, 0, *styles[name]), name, "text") for name in names]
    if floors:
        entries.append((floor_tick(0, 0), "floor: least time that the machine allows", "text"))
    x, line, lines = float(LABELS), list[str](), list[list[str]]()
    for drawn, name, style in entries:
        width = 30 + LETTER * len(name)
        if line and x + width > WIDTH - LABELS:
            lines.append(line)
            x, line = float(LABELS), []
        y = 68 + 20 * len(lines)
        line.append(f'<g transform="translate({x + 7:.1f} {y})">{drawn}</g>{text(x + 18, y + 4, name, style)}')
        x += width
    yield from ("".join(line) for line in [*lines, line])


def plot(rows: Sequence[Row], styles: dict[str, tuple[str, str]], axis: Axis, top: int, unit: str) -> Iterator[str]:
    """The rows between their grid and the columns beside it."""
    bottom, one = top + ROW * len(rows), axis.x(1)
    for n, (ours_is, peer_is) in enumerate((("our median,", "fastest peer,"), (unit, "multiple of ours"))):
        yield text(TIME, top - 22 + 13 * n, ours_is, "faint end")
        yield text(BEST, top - 22 + 13 * n, peer_is, "faint")
    slower = "slower than ours ▸"
    yield text(one - 8, top - 9, "◂ faster than ours", "faint end")
    if one + 8 + LETTER * len(slower) < PLOT[1]:
        yield text(one + 8, top - 9, slower, "faint")
    yield from bands(rows, top)
    yield f'<rect class="faster" x="{PLOT[0]}" y="{top}" width="{one - PLOT[0]:.1f}" height="{bottom - top}"/>'
    for value in axis.ticks():
        x = axis.x(value)
        yield f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>{text(x, bottom + 15, f"{value:g}×", "faint mid")}'
    yield f'<path class="line" d="M{one:.1f} {top - 4}V{bottom}"/>'
    for place, row in enumerate(rows):
        yield from drawn(row, styles, axis, top + ROW * place + ROW / 2)
    yield text(LABELS, bottom + 38, EXPLAINED, "faint")


def bands(rows: Sequence[Row], top: int) -> Iterator[str]:
    """A shade behind every other cell."""
    number = -1
    for place, row in enumerate(rows):
        number += bool(row.label)
        if number % 2 == 0:
            yield f'<rect class="band" x="10" y="{top + ROW * place}" width="{WIDTH - 20}" height="{ROW}"/>'


def drawn(row: Row, styles: dict[str, tuple[str, str]], axis: Axis, y: float) -> Iterator[str]:
    """A row: what it is, its marks, our time, and the best peer's multiple of it."""
    lines = wrapped(row.label, 28) if row.label else []
    for place, line in enumerate(lines):
        yield text(LABELS, y + 4 + 11 * place - 5.5 * (len(lines) - 1), line, "text")
    yield text(PLOT[0] - 10, y + 4, row.dtype, "faint end")
    if row.floor:
        yield floor_tick(axis.x(row.floor), y)
    places = lanes(row.marks, axis)
    for each, lane in reversed(list(zip(row.marks, places, strict=True))):
        style = ("line", "") if each.name == "ours" else styles[each.name]
        middle, low, high, level = axis.x(each.middle), axis.x(each.low), axis.x(each.high), y + LANE * lane
        yield f'<path class="{style[0]} whisker" d="M{low:.1f} {level:.1f}H{high:.1f}"/>'
        yield star(middle, level) if each.name == "ours" else mark(middle, level, *style)
    yield text(TIME, y + 4, row.time, "ours strong end")
    if row.best:
        name, multiple = row.best
        yield text(BEST, y + 4, f"{times(multiple)}×", f"{'behind' if multiple < 1 else 'text'} strong")
        yield mark(BEST + 46, y, *styles[name])
        yield text(BEST + 56, y + 4, cut(name, 21), "behind" if multiple < 1 else "faint")
    else:
        yield text(BEST, y + 4, f"no peer in {row.dtype}", "faint")


def lanes(marks: Sequence[Mark], axis: Axis) -> list[int]:
    """Above, on or below the row's middle, so that marks which are close do not hide each other."""
    taken: dict[int, list[float]] = {0: [], -1: [], 1: []}
    places = []
    for each in marks:
        x = axis.x(each.middle)
        gaps = {lane: min((abs(x - other) for other in others), default=math.inf) for lane, others in taken.items()}
        if each.name == "ours":
            taken[0] += [x - MARK, x + MARK]  # it is larger
        lane = next((lane for lane, gap in gaps.items() if gap >= 2 * MARK + 1), max(gaps, key=gaps.__getitem__))
        taken[lane].append(x)
        places.append(lane)
    return places


def mark(x: float, y: float, colour: str, shape: str) -> str:
    """A peer's mark."""
    r = MARK
    corners: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        "down": [(0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
        "diamond": [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
        "cross": [(-1.2, -0.45), (-0.45, -0.45), (-0.45, -1.2), (0.45, -1.2), (0.45, -0.45), (1.2, -0.45),
                  (1.2, 0.45), (0.45, 0.45), (0.45, 1.2), (-0.45, 1.2), (-0.45, 0.45), (-1.2, 0.45)],
    }  # fmt: skip
    if shape == "circle":
        return f'<circle class="{colour} mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners[shape])
    return f'<polygon class="{colour} mark" points="{points}"/>'


def star(x: float, y: float) -> str:
    """Our mark, larger than any other."""
    corners = [(7.5 if k % 2 == 0 else 3.4, math.pi * (k / 5 - 0.5)) for k in range(10)]
    points = " ".join(f"{x + r * math.cos(angle):.1f},{y + r * math.sin(angle):.1f}" for r, angle in corners)
    return f'<polygon class="ours mark" points="{points}"/>'


def floor_tick(x: float, y: float) -> str:
    """The mark of a floor."""
    return f'<path class="floor" d="M{x:.1f} {y - 8:.1f}V{y + 8:.1f}"/>'


def text(x: float, y: float, words: str, style: str) -> str:
    """Words that start, or end, at a point."""
    return f'<text class="{style.strip()}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def wrapped(words: str, most: int) -> list[str]:
    """One or two lines of so many characters at most, parted at a comma."""
    if len(words) <= most:
        return [words]
    at = words.rfind(", ", 0, most)
    return [words] if at < 0 else [words[: at + 1], cut(words[at + 2 :], most)]


def cut(words: str, most: int) -> str:
    """The words, or their beginning where there are more characters."""
    return words if len(words) <= most else words[: most - 1].rstrip(" ,") + "…"
