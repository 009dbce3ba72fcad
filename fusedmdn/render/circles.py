"""The mixture as red circles, one for every component that counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .colours import PAPER, RED
from .page import Figure, Page
from .predictions import Prediction

LEAST_WEIGHT = 0.01
LEAST_OPACITY, MOST_OPACITY = 0.008, 0.6  # what is fainter is not seen, so not drawn
SPREAD = 0.03  # of its cell's height: the radius at which a component of weight 1 would be opaque


class Circles:
    """Every component j of every step t: a circle about where the pen was, plus the mean, of radius sqrt(s_x s_y).

    Its opacity is weight / radius^2, up to a factor, so that a component's red is its weight, spread over its circle.
    (Hardmaru's write-rnn-tensorflow, utils.py: draw_stroke_pdf.)

    Attributes:
        circles: for each figure (n, 5) rows (step, x, y, radius, opacity), in pixels of the page, by step.
    """

    def __init__(self, page: Page, predictions: Sequence[Prediction]) -> None:
        self.page = page
        self.circles = [_circles(f, p) for f, p in zip(page.figures, predictions, strict=True)]

    def markup(self) -> str:
        """SVG elements, each figure's cut off where its cell ends."""
        parts = [f'<g fill="{RED}">']
        for figure, circles in zip(self.page.figures, self.circles, strict=True):
            left, top, width, height = figure.cell
            parts.append(f'<svg x="{left}" y="{top}" width="{width}" height="{height}">')
            for _, x, y, r, opacity in circles.tolist():
                parts.append(f'<circle cx="{x - left:.2f}" cy="{y - top:.2f}" r="{r:.2f}" opacity="{opacity:.3g}"/>')
            parts.append("</svg>")
        return "\n".join([*parts, "</g>\n"])

    def pixels(self, times: Sequence[int | None]) -> Iterator[NDArray[np.uint8]]:
        """RGB of the page after so many points of each sequence, the times ascending; None: after all."""
        paper, red = (np.array([int(c[k : k + 2], 16) for k in (1, 3, 5)], np.float32) for c in (PAPER, RED))
        left = np.ones((self.page.height, self.page.width), np.float32)  # of the paper's white; circles' order is free
        shown = [0] * len(self.circles)
        for time in times:
            for k, (figure, circles) in enumerate(zip(self.page.figures, self.circles, strict=True)):
                until = len(circles) if time is None else int(np.searchsorted(circles[:, 0], time, side="right"))
                x, y, width, height = figure.cell
                for _, cx, cy, r, opacity in circles[shown[k] : until].tolist():
                    _cover(left[y : y + height, x : x + width], cx - x, cy - y, r, opacity)
                shown[k] = until
            pixels = np.empty((*left.shape, 3), np.uint8)
            for c in range(3):
                pixels[..., c] = np.rint(red[c] + (paper[c] - red[c]) * left)
            yield pixels


def _circles(figure: Figure, prediction: Prediction) -> NDArray[np.float64]:
    x, y, width, height = figure.cell
    before = np.concatenate([figure.origin[None], figure.points])[:-1]
    step, component = np.nonzero(prediction.weight > LEAST_WEIGHT)
    weight = prediction.weight[step, component].astype(np.float64)
    centre = before[step] + prediction.mean[step, component].astype(np.float64) * figure.unit
    radius = np.sqrt(prediction.sigma[step, component].astype(np.float64).prod(-1)) * figure.unit
    opacity = np.minimum(weight * (SPREAD * height / np.maximum(radius, 1e-3)) ** 2, MOST_OPACITY)
    beside = np.abs(centre - [x + width / 2, y + height / 2]) - radius[:, None] > [width / 2, height / 2]
    seen = (opacity >= LEAST_OPACITY) & ~beside.any(-1)
    return np.column_stack([step, centre, radius, opacity])[seen]


def _cover(white: NDArray[np.float32], x: float, y: float, r: float, opacity: float) -> None:
    """Take the circle's opacity of the white away, its edge a pixel wide."""
    x, y = x - 0.5, y - 0.5  # of pixels' centres
    x0, x1 = max(0, int(x - r - 1)), min(white.shape[1], int(x + r + 2))
    y0, y1 = max(0, int(y - r - 1)), min(white.shape[0], int(y + r + 2))
    if x0 < x1 and y0 < y1:
        dx, dy = np.arange(x0, x1, dtype=np.float32) - x, np.arange(y0, y1, dtype=np.float32) - y
        distance = np.sqrt(dx * dx + (dy * dy)[:, None])
        white[y0:y1, x0:x1] *= 1 - np.float32(opacity) * (np.float32(r + 0.5) - distance).clip(0, 1)
