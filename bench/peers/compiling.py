"""torch.compile as a benchmark needs it: every shape and dtype compiled for itself, none of them given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo

LIMIT = 256  # of one function's compilations; beyond its default of 8 PyTorch would go on without compiling


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """torch.compile(function, dynamic=False, **options)."""
    torch._dynamo.config.recompile_limit = LIMIT
    return torch.compile(function, dynamic=False, **options)
