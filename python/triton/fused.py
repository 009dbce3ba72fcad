"""`lstm_mdn_nll` by its fused plan: one launch of kernels/triton/lstm_mdn_nll.py each way.

Weights are laid out anew in every call, as for the samplers: a copy, next to hundreds of steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import PEN_LOGITS, ROW
from ..composed import OverTime
from ..launch import launch
from ..layout import Layer, layers_of
from ..plans import ALL, chunks
from ..training_plans import ALIGNED, INPUTS, Fused
from .arguments import COUNTER, bound_of, cooperative, given, lengths_of, same_dtype

OPTIONS = cooperative(ALL)  # all registers: there is at most one program on a multiprocessor


def forward(
    plan: Fused,
    x: Tensor,
    target: Tensor,
    weights: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    num_mixtures: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
    clip_gates: float | None,
    clip_output: float | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments and results as `reference.lstm_mdn_nll`."""
    (T, B, I), (L, _, H), f32 = x.shape, h0.shape, torch.float32
    layers, _, head_bias = layers_of(weights, peephole)
    D, h0 = len(head_bias), given("h0", h0, x, x.dtype, L, B, H)
    h_T, c_T, nll = h0.clone(), given("c0", c0, x, f32, L, B, H).clone(), _rows(x, lengths, T, B, dtype=f32)
    kept = T if save else 0
    h = x.new_empty(L, T if save else L + 1, B, H)
    gates, cells = x.new_empty(L, kept, B, 4 * H), x.new_empty(L, kept, B, H, dtype=f32)
    raw = _rows(x, lengths, kept, B, D)
    arguments = {
        "x": given("x", x, x, x.dtype, T, B, I),
        "inputs": _reading_inputs(x, layers),
        "head_bias": given("head bias", head_bias, x, f32, D),
        "h0": h0,
        "nll": nll,
        "h": h,
        "h_T": h_T,
        "c_T": c_T,
        "gates": gates if save else None,
        "cells": cells if save else None,
        "raw": raw if save else None,
        "sums": x.new_empty(3, B, D, dtype=f32),
        "steps": h.shape[1],
        "SKIP": skip,
        "I": I,
        "COLUMNS": plan.columns,
    }
    arguments |= _common(x, target, weights, lengths, T, num_mixtures, pen, means, skip, peephole)
    launch("lstm_mdn_nll.forward", (plan.programs, plan.groups), arguments | _tiles(plan, B, H, x), OPTIONS)
    return nll, h_T, c_T, h if save else x.new_empty(L, 0, B, H), gates, cells, raw


def backward(
    plan: Fused,
    grad: Tensor,
    grad_h_T: Tensor,
    grad_c_T: Tensor,
    x: Tensor,
    target: Tensor,
    weights: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    raw: Tensor,
    num_mixtures: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
    clip_gates: float | None,
    clip_output: float | None,
    want_x: bool,
    want_target: bool,
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    """Arguments and results as `reference.lstm_mdn_nll_backward`; weights' gradients are products after the launch."""
    (L, T, B, H), D, f32 = h.shape, raw.shape[2], torch.float32
    DP = -(-D // ALIGNED) * ALIGNED
    dz, draw = torch.empty_like(gates, memory_format=torch.contiguous_format), x.new_zeros(T, B, DP)
    dtarget = _rows(x, lengths, T, B, ROW[pen], dtype=f32) if want_target else None
    dh, dc = (given(name, v, x, f32, L, B, H).clone() for name, v in (("grad_h_T", grad_h_T), ("grad_c_T", grad_c_T)))
    dpeephole = x.new_zeros(L, 3, B, H, dtype=f32) if peephole else None
    arguments = {
        "grad": given("grad", grad, x, f32, T, B),
        "c0": given("c0", c0, x, f32, L, B, H),
        "gates": same_dtype("gates", gates, x, L, T, B, 4 * H),
        "cells": given("cells", cells, x, f32, L, T, B, H),
        "raw": same_dtype("raw", raw, x, T, B, D),
        "dz": dz,
        "draw": draw,
        "dtarget": dtarget,
        "dh": dh,
        "dc": dc,
        "dpeephole": dpeephole,
        "bound": bound_of(clip_gates),
        "bound_output": bound_of(clip_output),
        "DP": DP,
        "HEAD_CHUNKS": chunks(DP, plan.width),
    }
    arguments |= _common(x, target, weights, lengths, T, num_mixtures, pen, means, skip, peephole)
    launch("lstm_mdn_nll.backward", (plan.programs, plan.groups), arguments | _tiles(plan, B, 4 * H, x), OPTIONS)

    products = OverTime(x, weights, h, h0, lengths, skip, peephole, want_x)
    products.add_head(draw[..., :D])
    for n in range(L):
        products.add_layer(n, dz[n], x.new_empty(0) if dpeephole is None else dpeephole[n].sum(1))
    return products.x, target.new_empty(0) if dtarget is None else dtarget.to(target.dtype), products.weights, dh, dc


def _rows(x: Tensor, lengths: Tensor | None, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory of which the kernels write what lies inside the sequences alone."""
    make = x.new_empty if lengths is None else x.new_zeros
    return make(shape, dtype=dtype or x.dtype)


def _common(
    x: Tensor,
    target: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    T: int,
    M: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
) -> dict[str, Any]:
    """What both directions are told of the network, the batch and the options."""
    B, P = x.shape[1], PEN_LOGITS[pen]
    lengths = lengths_of(lengths, x, B)
    layers, head, _ = layers_of(weights, peephole)
    L, H = len(layers), layers[0].weight_hh.shape[1]
    matrices = [layers[0].weight_hh]
    for layer in layers[1:]:
        matrices += [layer.weight_ih[:, -H:], layer.weight_hh]
    S, peepholes = L if skip else 1, [v.detach().float() for _, _, _, _, v in layers if v is not None]
    return {
        "target": given("target", target, x, torch.float32, T, B, ROW[pen]),
        "weights": torch.stack(matrices).detach(),
        "peephole": torch.stack(peepholes) if peepholes else None,
        "head": same_dtype("head weight", head, x, P + 6 * M, S * H),
        "lengths": None if lengths is None else lengths.clamp(0, T),  # a GPU's have not been looked at
        "T": T,
        "B": B,
        "L": L,
        "H": H,
        "S": S,
        "STACKED": L > 1,
        "M": M,
        "MP": 1 << (M - 1).bit_length(),
        "P": P,
        "SIGMOID": means == "sigmoid",
    }


def _tiles(plan: Fused, B: int, K: int, x: Tensor) -> dict[str, Any]:
    """The plan's, and the counters of their barriers."""
    pieces = chunks(K, plan.width)
    return {
        "counters": torch.zeros(-(-B // plan.rows), COUNTER, dtype=torch.int32, device=x.device),
        "CHUNKS": pieces,
        "AHEAD": min(plan.ahead, len(pieces)),
        "ROWS": plan.rows,
        "UNITS": plan.units,
        "PRECISION": plan.precision,
    }


def _reading_inputs(x: Tensor, layers: list[Layer]) -> Tensor:
    """What reads [x | 1 | 1 | 0 …]: (L, 16, 4H), zero where a layer does not.

    The bias is the sum of two parts, the first of which is exact in bfloat16, so that neither is rounded much.
    """
    I, (G, H) = x.shape[2], layers[0].weight_hh.shape
    out = x.new_zeros(len(layers), INPUTS + 2, G)
    for n, layer in enumerate(layers):
        reads = layer.weight_ih.shape[1] - (H if n else 0)
        bias = (layer.bias_ih.float() + layer.bias_hh.float()).detach()
        rough = bias.to(torch.bfloat16).float()
        out[n, :reads] = layer.weight_ih[:, :reads].detach().t()
        out[n, I], out[n, I + 1] = rough, bias - rough
    return out
