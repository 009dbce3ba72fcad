"""The density of the next point as a heat map under the ink (Graves 2013, figure 10)."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .colours import Colours, heat_map
from .page import Figure, Page
from .predictions import Prediction

GRAIN = 2  # pixels of the page that a pixel of the map is wide
REACH = 5.0  # standard deviations that are drawn
LEAST_WEIGHT = 1e-3
CHUNK = 1 << 20  # densities that are computed at a time
PEAK = 0.997  # quantile of a cell's densities that has the last colour, by the root that follows
ROOT_OF_SUM, ROOT_OF_ONE = 0.36, 0.22  # a single density falls by more than a sum of many, and all of it is to be seen


class Heat:
    """The density of each point given those before it, summed over the points, or that of one point.

    Args:
        page: where the figures lie.
        predictions: of each.
        step: the density of the point after `step` points alone.
    """

    def __init__(self, page: Page, predictions: Sequence[Prediction], step: int | None = None) -> None:
        self.page, self.predictions, self.step = page, predictions, step

    def markup(self) -> str:
        """An SVG image, with the map as an embedded PNG of as many colours as the map has."""
        levels = self.levels(self.step)
        height, width = levels.shape
        data = base64.b64encode(png(levels, heat_map())).decode()
        return (
            f'<image width="{width * GRAIN}" height="{height * GRAIN}" preserveAspectRatio="none" '
            f'href="data:image/png;base64,{data}"/>\n'
        )

    def pixels(self, times: Sequence[int | None]) -> Iterator[NDArray[np.uint8]]:
        """RGB of the page with the density of the point after so many; None: as drawn in a still picture."""
        from PIL import Image

        colours = heat_map()
        for time in times:
            levels = self.levels(self.step if time is None else time)
            size = levels.shape[1] * GRAIN, levels.shape[0] * GRAIN
            smooth = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR))
            yield colours[smooth[: self.page.height, : self.page.width]]

    def levels(self, step: int | None) -> NDArray[np.uint8]:
        """The page in GRAIN pixels: 0 to 255, each cell of its own height."""
        page = np.zeros((-(-self.page.height // GRAIN), -(-self.page.width // GRAIN)), np.uint8)
        root = ROOT_OF_SUM if step is None else ROOT_OF_ONE
        for figure, prediction in zip(self.page.figures, self.predictions, strict=True):
            heat = density(figure, prediction, step)
            seen = heat[heat > heat.max(initial=0) * 1e-4]
            if seen.size:
                x, y = (v // GRAIN for v in figure.cell[:2])
                level = (heat / np.quantile(seen, PEAK)).clip(0, 1) ** root
                page[y : y + heat.shape[0], x : x + heat.shape[1]] = np.rint(255 * level)
        return page


def density(figure: Figure, prediction: Prediction, step: int | None = None) -> NDArray[np.float64]:
    """Density in the figure's cell, in 1 / GRAIN pixels squared, summed over all points or of the one after `step`.

    Each component is a normal in a window of its own size rather than `StrokeMixture.density` on the whole page: most
    are a few pixels wide. Its deviations have a map pixel's own added, so that none is so narrow that it falls between.
    """
    left, top, *size = figure.cell
    width, height = (-(-v // GRAIN) for v in size)
    steps = slice(None) if step is None else slice(step, step + 1)
    before = np.concatenate([figure.origin[None], figure.points])[:-1][steps]
    weight = prediction.weight[steps].astype(np.float64)
    t, j = np.nonzero(weight > LEAST_WEIGHT)
    grains = figure.unit / GRAIN
    centre = (before[t] - [left, top]) / GRAIN - 0.5 + prediction.mean[steps][t, j].astype(np.float64) * grains
    sigma = prediction.sigma[steps][t, j].astype(np.float64) * grains
    r, spread, area = prediction.r[steps][t, j].astype(np.float64), sigma**2 + 0.25, sigma.prod(-1)
    det = (area / np.cosh(r)) ** 2 + (spread.sum(-1) - 0.25) / 4  # of the covariance; a difference would cancel
    forms = np.column_stack([centre, spread, area * np.tanh(r), det, weight[t, j]])

    reach = np.ceil(REACH * np.sqrt(spread.max(-1, initial=0))) + 1
    window = 2 ** np.ceil(np.log2(2 * reach + 1))
    window = np.where(window < max(width, height), window, np.inf)  # the whole cell
    total = np.zeros(height * width)
    for wide in np.unique(window):
        group = forms[window == wide]
        shape = (height, width) if np.isinf(wide) else (int(wide), int(wide))
        corner = np.zeros((len(group), 2)) if np.isinf(wide) else np.floor(group[:, :2] - wide / 2) + 1
        near = ((corner < [width, height]) & (corner + shape[::-1] > 0)).all(-1)
        group, corners = group[near], corner[near].astype(np.int64)
        at_a_time = max(1, CHUNK // (shape[0] * shape[1]))
        for k in range(0, len(group), at_a_time):
            _add(total, width, group[k : k + at_a_time], corners[k : k + at_a_time], shape)
    return total.reshape(height, width)


def _add(
    total: NDArray[np.float64],
    width: int,
    forms: NDArray[np.float64],
    corner: NDArray[np.int64],
    shape: tuple[int, int],
) -> None:
    """Add weighted normals, (x, y, var x, var y, cov, det, weight) each, in the windows that begin at corners."""
    centre, (var_x, var_y, cov, det, weight) = forms[:, :2], forms[:, 2:].T[..., None, None]
    x = (corner[:, 0, None] + np.arange(shape[1]))[:, None, :]
    y = (corner[:, 1, None] + np.arange(shape[0]))[:, :, None]
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    value = np.exp(-(var_y * dx * dx - 2 * cov * dx * dy + var_x * dy * dy) / (2 * det))
    value *= weight / (2 * np.pi * np.sqrt(det))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < len(total) // width)
    total += np.bincount((y * width + x)[inside], value[inside], len(total))


def png(levels: NDArray[np.uint8], palette: Colours) -> bytes:
    """A PNG file of (H, W) places in a palette (256, 3)."""
    height, width = levels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), levels], axis=1)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, by palette
    chunks = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(lines.tobytes(), 9)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
