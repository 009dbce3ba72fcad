"""Checkpoints: a directory whose config.json names the safetensors files that belong to it, by their SHA-256.

The files are written first, under names made of their contents; replacing config.json is what makes them current, in
one step; what it no longer names is then removed. So a crash at any point leaves the old checkpoint or the new one.
config.json carries a SHA-256 of itself, and every file's is checked before anything is built. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from . import files, kinds, preparing, sealed
from .module import FusedLSTMMDN
from .strokes import Scale

FORMAT = "fusedmdn-1"
CONFIG = "config.json"
EMBEDDED = ("kanji",)
NOTHING: Mapping[str, float] = MappingProxyType({})
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another format; the message names the file."""


class TensorFile(NamedTuple):
    """What config.json says of a file of tensors: its name, SHA-256 and size."""

    file: str
    sha256: str
    bytes: int


def save_model(model: FusedLSTMMDN, directory: str | Path, training: Mapping[str, Tensor] | None = None,
               progress: Mapping[str, Any] | None = None, prepared: Mapping[str, float] = NOTHING) -> None:  # fmt: skip
    """Write a model and, for a run that will go on, what else its training needs (tensors, and JSON as `progress`).

    `prepared`: what its strokes went through first, arguments of `preparing.prepare`.

    Raises ValueError, what was there being intact, if the model was made with what cannot be read back: skip=1, say.
    """
    directory = Path(directory)
    kinds.check_saved(model.config(), FusedLSTMMDN.__init__)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    config: dict[str, Any] = {
        "format": FORMAT,
        "model": model.config(),
        "dtype": str(model.head.weight.dtype).removeprefix("torch."),
        "scale": {"shift": list(model.scale.shift), "std": list(model.scale.std)},
        "weights": _write_tensors(directory, "model", weights)._asdict(),
    }
    if prepared:
        config["prepared"] = dict(prepared)
    if training is not None:
        config["training"] = _write_tensors(directory, "training", dict(training))._asdict()
        config["progress"] = dict(progress or {})
    sealed.write(directory / CONFIG, config)

    named = {config[part]["file"] for part in ("weights", "training") if part in config}
    for file in [*directory.glob("model-*.safetensors"), *directory.glob("training-*.safetensors")]:
        if file.name not in named:
            file.unlink(missing_ok=True)
    files.sweep(directory)


def load_model(source: str | Path, device: Any = None) -> FusedLSTMMDN:
    """The model of a checkpoint directory, of a training run (its best), or of the embedded weights "kanji".

    Raises:
        CheckpointError: a file is missing, damaged or not of this format.
    """
    directory = locate(source)
    config, tensors = _read(directory, ("weights",))
    return _build(directory, config, tensors["weights"], device)


def preparation_of(source: str | Path) -> dict[str, float]:
    """What the strokes went through that a model was trained on, arguments of `preparing.prepare`; {} for nothing.

    Raises:
        CheckpointError: as `load_model`.
    """
    directory = locate(source)
    prepared = _read_config(directory).get("prepared", {})
    try:
        kinds.check(prepared, preparing.check_preparation)
        preparing.check_preparation(**prepared)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG}: prepared: {error}") from error
    return prepared


def load_training(source: str | Path, device: Any = None) -> tuple[FusedLSTMMDN, dict[str, Tensor], dict[str, Any]]:
    """The model, training tensors and progress that `save_model` wrote.

    Raises:
        CheckpointError: a file is missing, damaged or not of this format, or the checkpoint has no training state.
    """
    directory = Path(source)
    config, tensors = _read(directory, ("weights", "training"))
    if not isinstance(config.get("progress"), dict):
        raise CheckpointError(f"{directory / CONFIG}: has no progress")
    return _build(directory, config, tensors["weights"], device), tensors["training"], config["progress"]


def locate(source: str | Path) -> Path:
    """The directory that holds config.json: `source` itself, its best/ or last/, or an embedded model's."""
    path = Path(source)
    for candidate in (path, path / "best", path / "last"):
        if (candidate / CONFIG).is_file():
            return candidate
    if str(source) in EMBEDDED:
        return Path(str(resources.files("fusedmdn") / "assets" / str(source)))
    names = ", ".join(EMBEDDED)
    raise CheckpointError(
        f"{source}: no {CONFIG} there, in its best/ or its last/; nor is it an embedded model ({names})"
    )


def _write_tensors(directory: Path, kind: str, tensors: dict[str, Tensor]) -> TensorFile:
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    digest = hashlib.sha256(data).hexdigest()
    path = directory / f"{kind}-{digest[:16]}.safetensors"
    files.write(path, data)
    return TensorFile(path.name, digest, len(data))


def _read(directory: Path, parts: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """config.json and the tensors it names; read again if a writer replaced them in between."""
    config = _read_config(directory)
    while True:
        try:
            return config, {part: _read_tensors(directory, config, part) for part in parts}
        except FileNotFoundError as error:
            newer = _read_config(directory)
            if newer == config:
                raise CheckpointError(f"{error.filename}: {CONFIG} names it, but it is not there") from error
            config = newer


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        return sealed.read(path, FORMAT)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except sealed.SealError as error:
        raise CheckpointError(str(error)) from error


def _read_tensors(directory: Path, config: dict[str, Any], part: str) -> dict[str, Tensor]:
    if part not in config:
        raise CheckpointError(f"{directory / CONFIG}: has no {part} state")
    try:
        kinds.check(config[part], TensorFile)
        expected = TensorFile(**config[part])
        if not re.fullmatch(r"[a-z]+-[0-9a-f]{16}\.safetensors", expected.file):
            raise ValueError(f"{expected.file!r} is no name of a file of tensors")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG}: {part}: {error}") from error
    path = directory / expected.file
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            raise CheckpointError(f"{path}: damaged: {size} bytes, expected {expected.bytes}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected.sha256:
        raise CheckpointError(f"{path}: damaged: SHA-256 {digest}, expected {expected.sha256}")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def _build(directory: Path, config: dict[str, Any], weights: dict[str, Tensor], device: Any) -> FusedLSTMMDN:
    """The model, made without memory and given the weights, so that no size in config.json costs more than they do."""
    try:
        kinds.check(config["model"], FusedLSTMMDN.__init__)
        dtype = DTYPES[config["dtype"]]
        if config["model"].get("num_layers", 1) > len(weights):
            raise ValueError(f"{config['model']['num_layers']} layers, and {len(weights)} tensors")
        other = [name for name, weight in weights.items() if weight.dtype != dtype]
        if other:
            raise ValueError(f"{other[0]} is {weights[other[0]].dtype}, expected {dtype}")
        model = FusedLSTMMDN(**config["model"], device="meta", dtype=dtype)
        model.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
        model.scale = _scale(config["scale"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{directory / CONFIG}: does not describe its weights: {error}") from error
    return model.to(device).eval()


def _scale(values: dict[str, Any]) -> Scale:
    """The scale, two finite numbers of each, and those of std above zero, in float32 too."""
    scale = Scale(tuple(values["shift"]), tuple(values["std"]))
    pairs = all(len(pair) == 2 and {*map(type, pair)} <= {int, float} for pair in scale)
    with np.errstate(over="ignore"):
        if not pairs or not np.isfinite(scale.arrays()).all() or not (scale.arrays()[1] > 0).all():
            raise ValueError(f"scale: expected two finite numbers each, std above zero, got {values!r}")
    return scale
