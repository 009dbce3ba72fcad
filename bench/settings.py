"""What a run measures: the command's options, and the sizes that follow from `--quick`."""

from __future__ import annotations

from dataclasses import dataclass

WORKS = ("sampling", "loss", "train", "limit")


@dataclass(frozen=True)
class Sizes:
    """How large every work is.

    Attributes:
        hidden: replaces every model's hidden size; None leaves it.
        steps: sampling steps of a call, by batch.
        loss: (T, B) of the loss alone.
        train: (T, B) of a training step.
        loss_calls: calls of the loss in one timing.
        check_steps: teacher-forced steps by which a sampler is checked.
        check_draws: rows drawn from one mixture, whose moments are checked.
    """

    hidden: int | None
    steps: dict[int, int]
    loss: tuple[int, int]
    train: tuple[int, int]
    loss_calls: int
    check_steps: int
    check_draws: int


FULL = Sizes(None, {1: 600, 8: 200, 64: 60, 512: 20}, (600, 32), (300, 32), 5, 16, 20_000)
QUICK = Sizes(16, {1: 6, 8: 4}, (40, 8), (12, 4), 1, 8, 5_000)


@dataclass(frozen=True)
class Settings:
    """One run: what is measured, how often, on how many threads."""

    works: tuple[str, ...]
    models: tuple[str, ...]
    models_train: tuple[str, ...]
    threads: int
    repeats: int
    repeats_train: int
    without: tuple[str, ...]
    sizes: Sizes
