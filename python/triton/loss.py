"""The mixture's loss on kernels/triton/mdn_nll.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import PEN_LOGITS, ROW, check_clip, check_options
from ..launch import launch
from .arguments import INDEPENDENT, bound_of, given, kernel_dtype, lengths_of, rows_of

MIXTURE_TILE = 128  # elements of a program of the loss, rows x components: one a thread


def mdn_nll(
    raw: Tensor,
    target: Tensor,
    lengths: Tensor | None,
    pen: str,
    num_mixtures: int,
    means: str,
    clip: float | None,
) -> Tensor:
    """kernels/triton/mdn_nll.py; arguments and result as `reference.mdn_nll`."""
    check_clip(clip)
    grid, arguments = _mdn_arguments(raw, target, lengths, pen, num_mixtures, means)
    nll = raw.new_empty(raw.shape[:2], dtype=torch.float32)
    if nll.numel():
        launch("mdn_nll.forward", grid, arguments | {"nll": nll}, INDEPENDENT)
    return nll


def mdn_nll_backward(
    grad: Tensor,
    raw: Tensor,
    target: Tensor,
    lengths: Tensor | None,
    pen: str,
    num_mixtures: int,
    means: str,
    clip: float | None,
    want_target: bool,
) -> tuple[Tensor, Tensor]:
    """kernels/triton/mdn_nll.py; arguments and results as `reference.mdn_nll_backward`."""
    grid, arguments = _mdn_arguments(raw, target, lengths, pen, num_mixtures, means)
    draw = raw.new_empty(raw.shape)
    dtarget = raw.new_empty(target.shape, dtype=torch.float32) if want_target else None
    if draw.numel():
        arguments |= {
            "grad": given("grad", grad, raw, torch.float32, *raw.shape[:2]),
            "draw": draw,
            "dtarget": dtarget,
            "bound": bound_of(clip),
        }
        launch("mdn_nll.backward", grid, arguments, INDEPENDENT)
    return draw, target.new_empty(0) if dtarget is None else dtarget.to(target.dtype)


def _mdn_arguments(
    raw: Tensor, target: Tensor, lengths: Tensor | None, pen: str, M: int, means: str
) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, and what both directions are told."""
    kernel_dtype("raw", raw)
    check_options(pen, means, M)
    P = PEN_LOGITS[pen]
    if raw.dim() != 3:
        raise ValueError(f"raw: expected shape (T, B, {P + 6 * M}), got {tuple(raw.shape)}")
    T, B = raw.shape[:2]
    raw = rows_of("raw", raw, raw, T, B, P + 6 * M)
    padded = 1 << (M - 1).bit_length()
    rows = max(1, MIXTURE_TILE // padded)
    return (-(-T * B // rows),), {
        "raw": raw,
        "target": given("target", target, raw, torch.float32, T, B, ROW[pen]),
        "lengths": lengths_of(lengths, raw, B),
        "T": T,
        "B": B,
        "raw_stride_t": raw.stride(0),
        "raw_stride_b": raw.stride(1),
        "M": M,
        "MP": padded,
        "P": P,
        "SIGMOID": means == "sigmoid",
        "ROWS": rows,
    }
