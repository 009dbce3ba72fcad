"""How large every part is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Of sampling.

    Attributes:
        elements: of `layer.ELEMENTS`.
        models: of `bench.models`, all timed.
        units: of their layers; None for their own.
        batches: so many sequences, of so many steps, in one timed call.
        loop_steps: the same of the loop over nn.LSTM, whose steps are all alike.
        repeats: of every timing.
        checked: steps whose values are compared with the reference's; a graph of the graph plan is replayed twice.
        promised: sequences and steps of all that must be the same bits; two groups of the resident plan's programs,
            where the GPU has room for them, one of which takes two tiles in turn.
        runs: of one call, all to be bitwise equal, by the network (`network.Network`) that keeps all promises.
        real: sequences and steps at most of the shipped weights.
    """

    elements: tuple[str, ...] = ("bfloat16", "float32")
    models: tuple[str, ...] = ("A", "B", "C", "D")
    units: int | None = None
    batches: tuple[tuple[int, int], ...] = ((1, 512), (16, 512), (64, 512), (512, 256), (8192, 64))
    loop_steps: int = 32
    repeats: int = 12
    checked: int = 40
    promised: tuple[int, int] = (40, 12)
    runs: tuple[tuple[str, int], ...] = (("B", 1000), ("ragged", 100))
    real: tuple[int, int] = (256, 300)


@dataclass(frozen=True)
class Training:
    """Of training: as many elements, steps, batches, repeats and runs as of a layer.

    Attributes:
        models: of `bench.models`, all timed: nn.LSTM runs A and C whole, B layer by layer.
        promised: those that keep all promises; C because its weights fit on chip in float32 too.
        units: of their layers; None for their own.
    """

    models: tuple[str, ...] = ("A", "B", "C")
    promised: tuple[str, ...] = ("B", "C")
    units: int | None = None


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
        training: what is its own.
        sampling: all of it.
        without: contenders with these words in their names are left out.
    """

    elements: tuple[str, ...] = ("bfloat16", "float32", "float32, TF32 allowed")
    hidden: tuple[int, ...] = (400, 512, 1024)
    batches: tuple[int, ...] = (16, 64, 256)
    steps: int = 200
    repeats: int = 30
    runs: int = 1000
    shapes: tuple[tuple[int, int], ...] = ((1, 1), (1, 16), (16, 1), (5, 3), (16, 32), (7, 70), (200, 64))
    training: Training = Training()
    sampling: Sampling = Sampling()
    without: tuple[str, ...] = ()
