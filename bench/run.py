"""One run: the ceilings, then every part in a process of its own, shown while it goes on and kept after every cell."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .cell import title
from .processes import available_cores, converse
from .record import Record
from .settings import Settings
from .table import table

Json = dict[str, Any]
# seconds without a word, a compilation's or a slow repetition's, after which a part is taken to hang; and in a run that
# has an end, at least and at most
SILENCE, LEAST_SILENCE, MOST_SILENCE = 900.0, 60.0, 240.0
REFRESH = 0.5  # seconds between two drawings of the progress bar
WORKER = [sys.executable, "-m", "bench.worker"]


def failures(cells: list[Json]) -> list[str]:
    """A line for each of our own contenders that was wrong or broke, in any cell."""
    found = []
    for cell in cells:
        name = title(cell["work"], cell["model"], cell["setup"])
        for result in cell["results"]:
            if result["failed"] and result["role"] in ("ours", "variant"):
                found.append(f"{name}: {result['contender']} {result['dtype']}: {result['reason']}")
    return found


class Run:
    """What is measured, and where it is kept and shown."""

    def __init__(self, settings: Settings, record: Record, shown: Console) -> None:
        self.settings, self.record, self.console = settings, record, shown
        columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}"))
        # A bar that moves by itself would take time from what is measured.
        self.progress = Progress(*columns, console=shown, transient=True, auto_refresh=False)
        self.cells = sum(len(part.setups) for part in settings.parts)
        self.task = self.progress.add_task("", total=self.cells)
        self.end = math.inf
        self.drawn = 0.0
        self.ended = 0  # cells of the part at hand
        self.said = ""

    def perform(self) -> bool:
        """Measure everything; says whether all parts ended well and nothing of ours was wrong."""
        if self.settings.minutes is not None:
            self.end = time.monotonic() + 60 * self.settings.minutes
        with self.progress:
            self._process("ceilings", None, 0)
            for index, part in enumerate(self.settings.parts):
                self.ended = 0
                while not self._process(part.name, index, self.ended) and self.ended < len(part.setups):
                    # the cell at hand is lost, the next need not be
                    self._leave_out(f"{title(part.work, part.model, part.setups[self.ended])}: its process died")
                    if self.ended == len(part.setups):
                        break
        wrong = failures(self.record.run["cells"])
        for line in wrong:
            self._line(line)
        return not (wrong or self.record.run["troubles"])

    def _process(self, name: str, index: int | None, first: int) -> bool:
        """A part from its `first` cell on; says whether its process ended well."""
        left = max(0.0, self.end - time.monotonic())
        task = {
            "settings": self.settings.as_json(),
            "part": index,
            "first": first,
            "ceilings": self.record.run["ceilings"],
            "seconds": None if math.isinf(left) else left,
        }
        on_cpu, threads = self.settings.device == "cpu", self.settings.threads
        trouble = converse(
            WORKER,
            task,
            self._hear,
            threads=threads,
            kind="cpu" if on_cpu else "cuda",
            cores=available_cores()[-threads:] if on_cpu else None,
            silence=SILENCE if math.isinf(left) else max(LEAST_SILENCE, min(left, MOST_SILENCE)),
        )
        if trouble is not None:
            trouble += f" (at {self.said})" if self.said else ""
            before = self.record.run["troubles"].get(name)
            self.record.run["troubles"][name] = f"{before}; {trouble}" if before else trouble
            self._line(f"{name}: {trouble}")
        self._write()
        return trouble is None

    def _hear(self, message: Json) -> None:
        if "say" in message:
            self.said = message["say"]
            self.progress.update(self.task, description=self.said, refresh=self._is_time())
        elif "ceilings" in message:
            self.record.run["ceilings"] = message["ceilings"]
        elif "left out" in message:
            self._leave_out(message["left out"])
        else:
            self.record.run["cells"].append(message["cell"])
            self.console.print(table(message["cell"], self.settings.threads))
            self._next_cell()
            self._write()

    def _leave_out(self, line: str) -> None:
        self.record.run["left_out"].append(line)
        self._line(line)
        self._next_cell()

    def _next_cell(self) -> None:
        self.ended += 1
        self.progress.advance(self.task)

    def _is_time(self) -> bool:
        """Whether the bar was drawn a while ago, and there is a terminal to draw it on."""
        now = time.monotonic()
        if now - self.drawn < REFRESH or not self.console.is_terminal:
            return False
        self.drawn = now
        return True

    def _write(self) -> None:
        """Keep what there is; where that fails, say so, and try again with the next cell."""
        try:
            self.record.write()
        except OSError as error:
            self._line(f"{self.record.path} was not written: {error}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
