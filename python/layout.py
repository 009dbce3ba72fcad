"""How tensors lie: the rows of sequences, padded or packed, and the weights of a network."""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import packed_steps


def accumulate(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the cell state and of the loss: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def alive(T: int, lengths: Tensor) -> Tensor:
    """(T, B, 1) bool: step t of sequence b lies inside it."""
    return (torch.arange(T, device=lengths.device)[:, None] < lengths)[..., None]


def packed_rows(lengths: Tensor | None, rows: int) -> Tensor:
    """(T, B) bool: where each of the packed rows belongs."""
    lengths, T = packed_steps(lengths, rows)
    return alive(T, lengths)[..., 0]


def unpack(rows: Tensor, live: Tensor) -> Tensor:
    """(T, B, ·) from packed rows, zero elsewhere."""
    out = rows.new_zeros(*live.shape, rows.shape[-1])
    out[live] = rows
    return out


class Layer(NamedTuple):
    """One layer's plain weights: weight_ih, weight_hh, bias_ih, bias_hh and, with peepholes, peephole (3, H)."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    peephole: Tensor | None = None


def layers_of(weights: list[Tensor], peephole: bool) -> tuple[list[Layer], Tensor, Tensor]:
    """The layers, the head's weight and its bias, of plain weights in the operators' order."""
    each = per_layer(peephole)
    return [Layer(*weights[k : k + each]) for k in range(0, len(weights) - 2, each)], weights[-2], weights[-1]


def per_layer(peephole: bool) -> int:
    """How many weights a layer has."""
    return 5 if peephole else 4
