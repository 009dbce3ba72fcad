"""`lstm_mdn_nll` on the Triton kernels: fused into one launch each way, or composed of a layer's and the loss's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import composed, training_plans
from ..checks import check_clip, check_options, check_weights
from ..forced import PlanError, plan_of
from ..launch import device_of
from ..sizes import MOST
from ..training_plans import ALIGNED, Composed, Fused
from . import fused
from .arguments import kernel_dtype, tf32_allowed
from .loss import mdn_nll, mdn_nll_backward
from .recurrence import lstm, lstm_backward
from .refused import or_else

KERNELS = composed.Kernels(lstm, lstm_backward, mdn_nll, mdn_nll_backward)


def lstm_mdn_nll(
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
    options = num_mixtures, pen, means, skip, peephole, clip_gates, clip_output
    network = x, target, weights, h0, c0, lengths
    return _run("forward", fused.forward, composed.forward, network, options, (*network, *options, save))


def lstm_mdn_nll_backward(
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
    """Arguments and results as `reference.lstm_mdn_nll_backward`."""
    options = num_mixtures, pen, means, skip, peephole, clip_gates, clip_output
    network = x, target, weights, h0, c0, lengths
    given = grad, grad_h_T, grad_c_T, *network, h, gates, cells, raw, *options, want_x, want_target
    return _run("backward", fused.backward, composed.backward, network, options, given)


def _run(
    direction: str,
    as_one: Any,
    in_parts: Any,
    network: tuple[Any, ...],
    options: tuple[Any, ...],
    given: tuple[Any, ...],
) -> Any:
    """Run the plan; composed in place of a fused one that the device refuses."""
    x, _, weights, h0, _, _ = network
    num_mixtures, pen, means, skip, peephole, clip_gates, clip_output = options
    kernel_dtype("x", x)
    check_options(pen, means, num_mixtures)
    check_clip(clip_gates, "clip_gates")
    check_clip(clip_output, "clip_output")
    check_weights(weights, h0, x.shape[-1], num_mixtures, pen, skip, peephole)
    plan = _plan_of(direction, x, h0, len(weights[-1]))
    if isinstance(plan, Composed):
        return in_parts(KERNELS, *given)
    key = direction, *h0.shape[::2], len(weights[-1]), x.dtype, x.device, *plan[:-2]
    return or_else(
        "lstm_mdn_nll",
        key,
        lambda: as_one(plan, *given),
        lambda: in_parts(KERNELS, *given),
        f"lstm_mdn_nll {direction} runs layer by layer",
    )


def _plan_of(direction: str, x: Tensor, h0: Tensor, D: int) -> Fused | Composed:
    """The plan of a call on this tensor's device: composed where rows are packed, or too many to be counted."""
    wanted, device, (L, B, H) = plan_of("lstm_mdn_nll"), device_of(x), h0.shape
    if not x.numel():
        return Composed()
    T, unfit = x.shape[0], None
    if x.dim() == 2:
        unfit = f"rows are packed: {tuple(x.shape)}"
    elif max(L * B * max(4 * H, T), 3 * B * (D + ALIGNED), 8 * L * H * H, (T + L + 1) * device.processors) >= MOST:
        unfit = f"L={L}, H={H}, D={D}, {B} sequences of {T} steps overflow 32-bit counters"
    if unfit is None:
        return training_plans.choose(direction, L, H, D, B, x.dtype, device, inputs=x.shape[2], tf32=tf32_allowed())
    if getattr(wanted, "name", wanted) == "fused":
        raise PlanError(f"the fused plan does not fit: {unfit}")
    return Composed()
