"""One run: the ceilings, then every part in a process of its own, shown while it goes on and kept after every cell."""

from __future__ import annotations

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
SILENCE = 900.0  # seconds without a word, a compilation's included, after which a part is taken to hang
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
        self.progress = Progress(*columns, console=shown, transient=True)
        self.cells = sum(len(part.setups) for part in settings.parts)
        self.task = self.progress.add_task("", total=self.cells)

    def perform(self) -> bool:
        """Measure everything; says whether all parts ended well and nothing of ours was wrong."""
        minutes, start = self.settings.minutes, time.monotonic()
        with self.progress:
            self._part("ceilings", None, None)
            for index, part in enumerate(self.settings.parts):
                seconds = None
                if minutes is not None:
                    seconds = max(0.0, 60 * minutes - (time.monotonic() - start))
                self._part(part.name, index, seconds)
        wrong = failures(self.record.run["cells"])
        for line in wrong:
            self._line(line)
        return not (wrong or self.record.run["troubles"])

    def _part(self, name: str, index: int | None, seconds: float | None) -> None:
        task = {
            "settings": self.settings.as_json(),
            "part": index,
            "ceilings": self.record.run["ceilings"],
            "seconds": seconds,
        }
        cores = None if self.settings.device != "cpu" else available_cores()[-self.settings.threads :]
        trouble = converse(WORKER, task, self._hear, threads=self.settings.threads, cores=cores, silence=SILENCE)
        if trouble is not None:
            self.record.run["troubles"][name] = trouble
            self._line(f"{name}: {trouble}")
        self.record.write()

    def _hear(self, message: Json) -> None:
        if "say" in message:
            self.progress.update(self.task, description=message["say"])
        elif "ceilings" in message:
            self.record.run["ceilings"] = message["ceilings"]
        elif "left out" in message:
            self.record.run["left_out"].append(message["left out"])
            self._line(message["left out"])
            self.progress.advance(self.task)
        else:
            self.record.run["cells"].append(message["cell"])
            self.console.print(table(message["cell"], self.settings.threads))
            self.progress.advance(self.task)
            self.record.write()

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
