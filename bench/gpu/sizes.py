"""How large every part is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """One run.

    Attributes:
        elements: what is stored and multiplied, of `layer.ELEMENTS`.
        hidden: sizes of the layer that is timed.
        batches: as many sequences each, of `steps` steps.
        steps: of everything that is timed or repeated.
        repeats: of every timing.
        runs: of one forward and backward pass, all to be bitwise equal.
        shapes: (T, B) that one compilation of a kernel must serve.
        without: contenders with these words in their names are left out.
    """

    elements: tuple[str, ...] = ("bfloat16", "float32", "float32, TF32 allowed")
    hidden: tuple[int, ...] = (400, 512, 1024)
    batches: tuple[int, ...] = (16, 64, 256)
    steps: int = 200
    repeats: int = 30
    runs: int = 1000
    shapes: tuple[tuple[int, int], ...] = ((1, 1), (1, 16), (16, 1), (5, 3), (16, 32), (7, 70), (200, 64))
    without: tuple[str, ...] = ()
