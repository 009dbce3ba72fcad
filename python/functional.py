"""The operators as functions: arguments checked, state and options given defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend, _library, layout, sizes
from .checks import (
    PEN_LOGITS,
    ROW,
    check_clip,
    check_lengths,
    check_options,
    check_weights,
    expect_shape,
    packed_steps,
)
from .launch import capturing

ALONE = 32_767  # elements at most that an operation of PyTorch takes one thread for: at::internal::GRAIN_SIZE - 1


class GenerateState(NamedTuple):
    """All that `generate` needs to go on as if it had never stopped.

    h, c (L, B, H); row (B, I), the last row drawn; drawn (B) int64, rows drawn so far; done (B) bool; seed and
    first_index, int64 scalars.
    """

    h: Tensor
    c: Tensor
    row: Tensor
    drawn: Tensor
    done: Tensor
    seed: Tensor
    first_index: Tensor

    def to(self, device: torch.device | str) -> GenerateState:
        """The same on another device."""
        return GenerateState(*(v.to(device) for v in self))


torch.serialization.add_safe_globals([GenerateState])  # torch.save and torch.load keep it


def lstm(
    xw: Tensor,
    weight_hh: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    *,
    peephole: Tensor | None = None,
    lengths: Tensor | None = None,
    clip: float | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The LSTM recurrence over hoisted input projections (Graves 2013, equations 7-11; gates in order i, f, g, o).

    Args:
        xw: (T, B, 4H), the input's projection with both biases added; or packed as in a PackedSequence, (sum of
            lengths, 4H): step by step, longest sequence first. h is then packed too.
        weight_hh: (4H, H), of the dtype of xw.
        state: h0 and c0, (B, H) each; zero by default.
        peephole: (3, H), the diagonal weights by which i, f and o see the cell state.
        lengths: (B) integers in [0, T]; steps from there on are not read, and the state stays as it was.
        clip: bound of the pre-activations' gradient at every step of the backward pass (Graves, section 2.1).

    Returns:
        h (T, B, H), zero where t >= length, and (h_T, c_T), (B, H) each, at every sequence's last step. c_T is float32
        at least.

    Raises:
        ValueError: a shape, dtype or length that does not fit.
    """
    if xw.dim() not in (2, 3) or xw.shape[-1] % 4:
        raise ValueError(f"xw: expected shape (T, B, 4H), or (rows, 4H) packed, got {tuple(xw.shape)}")
    h0, c0, lengths = _recurrence("xw", xw, weight_hh, state, peephole, lengths, clip)
    given = (xw, weight_hh, h0, c0, peephole)
    save = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in given)
    h, h_T, c_T, _, _ = _library.lstm(xw, weight_hh, h0, c0, peephole, lengths, clip, save)
    return h, (h_T, c_T)


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    bias: Tensor,
    weight_hh: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    *,
    peephole: Tensor | None = None,
    lengths: Tensor | None = None,
    clip: float | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`lstm` with its input projection, for training in less memory: backward computes the gates again.

    Kept for backward are x, h and the float32 cell state, 4H bytes a token; not the projection, nor the gates, 4H
    elements a token. The price is one product of all h with weight_hh.

    Args:
        x: (T, B, I), or packed (sum of lengths, I). Steps from lengths on may hold anything, NaN included.
        weight_ih: (4H, I).
        bias: (4H), the sum of both biases.
        weight_hh: (4H, H); all of the dtype of x.
        state: h0 and c0, (B, H) each; zero by default.
        peephole: as in `lstm`.
        lengths: as in `lstm`.
        clip: as in `lstm`.

    Returns:
        As `lstm`.

    Raises:
        ValueError: a shape, dtype or length that does not fit.
    """
    if x.dim() not in (2, 3):
        raise ValueError(f"x: expected shape (T, B, I), or (rows, I) packed, got {tuple(x.shape)}")
    h0, c0, lengths = _recurrence("x", x, weight_hh, state, peephole, lengths, clip)
    expect_shape("weight_ih", weight_ih, len(weight_hh), x.shape[-1])
    expect_shape("bias", bias, len(weight_hh))
    if lengths is not None and x.dim() == 3:
        x = torch.where(layout.alive(x.shape[0], lengths), x, 0)
    h, h_T, c_T, _ = _library.lstm_layer(x, weight_ih, bias, weight_hh, h0, c0, peephole, lengths, clip)
    return h, (h_T, c_T)


def _recurrence(
    name: str,
    rows: Tensor,
    weight_hh: Tensor,
    state: tuple[Tensor, Tensor] | None,
    peephole: Tensor | None,
    lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """h0, c0 and lengths of a recurrence over `rows`; raises ValueError for what does not fit them."""
    H = rows.shape[-1] // 4 if name == "xw" else weight_hh.shape[-1]
    expect_shape("weight_hh", weight_hh, 4 * H, H)
    if rows.dim() == 3:
        B, lengths = rows.shape[1], check_lengths(lengths, rows.shape[0], rows.shape[1])
    else:
        lengths, _ = packed_steps(lengths, len(rows))
        B = len(lengths)
    if state is None:
        h0, c0 = rows.new_zeros(B, H), rows.new_zeros(B, H, dtype=layout.accumulate(rows.dtype))
    else:
        h0, c0 = state
    expect_shape("h0", h0, B, H)
    expect_shape("c0", c0, B, H)
    for its_name, value in (("weight_hh", weight_hh), ("h0", h0)):
        if value.dtype != rows.dtype and not _autocast_unifies(value, rows):
            raise ValueError(f"{its_name}: expected the dtype of {name}, {rows.dtype}, got {value.dtype}")
    if peephole is not None:
        expect_shape("peephole", peephole, 3, H)
    check_clip(clip)
    return h0, c0, lengths


def mdn_nll(
    raw: Tensor,
    target: Tensor,
    lengths: Tensor | None = None,
    *,
    num_mixtures: int,
    pen: str = "bernoulli",
    means: str = "linear",
    clip: float | None = None,
) -> Tensor:
    """Negative log-likelihood of pen strokes under a mixture density network's raw output (Graves 2013, 15-26).

    Args:
        raw: (T, B, P + 6M): pen logits P, then blocks of M: pi, mu_x, mu_y, log_sigma_x, log_sigma_y, rho.
        target: (T, B, 3) = (dx, dy, eos) for pen="bernoulli" (P = 1), (T, B, 5) = (dx, dy, draw, lift, end) for
            pen="categorical" (P = 3), where an end row's offsets do not count.
        lengths: (B) integers in [0, T].
        num_mixtures: M.
        pen: "bernoulli" or "categorical".
        means: "linear", or "sigmoid" for means mapped into (0, 1).
        clip: bound of the gradient of raw (Graves, section 4.2).

    Returns:
        Nats, (T, B): float64 for float64, else float32; zero where t >= length. A density exceeds 1 where the data is
        predictable, so the values may be negative.

    Raises:
        ValueError: a shape, option or length that does not fit.
    """
    check_options(pen, means, num_mixtures)
    if raw.dim() != 3:
        raise ValueError(f"raw: expected shape (T, B, {PEN_LOGITS[pen] + 6 * num_mixtures}), got {tuple(raw.shape)}")
    T, B = raw.shape[:2]
    expect_shape("raw", raw, T, B, PEN_LOGITS[pen] + 6 * num_mixtures)
    expect_shape("target", target, T, B, ROW[pen])
    lengths = check_lengths(lengths, T, B)
    check_clip(clip)
    return _library.mdn_nll(raw, target, lengths, pen, num_mixtures, means, clip)


def lstm_mdn_nll(
    x: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    state: tuple[Tensor, Tensor] | None = None,
    *,
    num_mixtures: int,
    pen: str = "bernoulli",
    means: str = "linear",
    skip: bool = False,
    peephole: bool = False,
    lengths: Tensor | None = None,
    clip_gates: float | None = None,
    clip_output: float | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loss of a whole network: LSTM layers, head and `mdn_nll` (Graves 2013, equations 1-26).

    Without an array of (T, B, M) beyond the head's output, and on a GPU, where the weights fit on chip, in one launch
    each way.

    Args:
        x: (T, B, I), the inputs; or packed as in a PackedSequence, (sum of lengths, I): step by step, longest sequence
            first. target and the result are then packed too. Steps from lengths on may hold anything, NaN included.
        target: (T, B, 3 or 5), the row that follows each input, as in `mdn_nll`; of any real dtype.
        weights: per layer weight_ih (4H, ·), weight_hh (4H, H), bias_ih, bias_hh (4H) and, with `peephole`, (3, H);
            then the head's weight (P + 6M, ·) and bias. All but the peepholes of the dtype of x.
        state: h0 and c0, (L, B, H) each, h0 of the dtype of x; zero by default.
        num_mixtures: M.
        pen: "bernoulli" or "categorical".
        means: "linear", or "sigmoid" for means mapped into (0, 1).
        skip: the input feeds every layer, and every layer feeds the head: weight_ih is (4H, I + H) above the first
            layer, for [x ; h below], and the head's weight (P + 6M, L H).
        peephole: the layers have peepholes.
        lengths: (B) integers in [0, T].
        clip_gates: bound of the pre-activations' gradient at every step of the backward pass (Graves, section 2.1).
        clip_output: bound of the gradient of the head's output (Graves, section 4.2).

    Returns:
        Nats, (T, B): float64 for float64, else float32; zero where t >= length. And (h_T, c_T), (L, B, H) each, at
        every sequence's last step; c_T is float32 at least.

    Raises:
        ValueError: a shape, dtype, device, option or length that does not fit.
    """
    check_options(pen, means, num_mixtures)
    check_clip(clip_gates, "clip_gates")
    check_clip(clip_output, "clip_output")
    if x.dim() not in (2, 3):
        raise ValueError(f"x: expected shape (T, B, I), or (rows, I) packed, got {tuple(x.shape)}")
    expect_shape("target", target, *x.shape[:-1], ROW[pen])
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point, got {tuple(x.shape)} of {x.dtype}")
    if not target.is_floating_point():
        target = target.to(layout.accumulate(x.dtype))
    weights, (L, odd) = list(weights), divmod(len(weights) - 2, layout.per_layer(peephole))
    if L < 1 or odd:
        raise ValueError(f"weights: expected {layout.per_layer(peephole)} for each layer and 2, got {len(weights)}")
    if x.dim() == 3:
        B, lengths = x.shape[1], check_lengths(lengths, x.shape[0], x.shape[1])
    else:
        lengths, _ = packed_steps(lengths, len(x))
        B = len(lengths)
    H = weights[1].shape[-1]
    if state is None:
        h0, c0 = x.new_zeros(L, B, H), x.new_zeros(L, B, H, dtype=layout.accumulate(x.dtype))
    else:
        h0, c0 = state
    expect_shape("h0", h0, L, B, H)
    expect_shape("c0", c0, L, B, H)

    def fit(value: Tensor, like: Tensor) -> bool:
        return value.dtype == like.dtype or _autocast_unifies(value, like)

    check_weights(weights, h0, x.shape[-1], num_mixtures, pen, skip, peephole, fit)
    for name, value in (("weights", weights[0]), ("h0", h0)):
        if not fit(value, x):
            raise ValueError(f"{name}: expected the dtype of x, {x.dtype}, got {value.dtype}")
    tensors = {"target": target, "weights": weights[0], "h0": h0, "c0": c0, "lengths": lengths}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: expected the device of x, {x.device}, got {tensor.device}")
    if lengths is not None and x.dim() == 3:
        x = torch.where(layout.alive(x.shape[0], lengths), x, 0)
    save = torch.is_grad_enabled() and any(v.requires_grad for v in (x, target, h0, c0, *weights))
    options = num_mixtures, pen, means, skip, peephole, clip_gates, clip_output
    nll, h_T, c_T, *_ = _library.lstm_mdn_nll(x, target, weights, h0, c0, lengths, *options, save)
    return nll, (h_T, c_T)


def generate(
    weights: Sequence[Tensor],
    state: GenerateState,
    steps: int,
    *,
    num_mixtures: int,
    pen: str = "bernoulli",
    means: str = "linear",
    skip: bool = False,
    peephole: bool = False,
    bias: float | Tensor | Sequence[float] = 0.0,
    temperature: float | Tensor | Sequence[float] = 1.0,
    prime: Tensor | None = None,
    prime_lengths: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, GenerateState]:
    """Sample strokes, each row fed back as the next input. Not differentiable.

    Sequence i, from first_index on, is a function of the weights, the starting state, the seed, i and the options.

    Args:
        weights: per layer weight_ih (4H, ·), weight_hh (4H, H), bias_ih, bias_hh (4H) and, with `peephole`, (3, H);
            then the head's weight (P + 6M, ·) and bias.
        state: where to start.
        steps: rows to draw, >= 0.
        num_mixtures: M.
        pen: "bernoulli", or "categorical", whose sequences end by themselves.
        means: "linear" or "sigmoid".
        skip: the input feeds every layer, and every layer feeds the head.
        peephole: the layers have peepholes.
        bias: b >= 0 of equations 61-62 for neater samples, a number or (B).
        temperature: tau > 0; component logits divided by it, deviations multiplied by it; a number or (B).
        prime: (B, Tp, I), rows read after the state's last row and before the first draw; not in the output.
        prime_lengths: (B) integers in [0, Tp].
        dtype: what the weights are rounded to, their own by default. Sums, cell state and points are float32 at least.

    Returns:
        points (steps, B, I), zero after a sequence's end; lengths (B), points drawn, the end row not counted; the state
        to go on from.

    Raises:
        ValueError: a shape or option that does not fit.
        RuntimeError: inside a CUDA graph's capture, a tensor lies elsewhere than on the GPU.
    """
    check_options(pen, means, num_mixtures)
    B = state.row.shape[0]
    sizes.check("steps", steps)
    if state.h.dim() != 3 or state.h.shape[1] != B:
        raise ValueError(f"state.h: expected shape (L, {B}, H), got {tuple(state.h.shape)}")
    check_weights(list(weights), state.h, ROW[pen], num_mixtures, pen, skip, peephole)
    expect_shape("state.row", state.row, B, ROW[pen])
    expect_shape("state.c", state.c, *state.h.shape)
    expect_shape("state.drawn", state.drawn, B)
    expect_shape("state.done", state.done, B)
    device = state.row.device
    b = per_sequence("bias", bias, B, device, 0.0, inclusive=True)
    tau = per_sequence("temperature", temperature, B, device, 0.0, inclusive=False)
    if prime is not None:
        prime = _on_device("prime", torch.as_tensor(prime), device)
        if prime_lengths is not None:
            prime_lengths = _on_device("prime_lengths", torch.as_tensor(prime_lengths), device)
        if prime.dim() != 3:
            raise ValueError(f"prime: expected shape ({B}, Tp, {ROW[pen]}), got {tuple(prime.shape)}")
        expect_shape("prime", prime, B, prime.shape[1], ROW[pen])
        prime_lengths = check_lengths(prime_lengths, prime.shape[1], B, "prime_lengths")
    elif prime_lengths is not None:
        raise ValueError(f"prime_lengths was given without prime: {prime_lengths}")
    if dtype not in (None, torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: expected float64, float32, bfloat16, float16 or None, got {dtype!r}")
    seed = torch.stack([_on_device(name, getattr(state, name), device) for name in ("seed", "first_index")])
    with torch.no_grad():
        points, lengths, h, c, row, drawn, done = _library.generate(
            [w if dtype is None else _rounded(w, dtype) for w in weights],
            *state[:5],
            seed,
            steps,
            b,
            tau,
            prime,
            prime_lengths,
            num_mixtures,
            pen,
            means,
            skip,
            peephole,
        )
    # clones: the caller may write another seed into the tensor for the next replay
    return points, lengths, GenerateState(h, c, row, drawn, done, state.seed.clone(), state.first_index.clone())


def runs_on_cpu_kernels(like: Tensor) -> bool:
    """Whether `lstm` runs on the C++ kernels here and now, and not in a graph: then values may be looked at."""
    if torch.compiler.is_compiling() or like.device.type != "cpu":
        return False
    return _backend.in_use("lstm", "cpu", like.dtype) == "cpu"


def _on_device(name: str, value: Tensor, device: torch.device) -> Tensor:
    """The value there; inside a CUDA graph's capture it must be there, so that a replay can be given another."""
    if value.device != device and capturing(device):
        raise RuntimeError(
            f"{name}: inside a CUDA graph's capture it must be a tensor on {device}, whose values every replay reads "
            f"anew; got one on {value.device}"
        )
    return value.to(device)


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in a dtype.

    On a CPU piece by piece, each too small for PyTorch to share it out: its threads spin for milliseconds after their
    work, on the cores that the sampler is about to need. 3 layers of 400 units, bfloat16, one sequence of 60 steps on
    two cores: 7 ms instead of 12.
    """
    if weight.dtype == dtype or weight.device.type != "cpu" or torch.compiler.is_compiling():
        return weight.to(dtype)
    if torch.get_num_threads() == 1:
        return weight.to(dtype)
    rounded, weight = weight.new_empty(weight.shape, dtype=dtype), weight.detach().contiguous()
    for into, part in zip(rounded.view(-1).split(ALONE), weight.view(-1).split(ALONE), strict=True):
        into.copy_(part)
    return rounded


def _autocast_unifies(a: Tensor, b: Tensor) -> bool:
    """Autocast is on and will give both its dtype."""
    device = b.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return False
    return torch.float64 not in (a.dtype, b.dtype)


def per_sequence(
    name: str, value: float | Tensor | Sequence[float], B: int, device: torch.device, low: float, *, inclusive: bool
) -> Tensor:
    """A number or (B) numbers as a float32 tensor; a GPU's values are not looked at, as in `check_lengths`.

    A number is written by the device itself, which a CUDA graph can capture.
    """
    tensor = torch.as_tensor(value, dtype=torch.float32, device=value.device if isinstance(value, Tensor) else "cpu")
    if tensor.dim():
        expect_shape(name, tensor, B)
    if tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        good = (tensor >= low) if inclusive else (tensor > low)
        if not bool((good & tensor.isfinite()).all()):
            raise ValueError(f"{name} must be finite and {'>=' if inclusive else '>'} {low:g}, got {value}")
    if isinstance(value, (int, float)):
        return torch.full((B,), value, dtype=torch.float32, device=device)
    return _on_device(name, tensor, device).expand(B).contiguous()
