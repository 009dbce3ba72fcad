"""`python -m bench.report`: write docs/benchmark.md and its charts from the results, every figure on it from JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fusedmdn.files import write as replace_file

from . import chart, targets
from .cell import title
from .gpu_page import condensed
from .gpu_page.common import Rows
from .judge import Standing, asked, judge, lost, standings
from .markdown import of_works, one_line, table, verbatim
from .results import DamagedError, Json, Run, files, in_order, load, works
from .table import number, times
from .targets import AtLeast, AtMost

HEAD = """# Benchmark

Written by `python -m bench.report`; no figure on this page is typed by hand. `make bench` measures on the machine at
hand and writes this page anew.

- **Ours** is `FusedLSTMMDN`: training by the module's own loss, sampling by its operator, the loss by the operator
  alone, each with the plan that it takes by default.
- **In turn.** All contenders of a cell, in all dtypes, ran in one process, on the CPU pinned to as many cores as there
  are threads; each repetition ran every contender once. Each part of a run has a process of its own.
- **Medians**, with the 20th and 80th percentiles. Ratios are medians of the ratios in each repetition, of a contender
  to ours in the same dtype: above 1, ours is faster.
- **Right first.** Before it was timed, each contender's output was compared with a float64 reference: losses and
  training steps in value and in every gradient, samplers in the mixtures of given rows and in the moments of their
  draws. One that was wrong or could not run has its reason instead of figures.
- **Training** is forward and backward; the optimiser was timed apart and is not in it.
- **Floors** are the least time in which the machine could do a cell's arithmetic or move its bytes, at rates that were
  measured in the same run (its ceilings, below). A stand-in does less than is asked, and is not counted as a peer.

Every single time is in the JSON files, of which these are shown: {names}.
"""
UNMEASURED = (
    "No GPU has run this benchmark yet. [Its plans beside cuDNN's layer](gpu-measured.md) were timed on one; here are "
    "[floors and resources of its kernels](#gpu-floors-not-measured).\n"
)

UNASKED = "No run has the cells that the targets are about: model {model}, {threads} on a CPU.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code: 1 where a file was damaged, 2 where there are no results."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="results; all of --results if none is given"
    )
    parser.add_argument("--results", type=Path, default=Path("bench/results"), metavar="DIRECTORY")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmark.md"), metavar="FILE")
    given = parser.parse_args(argv)
    paths = given.files or files(given.results)
    if not paths:
        print(f"{given.results}: has no cpu-*.json or gpu-*.json; run `make bench` first", file=sys.stderr)
        return 2
    runs, damaged = load_all(paths)
    for line in damaged:
        print(line, file=sys.stderr)
    if runs:
        for path, text in {**charts(runs, given.out), given.out: page(runs, given.out.stem)}.items():
            write(path, text)
            print(f"wrote {path}")
    return int(bool(damaged))


def load_all(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs in order, and a line on every file that holds none."""
    runs: dict[str, Run] = {}
    damaged = []
    for path in paths:
        if path.stem in runs:
            damaged.append(f"{path}: another file of this name was given")
            continue
        try:
            runs[path.stem] = load(path)
        except DamagedError as error:
            damaged.append(one_line(str(error)))
    return in_order(runs.values()), damaged


def write(path: Path, text: str) -> None:
    """The whole file, in one moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)


def charts(runs: Iterable[Run], out: Path) -> dict[Path, str]:
    """Every run's charts, in the folder that is named as the page."""
    drawn = {name_of(run, work): chart.chart(run, work) for run in runs for work in works(run.json["cells"])}
    return {out.parent / out.stem / name: text for name, text in drawn.items() if text}


def name_of(run: Run, work: str) -> str:
    """A chart's file."""
    return f"{run.slug}-{work}.svg"


def page(runs: Sequence[Run], folder: str) -> str:
    """The whole page; its charts are in `folder`, next to it."""
    parts = [HEAD.format(names=", ".join(f"`{run.slug}.json`" for run in runs))]
    for section in (summary(runs), pictures(runs, folder), targets_met(runs), cells_lost(runs)):
        parts += section
    for run in runs:
        parts += of_run(run)
    if not on_gpu(runs):
        parts += condensed.sections(Rows())
    return "\n".join(parts).rstrip() + "\n"


def on_gpu(runs: Sequence[Run]) -> bool:
    """Whether any run was made on a GPU."""
    return any(run.where["device"] == "cuda" for run in runs)


def summary(runs: Sequence[Run]) -> Iterator[str]:
    """A line for each work and dtype of a run."""
    yield "## Who is ahead\n"
    yield "The fastest peer's time over ours, over all cells of a work: above 1, ours is faster.\n"
    header = ["device", "work", "dtype", "geometric mean", "range", "won", "lost", "no peer", "ours untimed"]
    lines = [[run.title, *line(standing)] for run in runs for standing in standings(run)]
    yield from table([*header, "ours / floor"], lines)
    yield "Won, lost: cells in which no peer of the same dtype is ahead of ours, in which one is. No peer: cells in"
    yield "which ours alone was timed in that dtype. The last column is the range of our medians over the floors.\n"
    if not on_gpu(runs):
        yield UNMEASURED


def line(standing: Standing) -> list[str]:
    """A standing, column by column."""
    mean = "–" if standing.mean is None else f"**{standing.mean:.2f}**"
    counts = (standing.won, standing.lost, standing.alone, standing.untimed)
    return [standing.work, standing.dtype, mean, span(standing.ratios), *map(str, counts), span(standing.floors)]


def span(values: Sequence[float]) -> str:
    """The least and the greatest."""
    if not values:
        return "–"
    return "–".join(dict.fromkeys((times(min(values)), times(max(values)))))


def pictures(runs: Sequence[Run], folder: str) -> Iterator[str]:
    """Every chart."""
    for run in runs:
        for work in works(run.json["cells"]):
            if chart.chart(run, work):
                yield f"![{work.capitalize()}, {run.title}]({folder}/{name_of(run, work)})\n"


def targets_met(runs: Sequence[Run]) -> Iterator[str]:
    """Every target with its figure, of the runs that have such cells."""
    yield "## Asked and measured\n"
    judged: dict[str, list[Run]] = {}
    for run in filter(asked, runs):
        judged.setdefault(run.device, []).append(run)
    for device, alike in judged.items():
        yield f"Model {targets.MODEL}, {device}, {targets.THREADS} thread; judged by the median.\n"
        rows = []
        for target, measured, outcome in judge(alike):
            minima = "" if measured is None or measured.minima is None else f"{measured.minima:.2f}"
            median = "" if measured is None else f"{measured.median:.2f}"
            shown = f"**{outcome}**" if outcome == "missed" else outcome
            rows.append([of_what(target), bound(target), median, minima, shown])
        yield from table(["figure", "asked", "by medians", "by minima", ""], rows)
        verdicts = [row[-1].strip("*") for row in rows]
        unknown = len(rows) - verdicts.count("met") - verdicts.count("missed")
        yield f"Met: {verdicts.count('met')}; missed: {verdicts.count('missed')}; without a figure: {unknown}.\n"
    if not judged:
        yield UNASKED.format(model=targets.MODEL, threads=f"{targets.THREADS} thread")


def of_what(target: AtLeast | AtMost) -> str:
    """A target in words."""
    where, mine = title(target.work, None, target.setup), f"ours in {target.dtype}"
    if isinstance(target, AtMost):
        return f"{where}: {mine} over {'the floor' if target.of == 'floor' else 'raw, peak memory'}"
    return f"{where}: {target.peer} in {target.peer_dtype} over {mine}"


def bound(target: AtLeast | AtMost) -> str:
    """What is asked of a target."""
    if isinstance(target, AtMost):
        return f"≤ {target.bound:g}"
    return f"≥ {target.bound:g}" + ("" if target.aim is None else f" (aim {target.aim:g})")


def cells_lost(runs: Sequence[Run]) -> Iterator[str]:
    """Every cell in which a peer of the same dtype is ahead, on every device."""
    rows = []
    for run in runs:
        for cell, dtype, ahead in lost(run):
            name = title(cell["work"], cell["model"], cell["setup"])
            peers = [f"{peer} {1 / r.median:.2f}× ({1 / r.minima:.2f}×)" for peer, r in ahead.items()]
            rows.append([run.title, name, dtype, ", ".join(peers)])
    yield "## Cells lost\n"
    if not rows:
        yield "None: in no cell is a peer of the same dtype ahead of ours.\n"
        return
    yield "Cells in which a peer takes less than ours, and ours as a multiple of it, by medians (by minima).\n"
    yield from table(["device", "cell", "dtype", "peers ahead, ours as a multiple of each"], rows)


def of_run(run: Run) -> Iterator[str]:
    """Where it was made, what the machine can do, what was measured, what went wrong."""
    yield f"## {run.title}\n"
    yield from environment(run.where)
    yield from ceilings(run.json["ceilings"])
    yield from troubles(run.json)
    yield from of_works(run.json["cells"])


def environment(where: Json) -> Iterator[str]:
    """What the figures depend on."""
    gpu, options = where.get("gpu") or {}, where.get("options") or {}
    lines = {
        "date": where.get("date"),
        "GPU": listed({name: value for name, value in gpu.items() if value is not None}),
        "processor": f"{where['cpu']}, {where.get('cores')} cores; pinned to {where.get('pinned_to')}",
        "threads": where["threads"],
        "caches": listed(where.get("caches") or {}, "; "),
        "instruction set": where.get("isa"),
        "backends": listed(where.get("backends") or {}),
        "system": f"{where.get('os')}, Python {where.get('python')}",
        "versions": listed({name: value or "not installed" for name, value in where.get("versions", {}).items()}),
        "revision": where.get("revision") or "not known",
        "options": listed({name: value for name, value in options.items() if value is not None}),
        "load before": ", ".join(f"{load:.2f}" for load in where.get("load_before") or []),
    }
    told = {name: one_line(str(value)) for name, value in lines.items() if value not in (None, "")}
    width = max(map(len, told))
    yield "\n".join(f"    {name:<{width}}  {value}" for name, value in told.items()) + "\n"


def listed(entries: Json, between: str = ", ") -> str:
    """Names and values."""
    return between.join(f"{name} {value}" for name, value in entries.items())


def ceilings(measured: Json) -> Iterator[str]:
    """The rates that the floors presume."""
    by = measured.get("by") or {}
    rows = [
        [f"products, {dtype}", f"{number(rate / 1e9)}·10⁹ multiply-adds/s", by.get(dtype, "")]
        for dtype, rate in measured.get("multiply_adds", {}).items()
    ]
    if measured.get("bandwidth"):
        rows.append(["memory", f"{number(measured['bandwidth'] / 1e9)} GB/s", by.get("bandwidth", "")])
    rows += [
        [f"reading {int(size) / 1e6:,.2f} MB again", f"{number(rate / 1e9)} GB/s", by.get(f"reads {size}", "")]
        for size, rate in measured.get("reads", {}).items()
    ]
    if rows:
        yield "### Ceilings\n"
        yield from table(["", "measured", "by"], [[name, rate, str(how)] for name, rate, how in rows])


def troubles(run: Json) -> Iterator[str]:
    """Tests and promises of a GPU, parts whose process died, and what was left out."""
    if run["parts"]:
        yield "### Tests and promises\n"
        yield from table(["part", ""], [[name, outcome(part)] for name, part in run["parts"].items()])
    if run["troubles"]:
        yield "### Troubles\n"
        yield from (f"- {part}: {verbatim(line)}" for part, line in run["troubles"].items())
        yield ""
    if run["left_out"]:
        yield "### Left out\n"
        yield from (f"- {one_line(line)}" for line in run["left_out"])
        yield ""


def outcome(part: Json) -> str:
    """A part's trouble, why it was left out, or that it has none."""
    return str(part.get("trouble") or part.get("left out") or "as it should be")


if __name__ == "__main__":
    sys.exit(main())
