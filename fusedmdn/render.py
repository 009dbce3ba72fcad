"""Drawings: strokes as SVG, PNG, or a GIF that writes them; one sequence, or a grid of many."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import files
from .strokes import Strokes

INK, PAPER = "#1b1b2f", "#ffffff"
CELL = 120  # pixels of a cell's side
MARGIN = 0.12  # of the cell, on every side
PEN = 0.028  # pen's width, of the cell
SUPERSAMPLING = 4
BAND = 480  # rows of pixels that are painted at a time
GIF_FRAMES, GIF_HOLD = 60, 20  # frames of writing, and of looking at it; 50 ms each


@dataclass(frozen=True)
class Drawing:
    """Polylines laid out on a page of `width` x `height` pixels, and the points drawn before each of them."""

    polylines: list[NDArray[np.float64]]
    starts: list[int]
    width: int
    height: int
    pen: float


def lay_out(sequences: Sequence[Strokes], columns: int | None = None, cell: int = CELL) -> Drawing:
    """Centre every sequence in a cell of a grid, all at one scale; a sequence that would not fit is made to."""
    if not sequences:
        raise ValueError("nothing to draw: no sequences were given")
    lines = [s.polylines() for s in sequences]
    boxes = [_box(sequence) for sequence in lines]
    if len(lines) == 1:  # a single drawing keeps its proportions: its longer side sets the size
        low, high = boxes[0]
        width, height = high - low
        inner = 3 * cell * (1 - 2 * MARGIN)
        unit = inner / max(height, width / 3, 1e-9)
        margin = 3 * cell * MARGIN
        page = max(width * unit, inner / 3) + 2 * margin, max(height * unit, inner / 3) + 2 * margin
        centre = np.array(page) / 2 - (low + high) / 2 * unit
        return _drawing([[line * unit + centre for line in lines[0]]], math.ceil(page[0]), math.ceil(page[1]), 2 * cell)
    columns = columns or math.ceil(math.sqrt(len(lines)))
    extents = np.array([max(*(high - low), 1e-9) for low, high in boxes])
    common = np.quantile(extents, 0.9)
    placed = []
    for k, (sequence, (low, high), extent) in enumerate(zip(lines, boxes, extents, strict=True)):
        unit = cell * (1 - 2 * MARGIN) / max(common, extent)
        centre = (np.array([k % columns, k // columns]) + 0.5) * cell - (low + high) / 2 * unit
        placed.append([line * unit + centre for line in sequence])
    return _drawing(placed, columns * cell, math.ceil(len(lines) / columns) * cell, cell)


def svg(sequences: Sequence[Strokes], columns: int | None = None) -> str:
    """An SVG document of one sequence, or of a grid."""
    page = lay_out(sequences, columns)
    paths = "\n".join(f'<path d="{_path(line)}"/>' for line in page.polylines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{page.width}" height="{page.height}" '
        f'viewBox="0 0 {page.width} {page.height}">\n<rect width="100%" height="100%" fill="{PAPER}"/>\n'
        f'<g fill="none" stroke="{INK}" stroke-width="{page.pen:.4g}" stroke-linecap="round" '
        f'stroke-linejoin="round">\n{paths}\n</g>\n</svg>\n'
    )


def image(sequences: Sequence[Strokes], columns: int | None = None) -> Any:
    """A Pillow image of one sequence, or of a grid. Needs the extra [render]."""
    page = lay_out(sequences, columns)
    return _paint(page)


def frames(sequences: Sequence[Strokes], columns: int | None = None) -> list[Any]:
    """Pillow images that write all sequences at once, the longest one in GIF_FRAMES frames. Needs [render]."""
    page = lay_out(sequences, columns)
    Image, ImageDraw = pillow()
    canvas = Image.new("L", (page.width * SUPERSAMPLING, page.height * SUPERSAMPLING))
    pencil = ImageDraw.Draw(canvas)
    longest = max([start + len(line) for start, line in zip(page.starts, page.polylines, strict=True)], default=0)
    images, before = [], 0
    for frame in range(1, GIF_FRAMES + 1):
        shown = math.ceil(longest * frame / GIF_FRAMES)
        for start, line in zip(page.starts, page.polylines, strict=True):
            _ink(pencil, line[max(0, before - start - 1) : max(0, shown - start)], page.pen)
        images.append(_coloured(canvas))
        before = shown
    return images


def draw(sequences: Sequence[Strokes], path: str | Path, columns: int | None = None) -> None:
    """Write a .svg, .png or .gif file, atomically.

    Raises:
        ValueError: another ending, or no sequences.
        ModuleNotFoundError: Pillow is missing (.png and .gif; the extra [render] brings it).
    """
    path = Path(path)
    if path.suffix == ".svg":
        files.write(path, svg(sequences, columns))
        return
    buffer = io.BytesIO()
    if path.suffix == ".png":
        image(sequences, columns).save(buffer, "PNG", optimize=True)
    elif path.suffix == ".gif":
        first, *rest = frames(sequences, columns)
        palette = [image.quantize(16) for image in (first, *rest)]
        duration = [50] * (len(palette) - 1) + [50 * GIF_HOLD]
        palette[0].save(buffer, "GIF", save_all=True, append_images=palette[1:], duration=duration, loop=0)
    else:
        raise ValueError(f"{path}: drawings end in .svg, .png or .gif")
    files.write(path, buffer.getvalue())


def pillow() -> tuple[Any, Any]:
    """Pillow's Image and ImageDraw; raises ModuleNotFoundError, naming the extra that brings it."""
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("PNG and GIF need Pillow: pip install 'fusedmdn[render]'") from error
    return Image, ImageDraw


def _drawing(placed: list[list[NDArray[np.float64]]], width: int, height: int, cell: float) -> Drawing:
    starts = [start for lines in placed for start in np.cumsum([0, *map(len, lines)])[:-1].tolist()]
    return Drawing([line for lines in placed for line in lines], starts, width, height, PEN * cell)


def _box(lines: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = np.concatenate([*lines, np.zeros((0, 2))]) if lines else np.zeros((1, 2))
    return points.min(axis=0), points.max(axis=0)


def _path(line: NDArray[np.float64]) -> str:
    points = [f"{x:.2f} {y:.2f}" for x, y in line]
    return "M" + "L".join(points if len(points) > 1 else points * 2)  # a lone point is a dot, by the round cap


def _paint(page: Drawing) -> Any:
    """The whole page, in bands, so that a large one does not need its supersampled size in memory."""
    Image, ImageDraw = pillow()
    picture = Image.new("RGB", (page.width, page.height))
    for top in range(0, page.height, BAND):
        height = min(BAND, page.height - top)
        canvas = Image.new("L", (page.width * SUPERSAMPLING, height * SUPERSAMPLING))
        pencil = ImageDraw.Draw(canvas)
        for line in page.polylines:
            if line[:, 1].max() + page.pen > top and line[:, 1].min() - page.pen < top + height:
                _ink(pencil, line - [0, top], page.pen)
        picture.paste(_coloured(canvas), (0, top))
    return picture


def _ink(pencil: Any, line: NDArray[np.float64], pen: float) -> None:
    """A polyline with round joints and ends, on a supersampled canvas."""
    points = np.rint(line * SUPERSAMPLING).astype(int).tolist()
    radius = max(1, round(pen * SUPERSAMPLING / 2))
    if len(points) > 1:
        pencil.line([tuple(p) for p in points], fill=255, width=2 * radius + 1)
    for x, y in points:
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _coloured(canvas: Any) -> Any:
    """Ink on paper from the supersampled amount of ink."""
    Image, _ = pillow()
    amount = canvas.reduce(SUPERSAMPLING)
    return Image.composite(Image.new("RGB", amount.size, INK), Image.new("RGB", amount.size, PAPER), amount)
