"""The plans that a network runs by on the device of its weights."""

from __future__ import annotations

from typing import Any

import torch
from fusedmdn.ops import launch, sampling_plans, training_plans
from fusedmdn.ops.triton.arguments import tf32_allowed

from fusedmdn import FusedLSTMMDN

DIRECTIONS = "forward", "backward"


def training(model: FusedLSTMMDN, B: int, dtype: torch.dtype) -> dict[str, Any]:
    """Of each direction, weights in a dtype; raises RuntimeError where one is forced that does not fit."""
    weight = model.head.weight
    sizes = model.num_layers, model.hidden_size, len(weight), B
    options: dict[str, Any] = {"inputs": model.input_size, "tf32": tf32_allowed()}
    device = launch.device_of(weight)
    return {d: training_plans.choose(d, *sizes, dtype, device, **options)._asdict() for d in DIRECTIONS}


def sampling(model: FusedLSTMMDN, B: int, dtype: torch.dtype) -> sampling_plans.Plan:
    """Of B sequences; raises RuntimeError where one is forced that does not fit."""
    sizes = model.num_layers, model.hidden_size, model.head.out_features, B
    return sampling_plans.choose(*sizes, dtype, launch.device_of(model.head.weight), tf32=tf32_allowed())
