"""A part's results in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
SHOWN = ("passed", "failed", "skipped", "runs", "rows", "different", "variants", "left out")


def shown(name: str, part: Json) -> Iterator[str]:
    """A line on the part, and one for each of its failures."""
    facts = [f"{key} {part[key]}" for key in SHOWN if key in part]
    yield f"{name}: " + ", ".join([part["trouble"] or "as it should be", *facts, f"{part['seconds']:.0f} s"])
    for failure in part.get("failures", []):
        yield f"  {failure['test']}: {failure['message']}"
