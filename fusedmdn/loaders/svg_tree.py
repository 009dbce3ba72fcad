"""Which elements of an SVG document are drawn, and where: what is hidden or only defined, and transforms.

Of style sheets, rules of single classes are read, as drawing programs write them; display and visibility by any other
selector are refused, and so is whatever else would move strokes, or draw them twice, unseen by this package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ..dataset import StrokeFileError
from ..quoting import shown, told
from .markup import NUMBER, Document, local

UNDRAWN = {"defs", "symbol", "clipPath", "mask", "marker", "pattern", "metadata"}  # defined for use elsewhere
UNDRAWN |= {"foreignObject", "flowRegion", "flowRegionExclude"}  # another language; the bounds of Inkscape's texts
PLACING = ("x", "y", "viewBox", "transform")  # attributes of an <svg> in another that move what is in it
VISIBILITY = ("visible", "hidden", "collapse")
TRANSFORM = re.compile(r"[\s,]*(matrix|translate|scale|rotate|skewX|skewY)\s*\(([^()]*)\)")
CLASS = re.compile(r"\.(-?[A-Za-z_][\w-]*)")
PROPERTIES = ("display", "visibility", "transform")
NAMED = re.compile(rf"(?<![\w-])({'|'.join(PROPERTIES)})\s*:", re.IGNORECASE)
Style = dict[str, str]
Rules = dict[str, dict[str, tuple[int, str]]]  # of a class: property, the rule's number and the value


def drawn(document: Document) -> Iterator[tuple[Element, NDArray[np.float64]]]:
    """Every element that is drawn, with the (2, 3) matrix of its transforms.

    Raises:
        StrokeFileError: a <use>, an <svg> placed in another, a style that cannot be read here, no transform.
    """
    rules = _rules(document)
    waiting = [(document.root, np.eye(3), True)]
    while waiting:
        element, matrix, visible = waiting.pop()
        name, style = local(element.tag), _style(element, rules)
        if name in UNDRAWN or style.get("display") == "none" or element.get("requiredExtensions"):
            continue
        if name == "use":
            raise StrokeFileError(f"{document.path}: holds <use>, which is not read; expected paths and lines")
        if name == "svg" and element is not document.root and any(element.get(key) for key in PLACING):
            raise StrokeFileError(f"{document.path}: holds an <svg> placed in another, which is not read; ungroup it")
        if style.get("transform", "none") != "none":
            moved = f"<{told(name)}> has a transform in its style"
            raise StrokeFileError(f"{document.path}: {moved}, which is not read; expected the attribute")
        if element.get("transform") is not None:
            matrix = matrix @ transform(document, element.get("transform", ""))
        if style.get("visibility") in VISIBILITY:
            visible = style["visibility"] == "visible"
        if visible:
            yield element, matrix[:2]
        children = _chosen(element) if name == "switch" else list(element)
        waiting.extend((child, matrix, visible) for child in reversed(children))


def _chosen(switch: Element) -> list[Element]:
    """The first child that asks for no language and no extension, which is what everybody sees."""
    asking = ("requiredExtensions", "systemLanguage")
    return next(([child] for child in switch if not any(child.get(key) for key in asking)), [])


def _style(element: Element, rules: Rules) -> Style:
    """display, visibility and a transform of CSS: the attribute, over it the style sheets, over these the style."""
    style = {key: value for key in ("display", "visibility") if (value := element.get(key, "").strip())}
    found: dict[str, tuple[int, str]] = {}
    for name in element.get("class", "").split() if rules else ():
        for key, ranked in rules.get(name, {}).items():
            found[key] = max(found.get(key, ranked), ranked)
    return style | {key: value for key, (_, value) in found.items()} | _declared(element.get("style", ""))


def _declared(text: str) -> Style:
    declared = {}
    for declaration in _uncommented(text).lower().split(";"):
        key, _, value = declaration.partition(":")
        if key.strip() in PROPERTIES:
            declared[key.strip()] = value.partition("!")[0].strip()
    return declared


def _rules(document: Document) -> Rules:
    """What style sheets say of classes."""
    sheets = ["".join(element.itertext()) for element in document.root.iter() if local(element.tag) == "style"]
    text = _uncommented("\n".join(sheets))
    rules: Rules = {}
    if not NAMED.search(text):
        return rules
    for number, rule in enumerate(text.split("}")):
        selectors, _, declarations = rule.partition("{")
        declared = _declared(declarations)
        for selector in map(str.strip, selectors.split(",")) if declared or "{" in declarations else ():
            match = CLASS.fullmatch(selector)
            if match is None or "{" in declarations or "!important" in declarations.lower():
                raise StrokeFileError(
                    f"{document.path}: a style sheet hides or moves by {shown(rule.strip())}, which is not read; "
                    "expected rules of single classes, .name {…}"
                )
            rules.setdefault(match[1], {}).update({key: (number, value) for key, value in declared.items()})
    return rules


def _uncommented(text: str) -> str:
    kept, at = [], 0
    while (start := text.find("/*", at)) >= 0:
        kept.append(text[at:start])
        end = text.find("*/", start + 2)
        at = end + 2 if end >= 0 else len(text)
    return "".join([*kept, text[at:]])


def transform(document: Document, text: str) -> NDArray[np.float64]:
    """(3, 3) matrix of a transform attribute."""
    matrix, at = np.eye(3), 0
    while len(text) < 1000 and (match := TRANSFORM.match(text, at)):
        kind, given = match.groups()
        values = [float(number) for number in NUMBER.findall(given)]
        other = NUMBER.sub("", given).strip(" \t\r\n,")
        one = None if other or not all(map(math.isfinite, values)) else _matrix(kind, values)
        if one is None:
            break
        with np.errstate(all="ignore"):  # what is not finite is refused as a point
            matrix, at = matrix @ one, match.end()
    if text[at:].strip(" \t\r\n,"):
        raise StrokeFileError(f"{document.path}: transform {shown(text)} is none of SVG's")
    return matrix


def _matrix(kind: str, values: list[float]) -> NDArray[np.float64] | None:
    if kind == "matrix" and len(values) == 6:
        a, b, c, d, e, f = values
        return np.array([[a, c, e], [b, d, f], [0, 0, 1]])
    if kind == "translate" and len(values) in (1, 2):
        return np.array([[1, 0, values[0]], [0, 1, [*values, 0.0][1]], [0, 0, 1]])
    if kind == "scale" and len(values) in (1, 2):
        return np.diag([values[0], values[-1], 1.0])
    if kind == "rotate" and len(values) in (1, 3):
        x, y = [*values, 0.0, 0.0][1:3]
        c, s = math.cos(math.radians(values[0])), math.sin(math.radians(values[0]))
        return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y], [0, 0, 1]])
    if kind in ("skewX", "skewY") and len(values) == 1:
        skew = math.tan(math.radians(values[0]))
        return np.array([[1, skew if kind == "skewX" else 0, 0], [skew if kind == "skewY" else 0, 1, 0], [0, 0, 1]])
    return None
