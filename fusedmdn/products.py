"""Products of inputs that lie side by side, without laying them so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ops import recycled, runs_on_cpu_kernels

NARROW = 16  # columns: an input as narrow as this is multiplied together with the bias


def side_by_side(inputs: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """The inputs (..., ·) side by side, times weight^T, plus bias: (..., len(weight)).

    Next to the C++ kernels, in float32, as a sum of products into memory that is used again: nothing is copied, and a
    matrix of 403 columns has a slow gradient (59 GFLOP/s against 92 for 400, on one core of an AMD EPYC, torch 2.13).
    In fewer bits a sum would round once more.
    """
    shape, like = inputs[0].shape[:-1], inputs[-1]
    if not (weight.dtype == torch.float32 and runs_on_cpu_kernels(weight)) or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(torch.cat([v.to(like.dtype) for v in inputs], dim=-1), weight, bias)
    rows = [v.flatten(0, -2) for v in inputs]
    narrow = rows.pop(0) if rows[0].shape[1] <= NARROW else rows[0][:, :0]
    width = narrow.shape[1]
    out = recycled.empty(like, len(narrow), len(weight))
    with_one = torch.cat([narrow, narrow.new_ones(len(narrow), 1)], dim=1)
    out.addmm_(with_one, torch.cat([weight[:, :width], bias[:, None]], dim=1).t(), beta=0)
    for part, columns in zip(rows, weight[:, width:].split([v.shape[1] for v in rows], dim=1), strict=True):
        out.addmm_(part, columns.t())
    return out.view(*shape, len(weight))


def head_of(outputs: list[Tensor], head: nn.Linear) -> Tensor:
    """The head's output for the layers' outputs side by side; by a call of it where somebody listens to its calls."""
    hooks = head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks
    if len(outputs) == 1 or type(head) is not nn.Linear or any(hooks):
        return head(torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0])
    return side_by_side(outputs, head.weight, head.bias)
