"""Pictures as SVG."""

from __future__ import annotations

from .colours import INK, PAPER
from .page import Points
from .views import Ink, Picture


def document(picture: Picture) -> str:
    """An SVG document."""
    page = picture.page
    under = picture.under.markup() if picture.under else ""
    paths = "\n".join(_path(ink) for inks in picture.ink for ink in inks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{page.width}" height="{page.height}" '
        f'viewBox="0 0 {page.width} {page.height}">\n<rect width="100%" height="100%" fill="{PAPER}"/>\n{under}'
        f'<g fill="none" stroke="{INK}" stroke-width="{picture.pen:.4g}" stroke-linecap="round" '
        f'stroke-linejoin="round">\n{paths}\n</g>\n</svg>\n'
    )


def _path(ink: Ink) -> str:
    colour = "" if ink.colour == INK else f' stroke="{ink.colour}"'
    return f'<path d="{_along(ink.points)}"{colour}/>'


def _along(line: Points) -> str:
    points = [f"{x:.2f} {y:.2f}" for x, y in line]
    return "M" + "L".join(points if len(points) > 1 else points * 2)  # a lone point is a dot, by the round cap
