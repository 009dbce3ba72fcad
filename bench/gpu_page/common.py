"""What all of the page needs: GPUs, elements, the compile gate's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from fusedmdn.ops import plans

from tests.compile_gate import shipped
from tests.compile_gate import table as gate

GPUS = {
    "sm_80": "A100",
    "sm_86": "RTX 3090",
    "sm_89": "RTX 4090",
    "sm_90": "H100",
    "sm_100": "B200",
    "sm_120": "RTX 5090",
    "gfx942": "MI300X",
}


class Numbers(NamedTuple):
    """What is stored and how it is multiplied: the table's word for the dtype, the page's title, torch's setting."""

    label: str
    title: str
    tf32: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return shipped.DTYPES[self.label]

    @property
    def precision(self) -> str:
        """As the plans call it."""
        return plans.precision_of(self.dtype, self.tf32)


NUMBERS = (
    Numbers("bf16", "bfloat16", False),
    Numbers("fp32", "float32", False),
    Numbers("fp32", "float32, TF32 allowed", True),
)


class MissingRowError(LookupError):
    """The compile gate's table lacks a kernel that the page is to show."""


class Rows:
    """The compile gate's table."""

    def __init__(self, path: Path = gate.PATH) -> None:
        content = gate.read(path)
        self.triton, self.pairs = content["triton"], content["pairs"]

    def of(self, variant: str, target: str) -> dict[str, Any]:
        """The figures of a variant on a target."""
        key = gate.key(variant, target)
        if key not in self.pairs:
            raise MissingRowError(f"the compile gate's table has no row for {key!r}; run `{gate.REFRESH}`")
        return self.pairs[key]


def device_of(target: str) -> plans.Device:
    """The GPU of a target, as the planner sees it."""
    return plans.Device(target, shipped.PROCESSORS[target], plans.SHARED.get(target, 0) * 1024)


def kib(size: int) -> str:
    """Bytes in KiB, rounded up to a tenth: what must fit."""
    return f"{-(-size * 10 // 1024) / 10:g}"
