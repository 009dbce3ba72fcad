"""What a run measures: parts, each of one work on one model, and the setups of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Setup = dict[str, Any]

WORKS = ("training", "loss", "sampling")
WEIGHT = {"training": 3.0, "loss": 1.0, "sampling": 1.0}  # of a cell, in the time that a run has
HIDDEN = (128, 256, 512, 1024)  # of the grid, one layer
BATCHES = (1, 16, 64, 256, 1024)  # of the grid
DEFAULT_DTYPES = {"cpu": ("float32", "bf16"), "cuda": ("float32", "tf32", "bf16", "fp16")}
EVERY_DTYPE = {"cpu": ("float32", "bf16", "fp16"), "cuda": DEFAULT_DTYPES["cuda"]}
QUICK_HIDDEN = 16
EQUAL, RAGGED, CLIPPED, PEEPHOLES = "equal", "ragged", "equal, clipped", "equal, peepholes"


@dataclass(frozen=True)
class Part:
    """The cells of one work on one model; they share a process."""

    work: str
    model: str | None
    setups: tuple[Setup, ...]

    @property
    def name(self) -> str:
        """As it is named to the user."""
        return self.work if self.model is None else f"{self.work}, model {self.model}"

    @property
    def weight(self) -> float:
        """Of all its cells."""
        return WEIGHT[self.work] * len(self.setups)


@dataclass(frozen=True)
class Settings:
    """One run, on one device and one number of threads.

    Attributes:
        device: as torch names it.
        threads: of the CPU.
        grid: "default", "full" or "quick".
        parts: what is measured.
        dtypes: of `precision.DTYPES`.
        without: contenders with these words in their names are left out.
        minutes: after which nothing new is begun; None: as long as it takes.
        least: repetitions at any rate.
        most: repetitions that are enough.
        hidden: replaces every model's hidden size; None leaves it.
    """

    device: str
    threads: int
    grid: str
    parts: tuple[Part, ...]
    dtypes: tuple[str, ...]
    without: tuple[str, ...] = ()
    minutes: float | None = 10.0
    least: int = 3
    most: int = 10
    hidden: int | None = field(default=None)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @staticmethod
    def from_json(given: dict[str, Any]) -> Settings:
        """The same settings."""
        parts = tuple(Part(part["work"], part["model"], tuple(part["setups"])) for part in given["parts"])
        tuples = {name: tuple(given[name]) for name in ("dtypes", "without")}
        return Settings(**{**given, **tuples, "parts": parts})


def parts(grid: str, kind: str, works: Sequence[str], models: Sequence[str]) -> tuple[Part, ...]:
    """All parts of a grid on a kind of device ("cpu", "cuda"), the telling ones first.

    `models` are of `models.CONFIGS`, or one layer of H units as "1xH".
    """
    makers = {"training": _training, "loss": _loss, "sampling": _sampling}
    found = []
    for model in (*models[:1], None, *models[1:]):
        for work in works:
            setups = tuple(makers[work](grid, kind, model))
            if setups:
                found.append(Part(work, model, setups))
    return tuple(found)


def models_of(grid: str) -> tuple[str, ...]:
    """The models that a grid has of itself."""
    if grid == "quick":
        return ("B",)
    hidden = HIDDEN if grid == "full" else (HIDDEN[0], HIDDEN[-1])
    return ("B", "D", "A", "C", *(f"1x{H}" for H in hidden if H != 512))  # D is 1x512


def _training(grid: str, kind: str, model: str | None) -> Iterator[Setup]:
    if model is None:
        return
    kinds = (EQUAL, RAGGED, CLIPPED, PEEPHOLES) if model == "B" else (EQUAL,)
    if grid == "quick":
        yield from ({"T": 12, "B": 4, "lengths": lengths} for lengths in kinds)
        return
    T, B = (50, 16) if kind == "cpu" else (200, 64)
    if grid == "default":
        yield from ({"T": T, "B": B, "lengths": lengths} for lengths in kinds)
        return
    T = 300
    if model == "B":
        yield from ({"T": T, "B": 32, "lengths": lengths} for lengths in kinds)
    for batch, lengths in itertools.product(BATCHES, (EQUAL, RAGGED)):
        if batch > 1 or lengths == EQUAL:
            yield {"T": T, "B": batch, "lengths": lengths}


def _loss(grid: str, kind: str, model: str | None) -> Iterator[Setup]:
    if model is not None:
        return
    sizes = {"quick": [(40, 8)], "default": [(600, 32)], "full": [(300, 1), (300, 16), (600, 32), (300, 256)]}[grid]
    yield from ({"T": T, "B": B} for T, B in sizes)


def _sampling(grid: str, kind: str, model: str | None) -> Iterator[Setup]:
    if model is None:
        return
    if grid == "quick":
        yield from ({"B": B, "steps": steps} for B, steps in ((1, 6), (8, 4)))
        return
    steps = {"cpu": {1: 600, 8: 200, 16: 100, 64: 30, 256: 10, 512: 10, 1024: 10}}.get(kind) or dict.fromkeys(
        (1, 8, 16, 64, 256, 512, 1024), 512
    )
    batches = (1, 64) if model != "B" else (1, 8, 64, 512)
    if grid == "full":
        batches = tuple(sorted({*batches, *BATCHES}))
    yield from ({"B": B, "steps": steps[B]} for B in batches)
