"""Matrix products over all time, by PyTorch: of inputs that lie side by side, without laying them so; and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import alive, packed_rows
from .recycled import empty

NARROW = 16  # columns: an input as narrow as this is multiplied together with the bias


def side_by_side(inputs: list[Tensor], weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """The inputs (..., ·) side by side, times weight^T, plus bias: (..., len(weight)); into `out` where it is given.

    On a CPU, in float32, as a sum of products into memory that is used again: nothing is copied, and a matrix of 403
    columns has a slow gradient (59 GFLOP/s against 92 for 400, on one core of an AMD EPYC, torch 2.13). In fewer bits a
    sum would round once more.
    """
    shape, width = inputs[0].shape[:-1], len(weight)
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or _traced():
        joint = torch.cat([v.to(inputs[-1].dtype) for v in inputs], dim=-1) if len(inputs) > 1 else inputs[0]
        if out is None:
            return torch.nn.functional.linear(joint, weight, bias)
        return torch.addmm(bias, joint.flatten(0, -2), weight.t(), out=out.view(-1, width)).view(*shape, width)
    narrow, wide = _narrow_with_ones(inputs)
    columns = weight.split([narrow.shape[1] - 1, *(v.shape[1] for v in wide)], dim=1)
    rows = empty(inputs[-1], len(narrow), width) if out is None else out.view(-1, width)
    rows.addmm_(narrow, torch.cat([columns[0], bias[:, None]], dim=1).t(), beta=0)
    for part, its_columns in zip(wide, columns[1:], strict=True):
        rows.addmm_(part, its_columns.t())
    return rows.view(*shape, width)


def side_by_side_gradients(gradient: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradients of weight (N, ·) and bias (N) of `side_by_side`, from that of its result (..., N)."""
    rows = gradient.flatten(0, -2)
    narrow, wide = _narrow_with_ones(inputs)
    first = narrow.t() @ rows  # five times as fast as its transpose, of few columns
    return torch.cat([first[:-1].t(), *(rows.t() @ v for v in wide)], dim=1), first[-1].clone()


def _traced() -> bool:
    """Whether a compiler or autocast, which know no memory but their own, look at each operation."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def _narrow_with_ones(inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """As rows: the first input with a column of ones, which is that alone where the input is not narrow; the others."""
    rows = [v.flatten(0, -2) for v in inputs]
    narrow = rows.pop(0) if rows[0].shape[1] <= NARROW else rows[0][:, :0]
    return torch.cat([narrow, narrow.new_ones(len(narrow), 1)], dim=1), rows


def recurrent_gradient(dz: Tensor, h: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
    """The gradient of weight_hh, (4H, H): the sum over rows of dz_t (outer) h_{t-1}."""
    if lengths is not None:  # the state of an empty sequence is never read, so it may hold anything
        h0 = torch.where(alive(1, lengths)[0], h0, 0)
    if h.dim() == 3:
        first, later, previous = dz[:1].flatten(0, 1), dz[1:].flatten(0, 1), h[: h.shape[0] - 1].flatten(0, 1)
    else:  # packed: a row's predecessor lies as many rows before it as there were sequences alive then
        live = packed_rows(lengths, len(h))
        number = live.flatten().cumsum(0).view_as(live) - 1
        first, later = dz.split([int(live[:1].sum()), int(live[1:].sum())])
        previous, h0 = h[number[: len(live) - 1][live[1:]]], h0[: len(first)]
    dweight = later.t() @ previous
    return dweight.addmm_(first.t(), h0) if first.shape[0] else dweight
