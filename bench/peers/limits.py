"""What contenders cannot do, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cell import Cannot
from ..precision import elements


def refuse_tf32_on_cpu(dtype: str, device: torch.device) -> None:
    """Raise Cannot for TF32 where there is none; ValueError for a dtype that is none."""
    elements(dtype)
    if dtype == "tf32" and device.type == "cpu":
        raise Cannot("TF32 is a format of GPUs")


def only_dtypes(who: str, dtype: str, able: Sequence[str]) -> None:
    """Raise Cannot for a dtype that a contender's documentation does not list."""
    elements(dtype)
    if dtype not in able:
        raise Cannot(f"{who} has no {dtype}, only {', '.join(able)}")


def only_cuda(who: str, device: torch.device) -> None:
    """Raise Cannot on other devices."""
    if device.type != "cuda":
        raise Cannot(f"{who} runs on CUDA only")
