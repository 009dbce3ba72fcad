"""`StrokeBatch`: what sampling gives."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .ops import GenerateState
from .strokes import Scale, Strokes


class StrokeBatch:
    """What `FusedLSTMMDN.generate` gives: sequences in the model's units, and `Strokes` by index.

    Attributes:
        points: (n, max_steps, 3 or 5) rows; zero after a sequence's end row. Where `to` said, else on the model's
            device.
        lengths: (n) int64, points drawn; a categorical end row is not counted. Where the points are.
        state: `GenerateState` to go on from, on the model's device.
        scale: what turns the rows back into raw units.
    """

    def __init__(self, points: Tensor, lengths: Tensor, state: GenerateState, scale: Scale) -> None:
        self.points, self.lengths, self.state, self.scale = points, lengths, state, scale

    def __len__(self) -> int:
        """Number of sequences."""
        return self.points.shape[0]

    def __getitem__(self, i: int) -> Strokes:
        """Sequence i in raw units."""
        return Strokes.from_rows(self.points[i, : int(self.lengths[i])].cpu().numpy(), self.scale)

    def __iter__(self) -> Iterator[Strokes]:
        """The sequences in raw units."""
        points, lengths = self.points.cpu().numpy(), self.lengths.tolist()
        return (Strokes.from_rows(points[i, :length], self.scale) for i, length in enumerate(lengths))
