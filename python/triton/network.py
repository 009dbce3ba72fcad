"""The network's weights as the samplers read them (kernels/triton/stack.py), laid out anew in every call.

A few copies of some megabytes, next to thousands of steps: no packed copy is kept that an optimiser could outdate, and
a captured graph lays out what the weights are when it is replayed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..sampling_plans import Plan, Resident


class Network(NamedTuple):
    """Tensors and sizes, by the names of the kernels' arguments."""

    weights: Tensor
    inputs: Tensor
    peephole: Tensor | None
    head: Tensor
    head_bias: Tensor
    L: int
    H: int
    K: int
    N: int
    DP: int


def laid_out(weights: list[Tensor], L: int, H: int, I: int, skip: bool, peephole: bool, plan: Plan) -> Network:
    """Of plain weights as in `reference.generate`; K, N and DP are padded to whole tiles of the plan."""
    *layers, head_weight, head_bias = (w.detach() for w in weights)
    each, S, D = len(layers) // L, (L if skip else 1), len(head_bias)
    K, N, DP = padded(H, D, plan)
    w = head_weight.new_zeros(2 * L - 1, K, N)
    x = head_weight.new_zeros(L, I + 1, N, dtype=torch.float32)
    for n in range(L):
        weight_ih, weight_hh, bias_ih, bias_hh = layers[n * each : n * each + 4]
        reads = I if n == 0 or skip else 0
        w[2 * n, :H, : 4 * H] = _unit_by_unit(weight_hh)
        if n:
            w[2 * n - 1, :H, : 4 * H] = _unit_by_unit(weight_ih[:, reads:])
        x[n, :reads, : 4 * H] = _unit_by_unit(weight_ih[:, :reads])
        x[n, I, : 4 * H] = _unit_by_unit((bias_ih.float() + bias_hh.float())[:, None])[0]
    head = head_weight.new_zeros(S, K, DP)
    head[:, :H, :D] = head_weight.view(D, S, H).permute(1, 2, 0)
    p = torch.stack(layers[4::each]).to(torch.float32) if peephole else None
    return Network(w, x, p, head, torch.nn.functional.pad(head_bias.float(), (0, DP - D)), L, H, K, N, DP)


def padded(H: int, D: int, plan: Plan) -> tuple[int, int, int]:
    """K, N and DP: H, 4H and D up to whole tiles."""
    depth = 1 if isinstance(plan, Resident) else plan.depth
    K, N, DP = (-(-size // step) * step for size, step in ((H, depth), (4 * H, 4 * plan.units), (D, plan.columns)))
    return K, N, DP


def _unit_by_unit(weight: Tensor) -> Tensor:
    """(4H, K), gate by gate, as (K, 4H), unit by unit."""
    gates, K = weight.shape
    return weight.view(4, gates // 4, K).permute(2, 1, 0).reshape(K, gates)
