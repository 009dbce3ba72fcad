"""What the results say: every target with its figure, and every cell in which a peer is ahead."""

from __future__ import annotations

from typing import NamedTuple

from . import targets
from .results import Json, Ratio, find, limit, of_role, ratio
from .targets import AtLeast, AtMost


class Verdict(NamedTuple):
    """A target and what was measured: a median of ratios in each repetition, the ratio of minima, and the outcome.

    outcome: "met", "missed", or why there is no figure.
    """

    target: AtLeast | AtMost
    measured: Ratio | None
    outcome: str


class Lost(NamedTuple):
    """A cell in which peers are faster, or need less, than ours; ratios: of each of them to ours, below 1."""

    cell: Json
    ours: str
    ratios: dict[str, Ratio]


def judge(run: Json) -> list[Verdict]:
    """Every target, judged by the median."""
    verdicts = []
    for target in targets.TARGETS:
        cell = _cell(run, target)
        if cell is None:
            verdicts.append(Verdict(target, None, "not measured"))
            continue
        measured, trouble = _against_peer(cell, target) if isinstance(target, AtLeast) else _own(cell, target)
        if measured is None:
            verdicts.append(Verdict(target, None, trouble))
            continue
        met = measured.median >= target.bound if isinstance(target, AtLeast) else measured.median <= target.bound
        verdicts.append(Verdict(target, measured, "met" if met else "missed"))
    return verdicts


def lost(run: Json) -> list[Lost]:
    """Every peer ahead of any of ours, cell by cell."""
    found = []
    for cell in run["cells"]:
        for ours in of_role(cell, "ours"):
            ratios = {peer["contender"]: ratio(peer, ours) for peer in of_role(cell, "peer")}
            ahead = {
                name: measured for name, measured in ratios.items() if measured is not None and measured.median < 1
            }
            if ahead:
                found.append(Lost(cell, ours["contender"], ahead))
    return found


def to_limit(cell: Json, ours: Json) -> Ratio | None:
    """Our median and minimum over the machine's limit; None where the cell has none or ours was not timed."""
    floor = limit(cell)
    if floor is None or not ours["values"]:
        return None
    return Ratio(ours["median"] / floor, ours["minimum"] / floor)


def _cell(run: Json, target: AtLeast | AtMost) -> Json | None:
    for cell in run["cells"]:
        setup = cell["setup"].items()
        if cell["work"] == target.work and cell["model"] in (targets.MODEL, None) and target.setup.items() <= setup:
            return cell
    return None


def _against_peer(cell: Json, target: AtLeast) -> tuple[Ratio | None, str]:
    ours, peer = find(cell, target.ours), find(cell, target.peer)
    if ours is None or peer is None:
        return None, "not measured"
    return ratio(peer, ours), ours["reason"] or peer["reason"] or "not timed"


def _own(cell: Json, target: AtMost) -> tuple[Ratio | None, str]:
    ours = find(cell, target.ours)
    if ours is None:
        return None, "not measured"
    trouble = ours["reason"] or "not timed"
    if of_role(cell, "limit"):
        return to_limit(cell, ours), trouble
    return (Ratio(ours["median"], ours["minimum"]) if ours["values"] else None), trouble
