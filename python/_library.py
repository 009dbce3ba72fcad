"""The operators of namespace `fusedmdn`: schema, fake, autograd, autocast; `_backend` decides what runs them.

Each is one opaque operator per direction, so that torch.compile and torch.export keep it whole. A second derivative
raises a clear error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cpu, reference, triton
from ._backend import kernel, register
from .layout import accumulate, per_layer
from .products import recurrent_gradient


def _operator(name: str, schema: str, typed_by: int = 0) -> torch.library.CustomOpDef:
    """Define fusedmdn::name, run by the backend for the device and dtype of one argument (or of its first tensor)."""
    register(name, "reference")(getattr(reference, name))
    register(name, "cpu")(getattr(cpu, name))
    if hasattr(triton, name):
        register(name, "triton")(getattr(triton, name))

    def run(*args: Any) -> Any:
        like = args[typed_by]
        like = like[0] if isinstance(like, (list, tuple)) else like
        device = like.device.type
        with torch.autocast(device, enabled=False):  # an operator's dtypes are those of its arguments
            return kernel(name, device, like.dtype)(*args)

    return torch.library.custom_op(f"fusedmdn::{name}", run, mutates_args=(), schema=schema)


def _no_second_derivative(operator: torch.library.CustomOpDef) -> None:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{operator._qualname} is itself a derivative and has none: second derivatives (double backward, "
            "create_graph=True) are not supported by fusedmdn"
        )

    operator.register_autograd(backward)


lstm = _operator(
    "lstm",
    "(Tensor xw, Tensor weight_hh, Tensor h0, Tensor c0, Tensor? peephole, Tensor? lengths, float? clip, bool save)"
    " -> (Tensor h, Tensor h_T, Tensor c_T, Tensor gates, Tensor cells)",
)
lstm_backward = _operator(
    "lstm_backward",
    "(Tensor grad_h, Tensor grad_h_T, Tensor grad_c_T, Tensor weight_hh, Tensor c0, Tensor? peephole, Tensor? lengths,"
    " Tensor gates, Tensor cells, float? clip) -> (Tensor xw, Tensor h0, Tensor c0, Tensor peephole)",
)
lstm_layer = _operator(
    "lstm_layer",
    "(Tensor x, Tensor weight_ih, Tensor bias, Tensor weight_hh, Tensor h0, Tensor c0, Tensor? peephole,"
    " Tensor? lengths, float? clip) -> (Tensor h, Tensor h_T, Tensor c_T, Tensor cells)",
)
lstm_gates = _operator(
    "lstm_gates",
    "(Tensor xw, Tensor weight_hh, Tensor h0, Tensor c0, Tensor? peephole, Tensor? lengths, Tensor h, Tensor cells)"
    " -> Tensor",
)
mdn_nll = _operator(
    "mdn_nll",
    "(Tensor raw, Tensor target, Tensor? lengths, str pen, int num_mixtures, str means, float? clip) -> Tensor",
)
mdn_nll_backward = _operator(
    "mdn_nll_backward",
    "(Tensor grad, Tensor raw, Tensor target, Tensor? lengths, str pen, int num_mixtures, str means, float? clip,"
    " bool want_target) -> (Tensor raw, Tensor target)",
    typed_by=1,
)
lstm_mdn_nll = _operator(
    "lstm_mdn_nll",
    "(Tensor x, Tensor target, Tensor[] weights, Tensor h0, Tensor c0, Tensor? lengths, int num_mixtures, str pen,"
    " str means, bool skip, bool peephole, float? clip_gates, float? clip_output, bool save)"
    " -> (Tensor nll, Tensor h_T, Tensor c_T, Tensor h, Tensor gates, Tensor cells, Tensor raw)",
)
lstm_mdn_nll_backward = _operator(
    "lstm_mdn_nll_backward",
    "(Tensor grad, Tensor grad_h_T, Tensor grad_c_T, Tensor x, Tensor target, Tensor[] weights, Tensor h0, Tensor c0,"
    " Tensor? lengths, Tensor h, Tensor gates, Tensor cells, Tensor raw, int num_mixtures, str pen, str means,"
    " bool skip, bool peephole, float? clip_gates, float? clip_output, bool want_x, bool want_target)"
    " -> (Tensor x, Tensor target, Tensor[] weights, Tensor h0, Tensor c0)",
    typed_by=3,
)
generate = _operator(
    "generate",
    "(Tensor[] weights, Tensor h, Tensor c, Tensor row, Tensor drawn, Tensor done, Tensor seed, int steps, Tensor bias,"
    " Tensor temperature, Tensor? prime, Tensor? prime_lengths, int num_mixtures, str pen, str means, bool skip,"
    " bool peephole) -> (Tensor points, Tensor lengths, Tensor h, Tensor c, Tensor row, Tensor drawn, Tensor done)",
)
_no_second_derivative(lstm_backward)
_no_second_derivative(lstm_gates)
_no_second_derivative(mdn_nll_backward)
_no_second_derivative(lstm_mdn_nll_backward)


@lstm.register_fake
def _(xw, weight_hh, h0, c0, peephole, lengths, clip, save):  # type: ignore[no-untyped-def]
    rows, B, G = xw.shape[:-1], h0.shape[0], xw.shape[-1]
    H, acc = G // 4, accumulate(xw.dtype)
    saved = rows if save else (0, *rows[1:])
    state = xw.new_empty(B, H), xw.new_empty(B, H, dtype=acc)
    return xw.new_empty(*rows, H), *state, xw.new_empty(*saved, G), xw.new_empty(*saved, H, dtype=acc)


@lstm_backward.register_fake
def _(grad_h, grad_h_T, grad_c_T, weight_hh, c0, peephole, lengths, gates, cells, clip):  # type: ignore[no-untyped-def]
    state = cells.new_empty(c0.shape)
    return torch.empty_like(gates), state, state.clone(), cells.new_empty((0,) if peephole is None else peephole.shape)


def _lstm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight_hh, h0, c0, peephole, lengths, ctx.clip, ctx.saved = inputs
    h, _, _, gates, cells = output
    ctx.mark_non_differentiable(gates, cells)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight_hh, h0, c0, peephole, lengths, h, gates, cells)


def _lstm_autograd(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("fusedmdn::lstm was called with save=False, so it has nothing to differentiate")
    weight_hh, h0, c0, peephole, lengths, h, gates, cells = ctx.saved_tensors
    given = _gradients_given(grads, h, h0, c0, cells)
    dz, dh0, dc0, dpeephole = lstm_backward(*given, weight_hh, c0, peephole, lengths, gates, cells, ctx.clip)
    dweight = None
    if ctx.needs_input_grad[1]:
        with torch.autocast(h.device.type, enabled=False):  # in the dtype that forward had
            dweight = recurrent_gradient(dz, h, h0.to(h.dtype), lengths)
    dpeephole = None if peephole is None else dpeephole.to(peephole.dtype)
    return dz, dweight, dh0.to(h0.dtype), dc0.to(c0.dtype), dpeephole, None, None, None


def _gradients_given(
    grads: tuple[Tensor | None, ...], h: Tensor, h0: Tensor, c0: Tensor, cells: Tensor
) -> list[Tensor]:
    """Gradients of h, h_T and c_T, zeros where there are none."""
    outputs = h, h0.to(h.dtype), c0.to(cells.dtype)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(grads, outputs, strict=False)]


lstm.register_autograd(_lstm_autograd, setup_context=_lstm_context)


@lstm_layer.register_fake
def _(x, weight_ih, bias, weight_hh, h0, c0, peephole, lengths, clip):  # type: ignore[no-untyped-def]
    rows, (B, H), acc = x.shape[:-1], h0.shape, accumulate(x.dtype)
    state = x.new_empty(B, H), x.new_empty(B, H, dtype=acc)
    return x.new_empty(*rows, H), *state, x.new_empty(*rows, H, dtype=acc)


@lstm_gates.register_fake
def _(xw, weight_hh, h0, c0, peephole, lengths, h, cells):  # type: ignore[no-untyped-def]
    return xw.new_empty(xw.shape)


def _layer_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.clip = inputs
    h, _, _, cells = output
    ctx.mark_non_differentiable(cells)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, h, cells)


def _layer_autograd(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    x, weight_ih, bias, weight_hh, h0, c0, peephole, lengths, h, cells = ctx.saved_tensors
    with torch.autocast(x.device.type, enabled=False):  # in the dtypes that forward had
        xw = torch.nn.functional.linear(x, weight_ih, bias)
        gates = lstm_gates(xw, weight_hh, h0, c0, peephole, lengths, h, cells)
        del xw
        given = _gradients_given(grads, h, h0, c0, cells)
        dz, dh0, dc0, dpeephole = lstm_backward(*given, weight_hh, c0, peephole, lengths, gates, cells, ctx.clip)
        rows = dz.flatten(0, -2)
        return (
            dz @ weight_ih if ctx.needs_input_grad[0] else None,
            rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
            recurrent_gradient(dz, h, h0.to(h.dtype), lengths) if ctx.needs_input_grad[3] else None,
            dh0.to(h0.dtype),
            dc0.to(c0.dtype),
            None if peephole is None else dpeephole.to(peephole.dtype),
            None,
            None,
        )


lstm_layer.register_autograd(_layer_autograd, setup_context=_layer_context)


@mdn_nll.register_fake
def _(raw, target, lengths, pen, num_mixtures, means, clip):  # type: ignore[no-untyped-def]
    return raw.new_empty(raw.shape[:2], dtype=accumulate(raw.dtype))


@mdn_nll_backward.register_fake
def _(grad, raw, target, lengths, pen, num_mixtures, means, clip, want_target):  # type: ignore[no-untyped-def]
    return raw.new_empty(raw.shape), target.new_empty(target.shape if want_target else 0)


def _mdn_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    raw, target, lengths, *ctx.options = inputs
    ctx.save_for_backward(raw, target, lengths)


def _mdn_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    want_target = ctx.needs_input_grad[1]
    draw, dtarget = mdn_nll_backward(grad, *ctx.saved_tensors, *ctx.options, want_target)
    return draw, dtarget if want_target else None, None, None, None, None, None


mdn_nll.register_autograd(_mdn_autograd, setup_context=_mdn_context)


@lstm_mdn_nll.register_fake
def _(  # type: ignore[no-untyped-def]
    x, target, weights, h0, c0, lengths, num_mixtures, pen, means, skip, peephole, clip_gates, clip_output, save
):
    rows, (L, B, H), acc = x.shape[:-1], h0.shape, accumulate(x.dtype)
    saved = rows if save else (0, *rows[1:])
    return (
        x.new_empty(rows, dtype=acc),
        x.new_empty(L, B, H),
        x.new_empty(L, B, H, dtype=acc),
        x.new_empty(L, *saved, H),
        x.new_empty(L, *saved, 4 * H),
        x.new_empty(L, *saved, H, dtype=acc),
        x.new_empty(*saved, weights[-1].shape[0]),
    )


@lstm_mdn_nll_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    grad, grad_h_T, grad_c_T, x, target, weights, h0, c0, lengths, h, gates, cells, raw, num_mixtures, pen, means,
    skip, peephole, clip_gates, clip_output, want_x, want_target,
):  # fmt: skip
    dx, dtarget = x.new_empty(x.shape if want_x else 0), target.new_empty(target.shape if want_target else 0)
    return dx, dtarget, [w.new_empty(w.shape) for w in weights], cells.new_empty(h0.shape), cells.new_empty(h0.shape)


def _network_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, target, weights, h0, c0, lengths, *ctx.options, ctx.saved = inputs
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, target, h0, c0, lengths, *output[3:], *weights)


def _network_autograd(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("fusedmdn::lstm_mdn_nll was called with save=False, so it has nothing to differentiate")
    x, target, h0, c0, lengths, h, gates, cells, raw, *weights = ctx.saved_tensors
    want_x, want_target = ctx.needs_input_grad[:2]
    shapes = x.shape[:-1], h0.shape, c0.shape
    given = [cells.new_zeros(shape) if g is None else g for g, shape in zip(grads, shapes, strict=False)]
    dx, dtarget, dweights, dh0, dc0 = lstm_mdn_nll_backward(
        *given, x, target, weights, h0, c0, lengths, h, gates, cells, raw, *ctx.options, want_x, want_target
    )
    gradients = dx if want_x else None, dtarget if want_target else None, dweights, dh0.to(h0.dtype), dc0.to(c0.dtype)
    return (*gradients, *[None] * 9)


lstm_mdn_nll.register_autograd(_network_autograd, setup_context=_network_context)


@generate.register_fake
def _(  # type: ignore[no-untyped-def]
    weights, h, c, row, drawn, done, seed, steps, bias, temperature, prime, prime_lengths, num_mixtures, pen, means,
    skip, peephole,
):  # fmt: skip
    dtype = weights[-1].dtype
    acc = accumulate(dtype)
    state = (
        h.new_empty(h.shape, dtype=dtype),
        c.new_empty(c.shape, dtype=acc),
        row.new_empty(row.shape, dtype=acc),
        torch.empty_like(drawn),
        torch.empty_like(done),
    )
    return row.new_empty(steps, *row.shape, dtype=acc), torch.empty_like(drawn), *state


def _autocast(name: str, multiplied: Callable[..., list[Any]], device: str) -> Callable[..., Any]:
    """An lstm operator under autocast: its matrix products in the autocast dtype, cell state and peepholes as they are.

    `multiplied` gives its arguments, with those that are multiplied cast. mdn_nll and generate need no rule: they take
    any float dtype and compute in float32.
    """
    key = getattr(torch._C.DispatchKey, "Autocast" + torch._C._dispatch_key_for_device(device))
    operator = getattr(torch.ops.fusedmdn, name)

    def run(_: Any, *given: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        cast = multiplied(lambda v: v if v.dtype == torch.float64 else v.to(dtype), *given)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return operator(*cast)

    return run


Cast = Callable[[Tensor], Tensor]


def _first(count: int) -> Callable[..., list[Any]]:
    """The first arguments of an operator."""
    return lambda cast, *given: [*map(cast, given[:count]), *given[count:]]


def _network(cast: Cast, x: Tensor, target: Tensor, weights: list[Tensor], h0: Tensor, *rest: Any) -> list[Any]:
    """What lstm_mdn_nll multiplies: x, h0 and all weights but the peepholes; a layer's biases summed before."""
    each, weights = per_layer(rest[6]), list(weights)
    for k in range(0, len(weights) - 2, each):
        weights[k + 2 : k + 4] = weights[k + 2] + weights[k + 3], torch.zeros_like(weights[k + 3])
    peepholes = range(4, len(weights) - 2, each) if rest[6] else ()
    return [cast(x), target, [w if k in peepholes else cast(w) for k, w in enumerate(weights)], cast(h0), *rest]


_autocast_rules = torch.library.Library("fusedmdn", "FRAGMENT")  # the rules live as long as this object
for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    for _name, _multiplied in (("lstm", _first(3)), ("lstm_layer", _first(5)), ("lstm_mdn_nll", _network)):
        _autocast_rules.impl(_name, _autocast(_name, _multiplied, _device), _key, with_keyset=True)
