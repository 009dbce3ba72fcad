"""`python -m bench.compare BASE`: is the working tree slower than a revision?"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..environment import ROOT, describe
from ..processes import available_cores
from ..screen import console
from ..speed.cases import CASES
from . import checkouts, report, turns
from .colleague import Died, measuring

HELP = (  # in one piece: typer would keep a docstring's line breaks
    "Compare the working tree, uncommitted changes included, with the revision BASE. Both are built and installed in "
    "the same way under build/compare, and run the working tree's cases (bench/speed) in turn on the same cores. A "
    "case is slower if the median of its paired ratios is above RATIO and four fifths of them are above 1, and this "
    "comes out a second time. Exit code: 0; 1 if a case is slower; 2 for arguments that do not fit; 3 if a build "
    "failed, if the working tree cannot do a case that BASE can, or if nothing was compared."
)


def main(
    base: Annotated[str, typer.Argument(metavar="BASE", help="any git revision: HEAD~1, main, a tag, a commit")],
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="of every case")] = 30,
    only: Annotated[str, typer.Option(metavar="WORD", help="cases that have this in their names")] = "",
    above: Annotated[float, typer.Option(metavar="RATIO", help="slower is what exceeds this")] = 1.05,
    threads: Annotated[int, typer.Option(metavar="N", help="of either revision")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="all times, for later")] = None,
) -> None:
    """Is the working tree, uncommitted changes included, slower than the revision BASE?"""
    screen = console()
    cores = available_cores()
    if not 1 <= threads <= len(cores):
        _refuse(f"--threads {threads}: this process may use 1 to {len(cores)} cores")
    if not above >= 1:
        _refuse(f"--above {above}: must be >= 1")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        _refuse(f"--out {out}: expected a file's name in a directory that exists")
    tolerances = {name: case.tolerance for name, case in CASES.items() if only in name}
    if not tolerances:
        _refuse(f"--only {only!r}: no case has this in its name; there are\n  " + "\n  ".join(CASES))
    try:
        commit = checkouts.commit_of(ROOT, base)
    except checkouts.Unknown as unknown:
        _refuse(str(unknown))
    where = {**describe(threads), "pinned_to": cores[-threads:]}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the blocks' ends clean up
    say = functools.partial(screen.print, highlight=False, soft_wrap=True)
    try:
        with checkouts.installed(ROOT, commit, say) as pair:
            outcomes = measure(pair, tolerances, repeats, above, cores[-threads:], screen)
    except (checkouts.NotBuilt, Died) as trouble:
        print(trouble, file=sys.stderr)
        raise typer.Exit(report.INCOMPLETE) from None
    screen.print(report.table(outcomes, above))
    if out is not None:
        options = {"base": base, "repeats": repeats, "only": only, "above": above, "threads": threads}
        revisions = {"base": pair.base.commit, "head": pair.head.commit}
        cases = report.as_json(outcomes, above)
        report.write(out, {**revisions, "options": options, "environment": where, "cases": cases})
        say(f"wrote {out}")
    raise typer.Exit(report.exit_code(outcomes, above))


def measure(
    pair: checkouts.Pair, tolerances: dict[str, float], repeats: int, above: float, cores: list[int], screen: Console
) -> list[turns.Compared]:
    """Compare the cases, with a progress bar; raises Died where a worker does not start."""
    start = {
        side: functools.partial(measuring, revision.site, pair.harness, cores, len(cores))
        for side, revision in (("base", pair.base), ("head", pair.head))
    }
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # A bar that moves by itself would take time from what is measured.
    with Progress(*columns, console=screen, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("starting", total=len(tolerances))

        def tick(case: str) -> None:
            progress.update(task, description=case, advance=0.5 / repeats, refresh=screen.is_terminal)

        outcomes = []
        with contextlib.closing(turns.compare(start, tolerances, repeats, above, tick=tick)) as stream:
            for outcome in stream:
                outcomes.append(outcome)
                progress.update(task, completed=len(outcomes), refresh=screen.is_terminal)
    return outcomes


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(2)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(help=HELP)(main)

if __name__ == "__main__":
    app(prog_name="python -m bench.compare")
