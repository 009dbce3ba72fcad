"""What a training run goes on from: RUN/last, found whole and in accord with itself before anything is done with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from . import kinds
from .checkpoint import CONFIG, CheckpointError, load_model, load_training
from .module import FusedLSTMMDN
from .ops.checks import ROW

FIELDS = {"adam": ("exp_avg", "exp_avg_sq", "step"), "graves": ("mean", "square", "update")}  # of each parameter
Options = TypeVar("Options")


class Progress(NamedTuple):
    """What config.json says of a run: its options, the SHA-256 of its data's parts, how far it has come."""

    options: dict
    data: dict
    step: int
    best: float | None
    since_best: int


@dataclass(frozen=True)
class Last(Generic[Options]):
    """RUN/last: `state` is the optimiser's, by a parameter's place."""

    model: FusedLSTMMDN
    options: Options
    state: dict[int, dict[str, Tensor]]
    progress: Progress


def last_of(run: Path, device: Any, options: Callable[..., Options]) -> Last[Options]:
    """Read RUN/last; `options` makes the run's options of what was saved.

    Raises:
        CheckpointError: it is missing or damaged, or its parts do not belong together; the message names the file, and
            says whether RUN/best is intact.
    """
    try:
        model, tensors, values = load_training(run / "last", device)
        try:
            kinds.check(values, Progress)
            progress = Progress(**values)
            if progress.step < 0 or progress.since_best < 0:
                raise ValueError(f"step {progress.step}, {progress.since_best} validations since the best")
            kinds.check(progress.options, options)
            chosen = options(**progress.options)
            _check_described(model, chosen)
            state = _state(model, tensors, FIELDS[progress.options["optimizer"]], progress.step)
            if bool(state) != (progress.step > 0):
                raise ValueError(f"the optimiser has a state of {len(state)} parameters after {progress.step} steps")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{run / 'last' / CONFIG}: does not describe its run: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_left(run)}") from error
    return Last(model, chosen, state, progress)


def best_is_intact(run: Path) -> bool:
    """Whether RUN/best loads."""
    try:
        load_model(run / "best")
    except CheckpointError:
        return False
    return True


def _left(run: Path) -> str:
    if best_is_intact(run):
        return f"this run cannot go on, but its best weights are intact: {run / 'best'}"
    return "there are no best weights to take instead: train anew"


def _check_described(model: FusedLSTMMDN, options: Any) -> None:
    """See that the model is what the options make; what they do not say, it has by default."""
    defaults = inspect.signature(FusedLSTMMDN).parameters
    for name, value in model.config().items():
        expected = ROW[model.pen] if name == "input_size" else getattr(options, name, defaults[name].default)
        if value != expected:
            raise ValueError(f"its model has {name} {value!r}, its options {expected!r}")


def _state(
    model: FusedLSTMMDN, tensors: dict[str, Tensor], fields: tuple[str, ...], steps: int
) -> dict[int, dict[str, Tensor]]:
    """The optimiser's: nothing, or every field of every parameter, of its shape and dtype."""
    state: dict[int, dict[str, Tensor]] = {}
    wanted = {f"{name}/{field}" for name, _ in model.named_parameters() for field in fields}
    if tensors and tensors.keys() != wanted:
        name = min(tensors.keys() ^ wanted)
        raise ValueError(f"its training state {'lacks' if name in wanted else 'has an unknown'} {name}")
    for place, (name, parameter) in enumerate(model.named_parameters() if tensors else ()):
        state[place] = {field: tensors[f"{name}/{field}"] for field in fields}
        for field, value in state[place].items():
            shape = () if field == "step" else parameter.shape
            if value.shape != shape or value.dtype != parameter.dtype:
                raise ValueError(
                    f"{name}/{field}: expected {tuple(shape)} of {parameter.dtype}, got {tuple(value.shape)} of "
                    f"{value.dtype}"
                )
            if field == "step" and not 1 <= value.item() <= steps:
                raise ValueError(f"{name}/{field}: expected at most {steps}, as many as were taken, got {value.item()}")
    return state
