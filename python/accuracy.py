"""The accuracy that every kernel owes: as good as PyTorch at the same dtype, against float64 with the same inputs.

max |kernel - ref64| <= 2 max |reference - ref64| + 64 2^-24 max |ref64| + one rounding of the output's dtype.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Deviation(NamedTuple):
    """Of an output: its largest error against float64 (inf if not finite), what is allowed, and the largest value."""

    error: float
    allowed: float
    largest: float

    @property
    def excessive(self) -> bool:
        """The rule is broken."""
        return not (math.isfinite(self.error) and self.error <= self.allowed)

    @property
    def share(self) -> float:
        """The error as a share of what is allowed; above 1 the rule is broken."""
        if not self.excessive:
            return self.error / self.allowed if self.error else 0.0
        return self.error / self.allowed if self.allowed > 0 else math.inf


def deviation(got: Tensor, reference: Tensor, exact: Tensor) -> Deviation:
    """How far an output is from `exact`, the reference's in float64; `reference` is the reference's at its dtype.

    Raises ValueError if its shape is not that of `exact`, or its dtype not that of `reference`.
    """
    if got.shape != exact.shape:
        raise ValueError(f"shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
    if got.dtype != reference.dtype:
        raise ValueError(f"{got.dtype}, expected {reference.dtype}")
    if not got.numel():
        return Deviation(0.0, 0.0, 0.0)
    ulp = torch.finfo(got.dtype).eps / 2
    got, reference, exact = (v.detach().double() for v in (got, reference, exact))
    largest = exact.abs().max()
    allowed = 2 * (reference - exact).abs().max() + 64 * 2.0**-24 * largest + ulp * largest
    error = (got - exact).abs().max() if got.isfinite().all() else math.inf
    return Deviation(float(error), float(allowed), float(largest))
