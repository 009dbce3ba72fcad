"""Pictures as Pillow images: a still one, or the frames of its being drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from .colours import INK, PAPER
from .page import Points
from .views import Ink, Picture

SUPERSAMPLING = 4
GIF_FRAMES = 60


def pillow() -> tuple[Any, Any]:
    """Pillow's Image and ImageDraw; raises ModuleNotFoundError, naming the extra that brings it."""
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("PNG and GIF need Pillow: pip install 'fusedmdn[render]'") from error
    return Image, ImageDraw


def still(picture: Picture) -> Any:
    """The whole picture."""
    return next(_paint(picture, [None]))


def writing(picture: Picture) -> Iterator[Any]:
    """All sequences written at once, the longest one in GIF_FRAMES frames; the last is the whole picture.

    Each is painted when it is asked for.
    """
    longest = max(map(_points, picture.ink), default=0)
    return _paint(picture, [*(math.ceil(longest * k / GIF_FRAMES) for k in range(1, GIF_FRAMES)), None])


def _paint(picture: Picture, times: Sequence[int | None]) -> Iterator[Any]:
    """An image of the page after so many points of each sequence, the times ascending; None: of all."""
    Image, _ = pillow()
    page = picture.page
    size = page.width, page.height
    colours = {ink.colour for inks in picture.ink for ink in inks} or {INK}
    # Ink of one colour is an amount, which lies on anything; of many colours, it lies on paper.
    inked = Image.new("L", size) if len(colours) == 1 else Image.new("RGB", size, PAPER)
    images: Iterator[Any]
    if picture.under is None:
        images = (Image.new("RGB", size, PAPER) for _ in times)
    else:
        images = map(Image.fromarray, picture.under.pixels(times))
    before = 0
    for image, time in zip(images, times, strict=True):
        for figure, inks in zip(page.figures, picture.ink, strict=True):
            if before < _points(inks) and time != before:  # the others are as they were
                inked.paste(_cell(figure.cell, inks, picture.pen, time, inked.mode), figure.cell[:2])
        before = time or 0
        if len(colours) == 1:
            image.paste(*colours, (0, 0, *size), inked)
        else:
            image.paste(inked)
        yield image


def _points(inks: Sequence[Ink]) -> int:
    """How many points of a sequence are drawn."""
    return max((ink.start + len(ink.points) for ink in inks), default=0)


def _cell(cell: tuple[int, int, int, int], inks: Sequence[Ink], pen: float, time: int | None, mode: str) -> Any:
    """A figure's cell after so many points; by cells, a large page is never supersampled as a whole."""
    Image, ImageDraw = pillow()
    left, top, width, height = cell
    canvas = Image.new(mode, (width * SUPERSAMPLING, height * SUPERSAMPLING), 0 if mode == "L" else PAPER)
    pencil = ImageDraw.Draw(canvas)
    for ink in inks:
        if time is not None and ink.start >= time:
            break
        line = ink.points[: None if time is None else time - ink.start] - [left, top]
        _ink(pencil, line, pen, 255 if mode == "L" else ink.colour)
    return canvas.reduce(SUPERSAMPLING)


def _ink(pencil: Any, line: Points, pen: float, fill: int | str) -> None:
    """A polyline with round joints and ends, on a supersampled canvas."""
    points = [tuple(p) for p in (line * SUPERSAMPLING).round().astype(int).tolist()]
    radius = max(1, round(pen * SUPERSAMPLING / 2))
    if len(points) > 1:
        pencil.line(points, fill=fill, width=2 * radius + 1)
    for x, y in points:
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
