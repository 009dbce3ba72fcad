"""Pictures as Pillow images: a still one, or the frames of its being drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .colours import INK, PAPER
from .page import Points
from .views import Picture

SUPERSAMPLING = 4
BAND = 160  # rows of pixels that are painted at a time, so that a large page is never supersampled as a whole
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
    return _paint(picture, [None])[0]


def writing(picture: Picture) -> list[Any]:
    """All sequences written at once, the longest one in GIF_FRAMES frames; the last is the whole picture."""
    longest = max((ink.start + len(ink.points) for ink in picture.ink), default=0)
    return _paint(picture, [*(math.ceil(longest * k / GIF_FRAMES) for k in range(1, GIF_FRAMES)), None])


def _paint(picture: Picture, times: Sequence[int | None]) -> list[Any]:
    """An image of the page after so many points of each sequence, the times ascending; None: of all."""
    Image, ImageDraw = pillow()
    page = picture.page
    if picture.under is None:
        images = [Image.new("RGB", (page.width, page.height), PAPER) for _ in times]
    else:
        images = [Image.fromarray(pixels) for pixels in picture.under.pixels(times)]
    spans = [(ink.points[:, 1].min() - picture.pen, ink.points[:, 1].max() + picture.pen) for ink in picture.ink]
    colours = {ink.colour for ink in picture.ink} or {INK}
    for top in range(0, page.height, BAND):
        height = min(BAND, page.height - top)
        here = [ink for ink, (low, high) in zip(picture.ink, spans, strict=True) if high > top and low < top + height]
        size = page.width * SUPERSAMPLING, height * SUPERSAMPLING
        # Ink of one colour is an amount, which lies on anything; of many colours, it lies on paper.
        canvas = Image.new("L", size) if len(colours) == 1 else Image.new("RGB", size, PAPER)
        pencil = ImageDraw.Draw(canvas)
        before = 0
        for image, time in zip(images, times, strict=True):
            for ink in here:
                first, last = max(0, before - ink.start - 1), None if time is None else max(0, time - ink.start)
                line = ink.points[first:last] - [0, top]
                _ink(pencil, line, picture.pen, 255 if len(colours) == 1 else ink.colour)
            before = time or 0
            inked = canvas.reduce(SUPERSAMPLING)
            if len(colours) == 1:
                image.paste(*colours, (0, top, page.width, top + height), inked)
            else:
                image.paste(inked, (0, top))
    return images


def _ink(pencil: Any, line: Points, pen: float, fill: int | str) -> None:
    """A polyline with round joints and ends, on a supersampled canvas."""
    points = [tuple(p) for p in (line * SUPERSAMPLING).round().astype(int).tolist()]
    radius = max(1, round(pen * SUPERSAMPLING / 2))
    if len(points) > 1:
        pencil.line(points, fill=fill, width=2 * radius + 1)
    for x, y in points:
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
