"""What the results say: who is ahead, every target with its figure, and every cell in which a peer is ahead."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from . import targets
from .results import Json, Ratio, Run, dtypes, find, of_dtype, ours, over_floor, ratio, works
from .targets import AtLeast, AtMost


class Figure(NamedTuple):
    """What was measured: by medians, and by minima where times were compared."""

    median: float
    minima: float | None


class Verdict(NamedTuple):
    """A target, what was measured, and the outcome: "met", "missed", or why there is no figure."""

    target: AtLeast | AtMost
    measured: Figure | None
    outcome: str


class Lost(NamedTuple):
    """A cell in which peers of a dtype are faster than ours in it; ratios: of each of them to ours, below 1."""

    cell: Json
    dtype: str
    ratios: dict[str, Ratio]


class Standing(NamedTuple):
    """The fastest peer over ours in all cells of a work and dtype.

    ratios: one for each cell in which both were timed; alone: cells in which no peer was; untimed: in which ours was
    not; floors: our medians over the floors.
    """

    work: str
    dtype: str
    ratios: list[float]
    alone: int
    untimed: int
    floors: list[float]

    @property
    def won(self) -> int:
        """Cells in which no peer is ahead."""
        return len(self.ratios) - self.lost

    @property
    def lost(self) -> int:
        """Cells in which one is."""
        return sum(each < 1 for each in self.ratios)

    @property
    def mean(self) -> float | None:
        """The geometric mean of the ratios."""
        return statistics.geometric_mean(self.ratios) if self.ratios else None


def standings(run: Run) -> Iterator[Standing]:
    """Where ours stands in every work and dtype."""
    for work in works(run.json["cells"]):
        cells = [cell for cell in run.json["cells"] if cell["work"] == work]
        for dtype in dtypes(cells):
            yield standing(work, dtype, [cell for cell in cells if ours(cell, dtype) or of_dtype(cell, dtype)])


def standing(work: str, dtype: str, cells: list[Json]) -> Standing:
    """Where ours stands in these cells."""
    best = [best_peer(cell, dtype) for cell in cells]
    bases = [ours(cell, dtype) for cell in cells]
    timed = [base is not None and bool(base["values"]) for base in bases]
    floors = [over_floor(cell, base) for cell, base in zip(cells, bases, strict=True) if base is not None]
    return Standing(
        work,
        dtype,
        ratios=[peer[1].median for peer in best if peer],
        alone=sum(was and not peer for was, peer in zip(timed, best, strict=True)),
        untimed=timed.count(False),
        floors=[floor for floor in floors if floor is not None],
    )


def best_peer(cell: Json, dtype: str) -> tuple[str, Ratio] | None:
    """The peer of the dtype that is fastest against ours; None where none, or ours, was timed."""
    return min(peers(cell, dtype).items(), key=lambda peer: peer[1].median, default=None)


def peers(cell: Json, dtype: str) -> dict[str, Ratio]:
    """Every peer of a dtype that was timed, over ours of that dtype."""
    base = ours(cell, dtype)
    if base is None:
        return {}
    found = {result["contender"]: ratio(result, base) for result in of_dtype(cell, dtype) if result["role"] == "peer"}
    return {name: measured for name, measured in found.items() if measured is not None}


def lost(run: Run) -> list[Lost]:
    """Every cell and dtype in which a peer is ahead of ours."""
    found = []
    for cell in run.json["cells"]:
        for dtype in dtypes([cell]):
            ahead = {name: measured for name, measured in peers(cell, dtype).items() if measured.median < 1}
            if ahead:
                found.append(Lost(cell, dtype, ahead))
    return found


def asked(run: Run) -> bool:
    """Whether the targets are of such a run, and it has a cell for any."""
    if run.where["device"] != "cpu" or run.where["threads"] != targets.THREADS:
        return False
    return any(_cell([run], target) for target in targets.TARGETS)


def judge(runs: Sequence[Run]) -> list[Verdict]:
    """Every target, judged by the median, in the first of the runs that has its cell."""
    return [_verdict(target, _cell(runs, target)) for target in targets.TARGETS]


def _cell(runs: Sequence[Run], target: AtLeast | AtMost) -> Json | None:
    for cell in (cell for run in runs for cell in run.json["cells"]):
        setup = cell["setup"].items()
        if cell["work"] == target.work and cell["model"] in (targets.MODEL, None) and target.setup.items() <= setup:
            return cell
    return None


def _verdict(target: AtLeast | AtMost, cell: Json | None) -> Verdict:
    mine = ours(cell, target.dtype) if cell else None
    if cell is None or mine is None:
        return Verdict(target, None, "not measured")
    if not mine["values"]:
        return Verdict(target, None, mine["reason"])
    if isinstance(target, AtMost):
        measured, trouble = _own(cell, mine, target)
        met = measured is not None and measured.median <= target.bound
    else:
        measured, trouble = _against_peer(cell, mine, target)
        met = measured is not None and measured.median >= target.bound
    return Verdict(target, measured, trouble or ("met" if met else "missed"))


def _against_peer(cell: Json, mine: Json, target: AtLeast) -> tuple[Figure | None, str]:
    peer = find(cell, target.peer, target.peer_dtype)
    if peer is None:
        return None, "not measured"
    measured = ratio(peer, mine)
    if measured is None:
        return None, peer.get("reason") or "too quick to be told from 0"
    return Figure(measured.median, measured.minima), ""


def _own(cell: Json, mine: Json, target: AtMost) -> tuple[Figure | None, str]:
    if target.of == "raw":
        peak, raw = mine.get("peak_memory"), cell["setup"]["rows"] * cell["setup"]["columns"] * 4
        return (None, "memory was not measured") if peak is None else (Figure(peak / raw, None), "")
    multiple = over_floor(cell, mine)
    if multiple is None:
        return None, "no floor"
    return Figure(multiple, multiple * mine["minimum"] / mine["median"]), ""
