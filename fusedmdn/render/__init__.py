"""Drawings: strokes, and what a network predicts of them, as SVG, PNG, or a GIF that writes them.

One sequence, or a grid of many, in one of the views of `VIEWS`:

- plain: in ink.
- vectors, strokes: a random colour for every vector, or pen stroke.
- eos: every vector in grey, the darker the likelier the model thought that the stroke would end with it.
- mixture: the mixture's components as red circles under the ink.
- density: the density of the next point as a heat map under the ink, summed over all points.

The last three, BY_MODEL, take a `FusedLSTMMDN`, which is given the strokes one point after the other.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..module import FusedLSTMMDN
from ..strokes import Strokes
from . import markup, pixels
from .colours import heat_palette
from .page import CELL, Page, lay_out
from .pixels import GIF_FRAMES, pillow
from .views import BY_MODEL, VIEWS, Picture, check_step, check_view, picture

__all__ = [
    "BY_MODEL",
    "CELL",
    "GIF_FRAMES",
    "VIEWS",
    "Page",
    "check_step",
    "check_view",
    "draw",
    "frames",
    "image",
    "lay_out",
    "pillow",
    "svg",
]

GIF_HOLD = 20  # frames of looking at what was written; 50 ms each
GIF_COLOURS = {"plain": 16}  # 64 in other views


def svg(
    sequences: Sequence[Strokes],
    columns: int | None = None,
    view: str = "plain",
    model: FusedLSTMMDN | None = None,
    seed: int = 0,
    step: int | None = None,
) -> str:
    """An SVG document of one sequence, or of a grid.

    Args:
        sequences: in raw units.
        columns: of the grid; a square by default.
        view: one of VIEWS.
        model: whose predictions are drawn by eos, mixture and density.
        seed: of the colours of vectors and strokes.
        step: of density: the first `step` points, and the density of the next one alone.

    Raises:
        ValueError: no sequences or no columns, or a view, model or step that do not go together.
    """
    return markup.document(picture(sequences, columns, view, model, seed, step))


def image(
    sequences: Sequence[Strokes],
    columns: int | None = None,
    view: str = "plain",
    model: FusedLSTMMDN | None = None,
    seed: int = 0,
    step: int | None = None,
) -> Any:
    """A Pillow image. Needs the extra [render]; arguments and errors as of `svg`, and ValueError for a huge page."""
    pillow()
    return pixels.still(picture(sequences, columns, view, model, seed, step, [".png"]))


def frames(
    sequences: Sequence[Strokes],
    columns: int | None = None,
    view: str = "plain",
    model: FusedLSTMMDN | None = None,
    seed: int = 0,
) -> list[Any]:
    """Pillow images that write all sequences at once, the longest one in GIF_FRAMES frames. Needs [render].

    The last is `image`; before, density shows that of each sequence's next point. Arguments and errors as of `image`.
    """
    pillow()
    return list(pixels.writing(picture(sequences, columns, view, model, seed, endings=[".gif"])))


def draw(
    sequences: Sequence[Strokes],
    path: str | Path | Iterable[str | Path],
    columns: int | None = None,
    view: str = "plain",
    model: FusedLSTMMDN | None = None,
    seed: int = 0,
    step: int | None = None,
) -> None:
    """Write a .svg, .png or .gif file, atomically, or several of one picture; other arguments as of `svg`.

    Raises:
        ValueError: another ending, a step of a .gif, a page too large for .png or .gif, or as `svg`.
        ModuleNotFoundError: Pillow is missing (.png and .gif; the extra [render] brings it).
    """
    paths = [Path(p) for p in ([path] if isinstance(path, (str, Path)) else path)]
    for each in paths:
        if each.suffix not in (".svg", ".png", ".gif"):
            raise ValueError(f"{each}: drawings end in .svg, .png or .gif")
        if each.suffix != ".svg":
            pillow()
        if each.suffix == ".gif" and step is not None:
            raise ValueError(f"{each}: a .gif shows every step; step {step} is of a still picture")
    drawn = picture(sequences, columns, view, model, seed, step, [each.suffix for each in paths])
    for each in paths:
        files.write(each, _encoded(drawn, each.suffix, view))


def _encoded(drawn: Picture, ending: str, view: str) -> str | bytes:
    """What is in a file of that ending."""
    if ending == ".svg":
        return markup.document(drawn)
    buffer = io.BytesIO()
    if ending == ".png":
        painted = pixels.still(drawn)
        if view == "density":  # by palette it is a third of the bytes, and no difference is seen
            painted = _few_colours(painted, view)
        painted.save(buffer, "PNG", optimize=True)
    else:  # Pillow keeps all frames: they come one by one, of a byte a pixel
        images = (_few_colours(painted, view) for painted in pixels.writing(drawn))
        duration = [50] * (GIF_FRAMES - 1) + [50 * GIF_HOLD]
        next(images).save(buffer, "GIF", save_all=True, append_images=images, duration=duration, loop=0)
    return buffer.getvalue()


def _few_colours(painted: Any, view: str) -> Any:
    """The image by palette, without dithering, which does not pack."""
    if view != "density":
        return painted.quantize(GIF_COLOURS.get(view, 64), dither=0)
    Image, _ = pillow()
    palette = Image.new("P", (1, 1))
    palette.putpalette(heat_palette().tobytes())
    return painted.quantize(palette=palette, dither=0)
