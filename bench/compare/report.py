"""The outcome as a table in the terminal, as JSON, and as an exit code."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fusedmdn import files

from .turns import Compared
from .verdict import FASTER, SAME, SLOWER

GOOD, REGRESSED, INCOMPLETE = 0, 1, 3  # 2 is for arguments that do not fit
STYLE = {SLOWER: "bold red", FASTER: "green", SAME: ""}


def exit_code(outcomes: Sequence[Compared], above: float) -> int:
    """REGRESSED if a case is slower; INCOMPLETE if the head cannot do what the base can, or nothing was timed."""
    if any(outcome.verdict(above) == SLOWER for outcome in outcomes):
        return REGRESSED
    broken = any("head" in outcome.reasons and "base" not in outcome.reasons for outcome in outcomes)
    return INCOMPLETE if broken or all(outcome.reasons for outcome in outcomes) else GOOD


def table(outcomes: Sequence[Compared], above: float) -> Table:
    """A line for each case; a reason where it was not timed."""
    shown = Table("case", title="head / base, medians of paired times", title_justify="left")
    for column in ("base ms", "head ms", "ratio", "20th to 80th"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    for outcome in outcomes:
        shown.add_row(escape(outcome.case), *_figures(outcome), _words(outcome, above))
    return shown


def _figures(outcome: Compared) -> list[str]:
    ratio = outcome.ratio
    if ratio is None:
        return [""] * 4
    medians = [f"{1e3 * statistics.median(outcome.times[side]):.4g}" for side in ("base", "head")]
    return [*medians, f"{ratio.median:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"]


def _words(outcome: Compared, above: float) -> str:
    verdict = outcome.verdict(above)
    if verdict is None:
        return escape("; ".join(f"{side}: {reason}" for side, reason in outcome.reasons.items()))
    words = f"[{STYLE[verdict]}]{verdict}[/]" if STYLE[verdict] else verdict
    if outcome.values_differ:
        words += f", [bold red]values differ[/] by {outcome.deviation:.1e}"
    return words


def as_json(outcomes: Sequence[Compared], above: float) -> list[dict[str, Any]]:
    """What is known of every case: seconds a call of every repetition, and what follows."""
    return [
        {
            "case": outcome.case,
            "times": outcome.times,
            "measured": outcome.measured,
            "ratio": None if outcome.ratio is None else outcome.ratio.median,
            "percentile_20": None if outcome.ratio is None else outcome.ratio.low,
            "percentile_80": None if outcome.ratio is None else outcome.ratio.high,
            "verdict": outcome.verdict(above),
            "deviation": outcome.deviation,
            "values_differ": outcome.values_differ,
            "reasons": outcome.reasons,
        }
        for outcome in outcomes
    ]


def write(path: Path, run: dict[str, Any]) -> None:
    """Write a run's JSON, whole or not at all."""
    files.write(path, json.dumps(run, indent=1) + "\n")
