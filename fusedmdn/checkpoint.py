"""Checkpoints: a directory whose config.json names the safetensors files that belong to it, by their SHA-256.

The files are written first, under names made of their contents; replacing config.json is what makes them current, in
one step; what it no longer names is then removed. So a crash at any point leaves the old checkpoint or the new one.
config.json carries a SHA-256 of itself, and every file's is checked before anything is built. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from . import files
from .module import FusedLSTMMDN
from .strokes import Scale

FORMAT = "fusedmdn-1"
CONFIG = "config.json"
EMBEDDED = ("kanji",)


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another format; the message names the file."""


def save_model(model: FusedLSTMMDN, directory: str | Path, training: Mapping[str, Tensor] | None = None,
               progress: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Write a model and, for a run that will go on, what else its training needs (tensors, and JSON as `progress`)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    config: dict[str, Any] = {
        "format": FORMAT,
        "model": model.config(),
        "dtype": str(model.head.weight.dtype).removeprefix("torch."),
        "scale": {"shift": list(model.scale.shift), "std": list(model.scale.std)},
        "weights": _write_tensors(directory, "model", weights),
    }
    if training is not None:
        config["training"] = _write_tensors(directory, "training", dict(training))
        config["progress"] = dict(progress or {})
    config["sha256"] = _digest_of(config)
    files.write(directory / CONFIG, json.dumps(config, indent=2) + "\n")

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


def load_training(source: str | Path, device: Any = None) -> tuple[FusedLSTMMDN, dict[str, Tensor], dict[str, Any]]:
    """The model, training tensors and progress that `save_model` wrote.

    Raises:
        CheckpointError: a file is missing, damaged or not of this format, or the checkpoint has no training state.
    """
    directory = Path(source)
    config, tensors = _read(directory, ("weights", "training"))
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


def _write_tensors(directory: Path, kind: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    digest = hashlib.sha256(data).hexdigest()
    path = directory / f"{kind}-{digest[:16]}.safetensors"
    files.write(path, data)
    return {"file": path.name, "sha256": digest, "bytes": len(data)}


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
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, got {found!r}")
    if config.get("sha256") != _digest_of(config):
        raise CheckpointError(f"{path}: its contents do not match its SHA-256; it is damaged or was edited by hand")
    return config


def _read_tensors(directory: Path, config: dict[str, Any], part: str) -> dict[str, Tensor]:
    if part not in config:
        raise CheckpointError(f"{directory / CONFIG}: has no {part} state")
    path = directory / config[part]["file"]
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != config[part]["sha256"]:
        raise CheckpointError(f"{path}: damaged: SHA-256 {digest}, expected {config[part]['sha256']}")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def _build(directory: Path, config: dict[str, Any], weights: dict[str, Tensor], device: Any) -> FusedLSTMMDN:
    try:
        model = FusedLSTMMDN(**config["model"], device=device, dtype=getattr(torch, config["dtype"]))
        model.load_state_dict(weights)
        model.scale = Scale(tuple(config["scale"]["shift"]), tuple(config["scale"]["std"]))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{directory / CONFIG}: does not describe its weights: {error}") from error
    return model.eval()


def _digest_of(config: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
