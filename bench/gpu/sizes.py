"""How large every part is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Of sampling.

    Attributes:
        elements: of `precision.DTYPES`.
        units: of the layers; None for the models' own.
        checked: steps whose values are compared with the reference's; a graph of the graph plan is replayed twice.
        promised: sequences and steps of all that must be the same bits; two groups of the resident plan's programs,
            where the GPU has room for them, one of which takes two tiles in turn.
        runs: of one call, all to be bitwise equal, by the network (`network.Network`) that keeps all promises.
        real: sequences and steps at most of the shipped weights.
    """

    elements: tuple[str, ...] = ("bf16", "fp16", "float32")
    units: int | None = None
    checked: int = 40
    promised: tuple[int, int] = (40, 12)
    runs: tuple[tuple[str, int], ...] = (("B", 1000), ("ragged", 100))
    real: tuple[int, int] = (256, 300)


@dataclass(frozen=True)
class Training:
    """Of training: as many elements, steps, sequences and runs as of a layer.

    Attributes:
        promised: models that keep all promises; C because its weights fit on chip in float32 too.
        units: of their layers; None for their own.
    """

    promised: tuple[str, ...] = ("B", "C")
    units: int | None = None


@dataclass(frozen=True)
class Sizes:
    """One run.

    Attributes:
        elements: what is stored and multiplied, of `precision.DTYPES`.
        hidden: units of the layer.
        batch: sequences of everything that is repeated or captured, of `steps` steps.
        steps: of each.
        runs: of one forward and backward pass, all to be bitwise equal.
        shapes: (T, B) that one compilation of a kernel must serve.
        training: what is its own.
        sampling: all of it.
    """

    elements: tuple[str, ...] = ("bf16", "fp16", "float32", "tf32")
    hidden: int = 400
    batch: int = 64
    steps: int = 200
    runs: int = 1000
    shapes: tuple[tuple[int, int], ...] = ((1, 1), (1, 16), (16, 1), (5, 3), (16, 32), (7, 70), (200, 64))
    training: Training = Training()
    sampling: Sampling = Sampling()
