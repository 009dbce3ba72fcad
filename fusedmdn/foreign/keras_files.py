"""The layers in a file that Keras 2 or 3 has saved.

| file | holds | layers are found by |
|---|---|---|
| .h5, .hdf5 of `model.save` | model_config (JSON), group model_weights | layer_names, weight_names |
| .h5, .hdf5 of Keras 2's `save_weights` | weights alone | layer_names, weight_names |
| .weights.h5 of Keras 3's `save_weights` | weights alone, group layers | class and number: lstm, lstm_1 |
| .keras of Keras 3's `model.save` | config.json, model.weights.h5 in a zip | config.json |
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .. import sealed
from ..quoting import shown, told
from . import common, hdf5
from .common import Array, ForeignFileError
from .hdf5 import Held

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
LIMIT = 1 << 16  # names in a list
LSTM_WEIGHTS, DENSE_WEIGHTS = ("kernel", "recurrent_kernel", "bias"), ("kernel", "bias")
SILENT = ("InputLayer", "Dropout")  # layers that do nothing when a network is used
READ = ("LSTM", "Dense")  # layers whose weights are read
KEYS = {"LSTM": "lstm", "Dense": "dense", "TimeDistributed": "time_distributed"}  # in a file of Keras 3
WRAPPED = "layer"  # the option of TimeDistributed that holds the layer


class Part(NamedTuple):
    """A layer: class, name, weights; options and the layers below it, None where a file does not say."""

    kind: str
    name: str
    weights: list[Array]
    config: dict[str, Any] | None = None
    below: list[str] | None = None


def parts(path: Path) -> list[Part]:
    """The model's layers from the input on."""
    data = common.read_bytes(path)
    if not data.startswith((HDF5, ZIP)):
        raise ForeignFileError(f"{path}: is neither HDF5 nor a zip file, which Keras's files are")
    try:
        if data.startswith(HDF5):
            return _of_hdf5(path, hdf5.read(data))
        config, weights = _unzipped(path, data)
        return _of_keras_3(path, hdf5.read(weights), _described(path, config))
    except (ForeignFileError, ModuleNotFoundError):
        raise
    except Exception as error:  # of what is damaged, zipfile raises nearly everything
        raise ForeignFileError(f"{path}: is damaged, or not a file of Keras: {told(error)}") from error


def _unzipped(path: Path, data: bytes) -> tuple[bytes, bytes]:
    """config.json and model.weights.h5 of a .keras file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = ("config.json", "model.weights.h5")
        missing = set(names) - set(archive.namelist())
        if missing:
            raise ForeignFileError(f"{path}: a zip file without {', '.join(sorted(missing))} is not Keras's")
        members = [archive.getinfo(name) for name in names]
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise ForeignFileError(f"{path}: is compressed in a way that Keras does not use")
        claimed = sum(member.file_size for member in members)
        if claimed > 4 * len(data) + (1 << 20):
            raise ForeignFileError(f"{path}: {len(data)} bytes that would unpack to {claimed} are no model")
        return archive.read(members[0]), archive.read(members[1])


def _of_hdf5(path: Path, held: Held) -> list[Part]:
    described, root, attributes = None, "", held.groups[""]
    if "model_config" in attributes:
        described = _described(path, attributes["model_config"].encode())
        root = "model_weights/"
    elif "layer_names" in attributes:
        _check_version(path, attributes)
    elif "layers" in held.groups:
        return _of_keras_3(path, held, None)
    else:
        found = [name for name in held.groups if name and "/" not in name]
        raise ForeignFileError(
            f"{path}: has neither model_config, layer_names nor a group layers; found {shown(found)}: "
            "no file of Keras, or of a version whose layout is not known here"
        )
    names = _names(path, held, root.rstrip("/"), "layer_names")
    if described is None:
        return [_guessed(path, held, name) for name in names]
    parts = []
    for part in described:
        if part.kind not in READ:
            parts.append(part)
            continue
        if part.name not in names:
            raise ForeignFileError(f"{path}: model_config names {shown(part.name)}, which has no weights")
        layer = root + part.name
        weights = [_array(path, held, f"{layer}/{name}") for name in _names(path, held, layer, "weight_names")]
        parts.append(part._replace(weights=weights))
    return parts


def _guessed(path: Path, held: Held, name: str) -> Part:
    """A layer whose class follows from the names and shapes of its weights."""
    full = _names(path, held, name, "weight_names")
    names = tuple(weight.split("/")[-1].split(":")[0] for weight in full)
    if not names:
        return Part(SILENT[0], name, [])
    if any(re.search("forward|backward", weight) for weight in full):
        return Part("Bidirectional", name, [])
    if names not in (LSTM_WEIGHTS, DENSE_WEIGHTS):
        return Part("a layer of unknown class", name, [])
    weights = [_array(path, held, f"{name}/{weight}") for weight in full]
    if names == DENSE_WEIGHTS:
        return Part("Dense", name, weights)
    kinds = {3: "GRU", 4: "LSTM"}
    H, *gates = weights[1].shape if weights[1].ndim == 2 and weights[1].size else (1, 1)
    return Part(kinds.get(gates[0] // H, "a layer of unknown class"), name, weights)


def _check_version(path: Path, attributes: dict[str, Any]) -> None:
    """Weights alone do not say their activations; before 2.3, Keras's own default was another."""
    version = _name(attributes.get("keras_version", ""))
    if re.fullmatch(r"[01]\..*|2\.[012](\.\d+)?", version):
        raise ForeignFileError(
            f"{path}: weights alone, of Keras {version}, whose LSTM had recurrent_activation='hard_sigmoid' by "
            "default; save the whole model (model.save), which says what it has"
        )


def _of_keras_3(path: Path, held: Held, described: list[Part] | None) -> list[Part]:
    """Layers are kept under their classes, numbered where there are more of one: lstm, lstm_1."""
    if "layers" not in held.groups:
        raise ForeignFileError(f"{path}: its weights have no group layers: of a version whose layout is not known here")
    if described is None:
        keyed = [(name, Part(kind, name, [])) for kind, name in _listed(path, held)]
    else:
        seen: Counter[str] = Counter()
        keyed = []
        for part in described:
            kind = "TimeDistributed" if WRAPPED in (part.config or {}) else part.kind
            keyed.append((KEYS.get(kind, "") + (f"_{seen[kind]}" if seen[kind] else ""), part))
            seen[kind] += 1
    return [part._replace(weights=_variables(path, held, key)) if part.kind in READ else part for key, part in keyed]


def _variables(path: Path, held: Held, key: str) -> list[Array]:
    """A layer's weights in their order: an LSTM's lie in its cell, TimeDistributed's in its layer."""
    places = [f"layers/{key}/{inner}vars" for inner in ("cell/", "layer/", "")]
    group = next((place for place in places if place in held.groups), None)
    if group is None:
        raise ForeignFileError(f"{path}: layers/{key} is not there, or has no vars")
    numbers = range(len(LSTM_WEIGHTS) + 1)
    return [_array(path, held, f"{group}/{k}") for k in numbers if f"{group}/{k}" in held.arrays]


def _listed(path: Path, held: Held) -> Iterator[tuple[str, str]]:
    """Class and name of each layer in a file of weights alone: the LSTMs by their numbers, then all others."""
    names = [_name(group.removeprefix("layers/")) for group in held.groups if re.fullmatch("layers/[^/]+", group)]
    kinds = {key: kind for kind, key in KEYS.items()} | {"input_layer": "InputLayer", "dropout": "Dropout"}
    numbered = []
    for name in names:
        match = re.fullmatch(r"(\w+?)(?:_(\d{1,5}))?", name)
        kind, number = (match[1], int(match[2] or 0)) if match else (name, 0)
        numbered.append((kind != "lstm", number, kind, name))
    for _, _, kind, name in sorted(numbered):
        if kind in ("bidirectional", "gru", "masking", "rnn", "simple_rnn"):
            raise ForeignFileError(f"{path}: {name}: a layer of that class cannot be converted")
        yield ("Dense" if kind == KEYS["TimeDistributed"] else kinds.get(kind, kind)), name


def _described(path: Path, text: bytes) -> list[Part]:
    """The layers of a model's JSON, each found to have the one before it as its only input."""
    try:
        model = sealed.parse(text)
        kind, layers = model["class_name"], model["config"]
        layers = layers["layers"] if isinstance(layers, dict) else layers  # a list in Keras before 2.2.3
        if kind not in ("Sequential", "Functional", "Model"):
            raise ForeignFileError(f"{path}: a model of class {shown(kind)} cannot be converted")
        return [_part(layer, kind == "Sequential") for layer in layers[:LIMIT]]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ForeignFileError(f"{path}: the model's JSON cannot be read: {told(error)}") from error


def _part(layer: dict[str, Any], sequential: bool) -> Part:
    kind, config = layer["class_name"], layer["config"]
    name = config["name"]
    if not isinstance(kind, str) or not isinstance(name, str) or not isinstance(config, dict):
        raise TypeError(f"layer {shown(name)} of class {shown(kind)}")
    kind, name = _name(kind), _name(name)
    below = None if sequential else list(_inputs(layer["inbound_nodes"]))
    if kind == "TimeDistributed" and config[WRAPPED]["class_name"] == "Dense":
        return Part("Dense", name, [], {**config[WRAPPED]["config"], WRAPPED: True}, below)
    return Part(kind, name, [], config, below)


def _inputs(node: Any) -> Iterator[str]:
    """Names of the layers whose outputs a layer is called with, as Keras 2 or 3 writes them."""
    if isinstance(node, dict):
        if node.get("class_name") == "__keras_tensor__":
            yield str(node["config"]["keras_history"][0])
            return
        node = list(node.values())
    if isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and type(node[1]) is int and type(node[2]) is int:
            yield node[0]
            node = node[3:]
        for inner in node:
            yield from _inputs(inner)


def _names(path: Path, held: Held, group: str, attribute: str) -> list[str]:
    """A list of names; Keras cuts a long one into attributes that are numbered."""
    attributes = held.groups.get(group, {})
    pieces = sorted((a for a in attributes if re.fullmatch(rf"{attribute}\d*", a)), key=lambda a: (len(a), a))
    if not pieces:
        raise ForeignFileError(f"{path}: {shown(group)} is not there, is a link, or has no {attribute}")
    return [_name(name) for piece in pieces for name in attributes[piece]]


def _name(name: str) -> str:
    """A name that a message can hold as it is."""
    if not name.isprintable() or len(name) > 100:
        raise ValueError(f"{shown(name)} is no name of a layer or of weights")
    return name


def _array(path: Path, held: Held, name: str) -> Array:
    found = held.arrays.get(name, "is not there, or is a link")
    if isinstance(found, str):
        raise ForeignFileError(f"{path}: {shown(name)} {found}")
    return found
