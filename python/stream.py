"""The random stream: sequence i, step t is one block of Philox4x32-10, on every machine the same (Salmon et al. 2011).

Key = seed; counter = (sequence index low, high, step, 0). The C++ filler and the PyTorch reference here give the same
uniforms bit for bit; normals, which take a logarithm and a cosine, agree to rounding.
"""

import math
import operator
from typing import SupportsIndex

import torch
from torch import Tensor

from . import _cpu
from ._backend import kernel, register

STEP_LIMIT = 1 << 32


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Philox4x32-10 of a counter and a key of 32-bit words in int64, broadcast together: (..., 4) words."""
    low = 0xFFFFFFFF
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # 64-bit products, wrapped into int64
        c0, c1, c2, c3 = ((p1 >> 32) & low) ^ c1 ^ k0, p1 & low, ((p0 >> 32) & low) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def block(seed: Tensor, index: Tensor, step: Tensor) -> Tensor:
    """The words of a sequence's step, (..., 4) int64; seed and index are read as two's complement."""
    low = 0xFFFFFFFF
    counter = index & low, (index >> 32) & low, step, torch.zeros_like(step)
    return philox4x32(counter, (seed & low, (seed >> 32) & low))


def uniform(words: Tensor) -> Tensor:
    """((word >> 9) + 1/2) 2^-23: float32, exact, never 0 or 1."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def box_muller(u2: Tensor, u3: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals from two uniforms."""
    radius, angle = torch.sqrt(-2 * torch.log(u2)), 2 * math.pi * u3
    return radius * torch.cos(angle), radius * torch.sin(angle)


def uniforms(
    seed: SupportsIndex, first_index: SupportsIndex, count: int, steps: int, first_step: Tensor | None = None
) -> Tensor:
    """The four uniforms of every block, float32 (count, steps, 4), of `count` sequences from first_index on.

    first_step (count) int64 is each sequence's first step, zero by default. seed and first_index are any integers of
    64 bits, signed or not. Raises ValueError where a count or step is out of range.
    """
    return _fill(seed, first_index, count, steps, first_step, normals=False)


def normals(
    seed: SupportsIndex, first_index: SupportsIndex, count: int, steps: int, first_step: Tensor | None = None
) -> Tensor:
    """The two standard normals of every block (words 2 and 3), float32 (count, steps, 2); arguments as `uniforms`."""
    return _fill(seed, first_index, count, steps, first_step, normals=True)


def _fill(
    seed: SupportsIndex, first_index: SupportsIndex, count: int, steps: int, first_step: Tensor | None, normals: bool
) -> Tensor:
    seed, first_index = as_64_bits("seed", seed), as_64_bits("first_index", first_index)
    if count < 0 or not 0 <= steps <= STEP_LIMIT:
        raise ValueError(f"count must be >= 0 and steps in [0, 2^32], got count={count}, steps={steps}")
    if first_step is not None:
        first_step = first_step.to("cpu", torch.int64).contiguous()
        if first_step.shape != (count,):
            raise ValueError(f"first_step must have shape ({count},), got {tuple(first_step.shape)}")
        if count and (int(first_step.min()) < 0 or int(first_step.max()) > STEP_LIMIT - steps):
            raise ValueError(f"steps must stay in [0, 2^32), got first_step up to {int(first_step.max())} and {steps=}")
    return kernel("philox_fill", "cpu")(seed, first_index, count, first_step, steps, normals)


@register("philox_fill", "reference")
def philox_fill(
    seed: int, first_index: int, count: int, first_step: Tensor | None, steps: int, normals: bool
) -> Tensor:
    """What the C++ filler computes, in PyTorch."""
    index = torch.arange(count, device="cpu") + first_index
    start = torch.zeros(count, dtype=torch.int64, device="cpu") if first_step is None else first_step
    step = start[:, None] + torch.arange(steps, device="cpu")
    u = uniform(block(torch.tensor(seed, device="cpu"), index[:, None], step))
    return torch.stack(box_muller(u[..., 2], u[..., 3]), dim=-1) if normals else u


def as_64_bits(name: str, value: SupportsIndex) -> int:
    """Any integer of 64 bits, signed or not, as the int64 with the same bits.

    Raises ValueError if it is larger, TypeError if it is no integer; both name it.
    """
    try:
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not -(1 << 63) <= integer < 1 << 64:
        raise ValueError(f"{name} must fit in 64 bits, got {integer}")
    return (integer + (1 << 63)) % (1 << 64) - (1 << 63)


@register("philox_fill", "cpu")
def _philox_fill_on_cpu(
    seed: int, first_index: int, count: int, first_step: Tensor | None, steps: int, normals: bool
) -> Tensor:
    """kernels/cpu/philox.cpp; arguments as `uniforms`, already checked there."""
    out = torch.empty(count, steps, 2 if normals else 4, dtype=torch.float32, device="cpu")
    lib = _cpu.library()
    assert lib is not None
    start = None if first_step is None else first_step.data_ptr()
    mask = (1 << 64) - 1
    code = lib.fusedmdn_philox_fill(seed & mask, first_index & mask, count, start, steps, int(normals), out.data_ptr())
    if code:
        raise ValueError(f"philox_fill refused {count=}, {steps=}, {first_step=}")
    return out
