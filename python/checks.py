"""What arguments may be, for every layer that checks them; an error names the argument, what it is and should be."""

from collections.abc import Callable

import torch
from torch import Tensor

PEN_LOGITS = {"bernoulli": 1, "categorical": 3}
ROW = {"bernoulli": 3, "categorical": 5}  # columns of a stroke's row
MEANS = ("linear", "sigmoid")


def expect_shape(name: str, tensor: Tensor, *shape: int) -> None:
    """Raise ValueError unless the tensor has this shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def check_options(pen: str, means: str, num_mixtures: int) -> None:
    """Raise ValueError for an unknown pen model or kind of means, or M < 1."""
    if pen not in PEN_LOGITS:
        raise ValueError(f"pen must be 'bernoulli' or 'categorical', got {pen!r}")
    if means not in MEANS:
        raise ValueError(f"means must be 'linear' or 'sigmoid', got {means!r}")
    if num_mixtures < 1:
        raise ValueError(f"num_mixtures must be >= 1, got {num_mixtures}")


def check_clip(clip: float | None, name: str = "clip") -> None:
    """Raise ValueError unless the bound is positive, or None."""
    if clip is not None and not clip > 0:
        raise ValueError(f"{name} must be > 0 or None, got {clip}")


def same_dtype(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors may be multiplied as they are."""
    return a.dtype == b.dtype


def check_weights(
    weights: list[Tensor],
    state: Tensor,
    inputs: int,
    num_mixtures: int,
    pen: str,
    skip: bool,
    peephole: bool,
    fit: Callable[[Tensor, Tensor], bool] = same_dtype,
) -> None:
    """Raise ValueError unless these are a network's weights for a state (L, B, H) and so many inputs.

    They must lie on one device, and all but the peepholes must `fit` the first.
    """
    if state.dim() != 3 or not state.shape[0] or not state.shape[2]:
        raise ValueError(f"h: expected shape (L, B, H), L and H at least 1, got {tuple(state.shape)}")
    L, _, H = state.shape
    expected: list[tuple[str, tuple[int, ...]]] = []
    for n in range(L):
        below = inputs if n == 0 else H + inputs * skip
        expected += [("weight_ih", (4 * H, below)), ("weight_hh", (4 * H, H)), ("bias_ih", (4 * H,))]
        expected += [("bias_hh", (4 * H,))] + [("peephole", (3, H))] * peephole
    D = PEN_LOGITS[pen] + 6 * num_mixtures
    expected += [("head weight", (D, H * (L if skip else 1))), ("head bias", (D,))]
    if len(weights) != len(expected):
        raise ValueError(f"expected {len(expected)} weights for {L} layers, got {len(weights)}")
    like = weights[0]
    for k, (weight, (name, shape)) in enumerate(zip(weights, expected, strict=True)):
        expect_shape(f"weights[{k}] ({name})", weight, *shape)
        if weight.device != like.device or not (name == "peephole" or fit(weight, like)):
            raise ValueError(
                f"weights[{k}] ({name}): expected {like.dtype} on {like.device}, got {weight.dtype} on {weight.device}"
            )


def check_lengths(lengths: Tensor | None, T: int, B: int, name: str = "lengths") -> Tensor | None:
    """Lengths as int64, or None; raises ValueError for a wrong shape or dtype or, on the CPU, a value out of [0, T]."""
    if lengths is None:
        return None
    expect_shape(name, lengths, B)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers, got {lengths.dtype}")
    # A look at the values would stop a graph's capture, and make a GPU wait.
    if B and lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > T:
            raise ValueError(f"{name}: expected values in [0, {T}], got {low} to {high}")
    return lengths.to(torch.int64)


def packed_steps(lengths: Tensor | None, rows: int) -> tuple[Tensor, int]:
    """Lengths as int64, and T, of (rows, ·) packed as in a PackedSequence: step by step, longest sequence first.

    Raises ValueError unless the lengths are sorted and add up to the rows.
    """
    if lengths is None:
        raise ValueError(f"lengths: {rows} packed rows need the lengths of their sequences, got None")
    lengths = check_lengths(lengths, rows, len(lengths))
    assert lengths is not None
    if int(lengths.sum()) != rows or bool((lengths[1:] > lengths[:-1]).any()):
        raise ValueError(f"lengths: expected {rows} packed rows, longest sequence first, got {lengths.tolist()}")
    return lengths, int(lengths[0]) if len(lengths) else 0
