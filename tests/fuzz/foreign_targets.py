"""Every reader of foreign weights, as a function of bytes; see targets.py.

HDF5's own library is not among them: damaged files make it loop and crash, which is why it has a process to itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from fusedmdn import FusedLSTMMDN, foreign
from fusedmdn.foreign import hdf5

from ..fusedmdn import foreign_files as files
from .target import Target


def use(model: FusedLSTMMDN) -> None:
    """What everybody does with a network."""
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert model.generate(1, 3, seed=0).points.shape[1] == 3


def _target(path: Path, file_of: Callable[[bytes], bytes], seeds: list[bytes]) -> Target:
    def load(data: bytes) -> None:
        path.write_bytes(file_of(data))
        with mock.patch.object(hdf5, "isolated", hdf5.dump):
            use(foreign.read(path))

    return Target(load, seeds, path.name, plain=True)


def rnn_tutorial(folder: Path) -> Target:
    seeds = [files.weights_js(files.rnn_tutorial(H=H, M=1)[0]).encode() for H in (1, 3)]
    return _target(folder / "weights.js", bytes, seeds)


def rnn_tutorial_json(folder: Path) -> Target:
    """What stands in the assignment, so that its values are replaced too."""
    seeds = [json.dumps(files.rnn_tutorial(H=H, M=1)[0]).encode() for H in (1, 3)]
    return _target(folder / "weights.js", lambda data: b"lstm_data=" + data, seeds)


def sketch_rnn(folder: Path) -> Target:
    seeds = [json.dumps(files.sketch_rnn(H=H, M=1)[0]).encode() for H in (1, 3)]
    return _target(folder / "a.gen.json", bytes, [*seeds, b"\xef\xbb\xbf// cat\nwindow.a.b = " + seeds[0]])


NETWORK = files.keras_network(H=2, M=1)
CONFIGS = [json.dumps(files.model_config(NETWORK, model)).encode() for model in ("Sequential", "Functional")]


def keras_zip(folder: Path) -> Target:
    return _target(folder / "a.keras", bytes, [files.keras_zip(NETWORK, json.loads(config)) for config in CONFIGS])


def keras_config(folder: Path) -> Target:
    """A model's JSON in a file that is otherwise right."""
    return _target(folder / "a.h5", lambda data: files.keras_h5(NETWORK, data.replace(b"\0", b"")[:60_000]), CONFIGS)


def keras_3_config(folder: Path) -> Target:
    return _target(folder / "a.keras", lambda data: files.keras_zip(NETWORK, {}, **{"config.json": data}), CONFIGS)


def keras_held(folder: Path) -> Target:
    """What the process that reads HDF5 answers: names, attributes, shapes."""
    path = folder / "a.h5"
    held = [files.keras_h5(NETWORK), files.keras_h5(NETWORK, CONFIGS[0]), files.keras_3_weights(NETWORK)]
    path.write_bytes(held[0])
    answers = [hdf5.dump(data).partition(b"\n") for data in held]

    def load(data: bytes) -> None:
        with mock.patch.object(hdf5, "isolated", return_value=data + b"\n" + answers[0][2]):
            use(foreign.read(path))

    return Target(load, [answer[0] for answer in answers], path.name, plain=True)


FOREIGN: dict[str, Callable[[Path], Target]] = {
    "rnn-tutorial": rnn_tutorial,
    "rnn-tutorial-json": rnn_tutorial_json,
    "sketch-rnn": sketch_rnn,
    "keras-zip": keras_zip,
    "keras-config": keras_config,
    "keras-3-config": keras_3_config,
    "keras-held": keras_held,
}
