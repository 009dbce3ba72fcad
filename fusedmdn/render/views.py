"""The views: what is inked in which colour, and what lies under the ink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..module import FusedLSTMMDN
from ..strokes import Strokes
from .circles import Circles
from .colours import INK, PAPER, hexadecimal, random_colours
from .heat import Heat
from .page import Figure, Page, Points, check_size, lay_out
from .predictions import predict

VIEWS = ("plain", "vectors", "strokes", "eos", "mixture", "density")
BY_MODEL = ("eos", "mixture", "density")  # views of what a model predicted
THIN, THINNEST = 0.28, 1.0  # of the pen's width, where the ink lies on something else, and pixels
BROAD = 1.2  # of it, where the colour is a grey that has to be told from others
LIGHTEST = 190  # grey of a point that surely does not end its stroke


@dataclass(frozen=True)
class Ink:
    """A polyline (n, 2) of one colour, and the points of its sequence that come before it."""

    start: int
    points: Points
    colour: str


class Under(Protocol):
    """What lies under the ink."""

    def markup(self) -> str:
        """SVG elements."""

    def pixels(self, times: Sequence[int | None]) -> Iterator[NDArray[np.uint8]]:
        """RGB of the page after so many points of each sequence, the times ascending; None: the finished picture."""


@dataclass(frozen=True)
class Picture:
    """A page as one view paints it, with the ink of each figure; it is of one colour where something lies under it."""

    page: Page
    ink: list[list[Ink]]
    pen: float
    under: Under | None = None


def check_view(view: str, has_model: bool, step: int | None = None) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: a view that is not known, no model for one that needs it, or a step of a view that has none.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}; got {view!r}")
    if view in BY_MODEL and not has_model:
        raise ValueError(f"view {view!r} draws what a model predicts, and no model was given")
    if step is not None and (view != "density" or step < 0):
        raise ValueError(f"step is a number of points, for view 'density' alone; got {step} for {view!r}")


def check_step(step: int | None, sequences: Sequence[Strokes]) -> None:
    """Refuse a step after which no sequence has a point."""
    longest = max(map(len, sequences), default=0)
    if step is not None and sequences and step >= longest:
        raise ValueError(f"step {step}: no sequence has a point after so many, the longest has {longest}")


def picture(
    sequences: Sequence[Strokes],
    columns: int | None = None,
    view: str = "plain",
    model: FusedLSTMMDN | None = None,
    seed: int = 0,
    step: int | None = None,
    endings: Iterable[str] = (),
) -> Picture:
    """Lay the sequences out, and choose colours and what lies under them; for files of such endings."""
    check_view(view, model is not None, step)
    check_step(step, sequences)
    page = lay_out(sequences, columns)
    for ending in endings:
        check_size(page, ending)
    figures = page.figures
    if view == "vectors":
        return Picture(page, _by_vector(figures, _random(map(len, (f.points for f in figures)), seed)), page.pen)
    if view == "strokes":
        return Picture(page, _by_stroke(figures, _random((len(f.lines()) for f in figures), seed)), page.pen)
    if model is None or view == "plain":
        return Picture(page, _plain(figures, INK), page.pen)
    predictions = predict(model, sequences)
    thin = max(page.pen * THIN, min(page.pen, THINNEST))
    if view == "eos":
        return Picture(page, _by_vector(figures, [greys(p.eos) for p in predictions]), page.pen * BROAD)
    if view == "mixture":
        return Picture(page, _plain(figures, INK), thin, Circles(page, predictions))
    return Picture(page, _plain(figures, PAPER, step), thin, Heat(page, predictions, step))


def greys(eos: NDArray[np.float32]) -> list[str]:
    """(N) probabilities as greys, the likelier the darker (write-rnn-tensorflow, utils.py: draw_stroke_eos_weights)."""
    levels = np.rint((1 - eos.clip(0, 1)) * LIGHTEST).astype(np.uint8)
    return hexadecimal(np.repeat(levels[:, None], 3, axis=1))


def _random(counts: Iterable[int], seed: int) -> list[list[str]]:
    """So many colours for each figure, whatever the others are."""
    return [random_colours(n, [seed, k]) for k, n in enumerate(counts)]


def _plain(figures: Sequence[Figure], colour: str, upto: int | None = None) -> list[list[Ink]]:
    return [[Ink(start, line, colour) for start, line in figure.lines(upto)] for figure in figures]


def _by_stroke(figures: Sequence[Figure], colours: Sequence[list[str]]) -> list[list[Ink]]:
    return [
        [Ink(start, line, colour) for (start, line), colour in zip(figure.lines(), its, strict=True)]
        for figure, its in zip(figures, colours, strict=True)
    ]


def _by_vector(figures: Sequence[Figure], colours: Sequence[list[str]]) -> list[list[Ink]]:
    """Each point's colour on the vector that leads to it; of a stroke that is one point, on that."""
    drawn = []
    for figure, its in zip(figures, colours, strict=True):
        inks = []
        for start, line in figure.lines():
            if len(line) == 1:
                inks.append(Ink(start, line, its[start]))
            inks += [Ink(start + i, line[i : i + 2], its[start + i + 1]) for i in range(len(line) - 1)]
        drawn.append(inks)
    return drawn
