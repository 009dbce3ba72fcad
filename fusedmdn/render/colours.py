"""Colours of the views, chosen in Oklab, where equal steps look equal (Ottosson 2020)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Colours = NDArray[np.uint8]

INK, PAPER, RED = "#1b1b2f", "#ffffff", "#e8112d"
GOLDEN = (5**0.5 - 1) / 2  # hues that are such a part of a turn apart spread as evenly as can be, however many

# From night to glow, (lightness, chroma, hue in degrees) at equal steps; the ink on it is white.
HEAT = ((0.17, 0.03, 285), (0.31, 0.12, 295), (0.46, 0.18, 325), (0.61, 0.2, 370), (0.77, 0.16, 410), (0.94, 0.1, 455))


def rgb(lightness: Any, chroma: Any, turn: Any) -> Colours:
    """sRGB (n, 3) of lightness in 0 to 1, chroma, and hue in turns, (n) each; what no screen can show is clipped."""
    a, b = chroma * np.cos(2 * np.pi * turn), chroma * np.sin(2 * np.pi * turn)
    lms = np.stack([lightness, a, b], -1) @ np.array(
        [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
    )
    linear = lms**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = linear.clip(0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.rint(255 * encoded).astype(np.uint8)


def random_colours(n: int, seed: list[int]) -> list[str]:
    """n colours that are legible on paper, neighbours far apart in hue."""
    random = np.random.default_rng(seed)
    turn = random.random() + GOLDEN * np.arange(n) + random.uniform(-0.06, 0.06, n)
    return hexadecimal(rgb(random.uniform(0.5, 0.66, n), np.full(n, 0.19), turn))


def heat_map() -> Colours:
    """(256, 3): from no density to the highest."""
    knots = np.array(HEAT)
    place = np.linspace(0, len(HEAT) - 1, 256)
    lightness, chroma, degrees = (np.interp(place, np.arange(len(HEAT)), column) for column in knots.T)
    return rgb(lightness, chroma, degrees / 360)


def heat_palette() -> Colours:
    """(253, 3): the heat map, and the same with the white edges of the ink on it."""
    heat = heat_map()[np.linspace(0, 255, 84).astype(int)]
    paper = np.full((1, 3), 255)
    return np.concatenate([*(heat + (paper - heat) * edge for edge in (0, 0.33, 0.66)), paper]).round().astype(np.uint8)


def hexadecimal(colours: Colours) -> list[str]:
    """As SVG and Pillow read them."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours.tolist()]
