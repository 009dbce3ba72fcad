"""The works measured; each module's `cells` yields what is to be compared, contender by contender."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..cell import Cell
from ..machine import Machine
from ..settings import Part, Settings
from . import loss, sampling, training

Json = dict[str, Any]


def cells(part: Part, settings: Settings, machine: Machine, ceilings: Json) -> Iterator[Cell]:
    """The cells of a part, one for each of its setups, built when they are asked for."""
    module = {"training": training, "loss": loss, "sampling": sampling}[part.work]
    yield from module.cells(part, settings, machine, ceilings)
