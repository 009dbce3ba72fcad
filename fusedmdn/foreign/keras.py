"""Keras: a stack of LSTM layers, and one Dense layer that gives the mixture.

Kernels are (I, 4H) with gates i, f, c, o; the bias has unit_forget_bias in it, and nothing is added. What a file says
beside the weights is checked: an option that would change the mathematics is refused by name.

The Dense layer's outputs: eos logit, M of pi, then mu_x, mu_y, log sigma_x, log sigma_y, atanh rho of the first
component, of the second, ….
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..module import FusedLSTMMDN
from ..quoting import shown
from . import common, keras_files
from .common import Array, ForeignFileError
from .keras_files import DENSE_WEIGHTS, LSTM_WEIGHTS, SILENT, Part

ROW = 3  # dx, dy, eos
OPTIONS = {"activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "go_backwards": False}


def lstm(path: str | Path) -> nn.LSTM:
    """The stack of LSTM layers alone, float32, whatever follows it in the model.

    Raises:
        ForeignFileError: the file cannot be read, or its layers are not such a stack; the message says which is not.
        ModuleNotFoundError: h5py is missing (the extra [convert] brings it).
    """
    path = Path(path)
    stack, _ = _split(path, keras_files.parts(path))
    return _stack(path, stack)


def read(path: str | Path, means: str = "sigmoid") -> FusedLSTMMDN:
    """A stack of LSTM layers with one Dense layer, whose rows are (dx, dy, eos); no file says what `means` is.

    Raises:
        ForeignFileError: as `lstm`; or what follows the stack is not one Dense layer of 1 + 6M linear outputs.
        ModuleNotFoundError: h5py is missing (the extra [convert] brings it).
    """
    path = Path(path)
    parts = keras_files.parts(path)
    stack, rest = _split(path, parts)
    module = _stack(path, stack)
    rest = [part for part in rest if part.kind not in SILENT]
    if len(rest) != 1 or rest[0].kind != "Dense":
        found = ", ".join(f"{part.name} ({part.kind})" for part in rest) or "nothing"
        raise ForeignFileError(
            f"{path}: expected one Dense layer after the LSTMs, got {shown(found)}; "
            f"fusedmdn.foreign.keras.lstm(path) gives the {len(stack)} LSTM layers alone"
        )
    _check_order(path, parts)
    if rest[0].config is not None:
        _expect(path, rest[0], {"activation": "linear", "use_bias": True})
    kernel, bias = _checked(path, rest[0], DENSE_WEIGHTS)
    M = common.mixtures(path, len(bias), 1)
    if kernel.shape != (module.hidden_size, len(bias)) or module.input_size != ROW:
        raise ForeignFileError(
            f"{path}: expected {ROW} inputs (dx, dy, eos) and a Dense kernel {(module.hidden_size, len(bias))}, "
            f"got {module.input_size} and {kernel.shape}"
        )
    columns = [*range(1 + M), *(1 + M + 5 * m + k for k in range(5) for m in range(M))]
    return FusedLSTMMDN.from_modules(module, common.linear(kernel[:, columns], bias[columns]), means=means)


def _stack(path: Path, parts: list[Part]) -> nn.LSTM:
    layers: list[common.Layer] = []
    for n, part in enumerate(parts):
        if part.config is not None:
            inner = {} if n == len(parts) - 1 else {"return_sequences": True}
            _expect(path, part, OPTIONS | inner)
        kernel, recurrent, bias = _checked(path, part, LSTM_WEIGHTS)
        H = len(recurrent)
        below = len(layers[-1].recurrent) if layers else len(kernel)
        if len(bias) == 8 * H:
            raise ForeignFileError(f"{path}: {part.name}: two biases: CuDNNLSTM's weights are not read, LSTM's are")
        shapes = [v.shape for v in (kernel, recurrent, bias)]
        if shapes != [(below, 4 * H), (H, 4 * H), (4 * H,)] or not H or not below:
            raise ForeignFileError(
                f"{path}: {part.name}: expected weights ({below}, 4H), (H, 4H), (4H) of an LSTM, got {shapes}"
            )
        if layers and len(layers[0].recurrent) != H:
            raise ForeignFileError(
                f"{path}: {part.name}: {H} units above {len(layers[0].recurrent)}; all layers must be equally large"
            )
        layers.append(common.Layer(kernel, recurrent, bias))
    if parts[0].config is None:
        warnings.warn(
            f"{path}: holds weights alone; that it is a plain stack, with tanh and sigmoid, is taken for granted",
            stacklevel=4,
        )
    return common.lstm(layers, "ifgo", forget=0.0)


def _checked(path: Path, part: Part, names: tuple[str, ...]) -> list[Array]:
    """As many weights as they have names, each finite."""
    if len(part.weights) != len(names):
        raise ForeignFileError(f"{path}: {part.name}: expected {', '.join(names)}, got {len(part.weights)} weights")
    for name, weight in zip(names, part.weights, strict=True):
        with np.errstate(over="ignore"):
            if not np.isfinite(weight.astype(np.float32)).all():
                raise ForeignFileError(f"{path}: {part.name}: {name} is not finite in float32")
        if weight.ndim != (1 if name == "bias" else 2):
            raise ForeignFileError(f"{path}: {part.name}: {name} has shape {weight.shape}")
    return part.weights


def _expect(path: Path, part: Part, options: dict[str, Any]) -> None:
    for option, expected in options.items():
        value = (part.config or {}).get(option)
        if value != expected or type(value) is not type(expected):
            raise ForeignFileError(
                f"{path}: {part.name} ({part.kind}): {option} is {shown(value)}; only {expected!r} can be converted"
            )


def _split(path: Path, parts: list[Part]) -> tuple[list[Part], list[Part]]:
    """The LSTM layers, found to stand on the input one above the other, and what follows them."""
    places = [k for k, part in enumerate(parts) if part.kind == "LSTM"]
    if not places:
        found = ", ".join(f"{part.name} ({part.kind})" for part in parts) or "none"
        raise ForeignFileError(f"{path}: has no LSTM layer; layers: {shown(found)}")
    for part in parts[: places[-1]]:
        if part.kind not in ("LSTM", *SILENT):
            raise ForeignFileError(
                f"{path}: {part.name}: {part.kind} before or between LSTM layers cannot be converted"
            )
    _check_order(path, parts[: places[-1] + 1])
    return [parts[k] for k in places], parts[places[-1] + 1 :]


def _check_order(path: Path, parts: list[Part]) -> None:
    """Each layer has the one before it as its only input, where the file says what it has."""
    for before, part in zip([None, *parts], parts, strict=False):
        expected = [] if before is None else [before.name]
        if part.below is not None and part.below != expected:
            raise ForeignFileError(
                f"{path}: {part.name} has the inputs {shown(part.below)}, expected {shown(expected)}: "
                "only a plain stack of layers can be converted"
            )
