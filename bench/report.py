"""`python -m bench.report`: write docs/cpu.md from the results, every figure on it from the JSON files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import targets
from .cell import title
from .judge import judge, lost
from .markdown import table, works
from .results import Json, load
from .targets import AtLeast, AtMost

HEAD = """# CPU benchmark

Written by `python -m bench.report` from `{results}`; no figure on this page is typed by hand. Measure again with

    make bench-cpu

which takes `python -m bench.cpu` (its `--help` tells the options) and then writes this page.

Contenders of a cell ran in one process, pinned to as many cores as it has threads: each repetition ran every contender
once, in turn. Figures are medians with minima in brackets; lower is better. Ratios are medians, over repetitions, of a
contender's figure over ours. Before it was timed, each contender's output was compared with a float64 reference; one
that was wrong or could not run has its reason instead of figures. Samplers were run over given rows, and the moments of
their draws compared with the mixture's; losses and training steps were compared in value and in every gradient. Every
single time, processor times too, is in the JSON files.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("bench/results"), metavar="DIRECTORY")
    parser.add_argument("--out", type=Path, default=Path("docs/cpu.md"), metavar="FILE")
    given = parser.parse_args(argv)
    runs = load(given.results)
    if not runs:
        print(f"{given.results}: has no cpu-*.json; run python -m bench.cpu first", file=sys.stderr)
        return 2
    given.out.write_text(page(runs, str(given.results)))
    print(f"wrote {given.out}")
    return 0


def page(runs: list[Json], results: str) -> str:
    """The whole page."""
    parts = [HEAD.format(results=results), "## Asked and measured\n"]
    judged = [run for run in runs if run["environment"]["threads"] == targets.THREADS]
    for run in judged:
        parts.append("\n".join(asked(run)))
    if not judged:
        parts.append(f"Nothing was measured on {threads(targets.THREADS)}.\n")
    parts.append("## Cells lost\n")
    parts.append("\n".join(cells_lost(runs)))
    for run in runs:
        parts.append(f"## {run['environment']['cpu']}, {threads(run['environment']['threads'])}\n")
        parts.append("\n".join(environment(run["environment"])))
        parts.append("\n".join(works(run)))
    return "\n".join(parts)


def asked(run: Json) -> Iterator[str]:
    """Every target with its figure."""
    where = run["environment"]
    yield f"Model {targets.MODEL}, {threads(targets.THREADS)}, {where['cpu']}; judged by the median.\n"
    rows = []
    for target, measured, outcome in judge(run):
        bound = f"{'≥' if isinstance(target, AtLeast) else '≤'} {target.bound:g}"
        if isinstance(target, AtLeast) and target.aim is not None:
            bound += f" (aim {target.aim:g})"
        figures = ("", "") if measured is None else (f"{measured.median:.2f}", f"{measured.minima:.2f}")
        shown = f"**{outcome}**" if outcome == "missed" else outcome
        rows.append([_of_what(target), bound, *figures, shown])
    yield from table(["figure", "asked", "by medians", "by minima", ""], rows)
    verdicts = [row[-1].strip("*") for row in rows]
    unknown = len(rows) - verdicts.count("met") - verdicts.count("missed")
    yield f"Met: {verdicts.count('met')}; missed: {verdicts.count('missed')}; without a figure: {unknown}.\n"


def cells_lost(runs: list[Json]) -> Iterator[str]:
    """Every cell in which a peer is ahead, on every machine and number of threads."""
    rows = []
    for run in runs:
        where = run["environment"]
        for cell, ours, ahead in lost(run):
            name = title(cell["work"], cell["model"], cell["setup"])
            peers = [f"{peer} {1 / r.median:.2f}× ({1 / r.minima:.2f}×)" for peer, r in ahead.items()]
            rows.append([where["cpu"], str(where["threads"]), name, ours, ", ".join(peers)])
    if not rows:
        yield "None: in no cell is a peer ahead of ours.\n"
        return
    yield "Cells in which a peer takes less than ours, and ours as a multiple of it, by medians (by minima).\n"
    yield from table(["processor", "threads", "cell", "ours", "peers ahead, ours as a multiple of each"], rows)


def environment(where: Json) -> Iterator[str]:
    """What the figures depend on."""
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in where["versions"].items())
    caches = "; ".join(f"{name} {size}" for name, size in where["caches"].items())
    backends = ", ".join(f"{operator} {backend}" for operator, backend in where["backends"].items())
    lines = {
        "date": where["date"],
        "processor": f"{where['cpu']}, {where['cores']} cores; pinned to {where['pinned_to']}",
        "caches": caches,
        "instruction set": where["isa"] or "not told",
        "backends": backends,
        "system": f"{where['os']}, Python {where['python']}",
        "versions": versions,
        "revision": where["revision"] or "not known",
        "load average before": ", ".join(f"{load:.2f}" for load in where["load_before"]),
    }
    width = max(map(len, lines))
    yield "\n".join(f"    {name:<{width}}  {value}" for name, value in lines.items()) + "\n"


def threads(count: int) -> str:
    """The number of threads in words."""
    return f"{count} thread{'' if count == 1 else 's'}"


def _of_what(target: AtLeast | AtMost) -> str:
    setup: dict[str, Any] = target.setup
    where = title(target.work, None, setup)
    if isinstance(target, AtLeast):
        return f"{where}: {target.peer} over {target.ours}"
    of = "the machine's limit" if target.work == "limit" else "y"
    return f"{where}: {target.ours} over {of}"


if __name__ == "__main__":
    sys.exit(main())
