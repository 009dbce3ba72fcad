"""Ragged batches without their padding, for kernels whose time grows with the rows they are given."""

from __future__ import annotations

from torch import Tensor

from .ops import reference


class Packing:
    """The live rows of (T, B, ·): step by step, sequences longest first, as in a PackedSequence.

    Attributes:
        lengths: (B), sorted.
        order: (B), the sequences in that order; back: (B), their places in it.
        rows: (sum of lengths), each packed row's place in T x B.
    """

    def __init__(self, lengths: Tensor, T: int) -> None:
        self.T, self.B = T, len(lengths)
        self.order = lengths.argsort(descending=True, stable=True)
        self.back = self.order.argsort()
        self.lengths = lengths[self.order]
        t, k = reference.alive(T, self.lengths)[..., 0].nonzero(as_tuple=True)
        self.rows = t * self.B + self.order[k]

    def pack(self, v: Tensor) -> Tensor:
        """(T, B, K) -> (sum of lengths, K)."""
        return v.flatten(0, 1).index_select(0, self.rows)

    def unpack(self, v: Tensor) -> Tensor:
        """(sum of lengths) -> (T, B), zero in masked steps."""
        return v.new_zeros(self.T * self.B).index_copy(0, self.rows, v).view(self.T, self.B)
