"""Files as other software writes them, of small networks with random weights, and those networks computed their way."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

SCALES = {"output_w": 1.5, "output_b": 2.5, "Wxh": 2.0, "Whh": 0.8, "bias": 1.5}


class Network(NamedTuple):
    """The numbers in a file, layer by layer, and the head."""

    layers: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # (I, 4H), (H, 4H), (4H)
    output_w: np.ndarray
    output_b: np.ndarray


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def outputs(network, x, order, forget):
    """Raw outputs (T, D) and the last layer's h (T, H), in float64, gates in that order."""
    for kernel, recurrent, bias in network.layers:
        H = len(recurrent)
        h = c = np.zeros(H)
        hs = []
        for row in x:
            z = dict(zip(order, np.split(row @ kernel + h @ recurrent + bias, 4), strict=True))
            c = sigmoid(z["f"] + forget) * c + sigmoid(z["i"]) * np.tanh(z["g"])
            h = sigmoid(z["o"]) * np.tanh(c)
            hs.append(h)
        x = np.array(hs)
    return x @ network.output_w + network.output_b, x


def text_of(numbers):
    return base64.b64encode(numbers.tobytes()).decode()


# rnn-tutorial


def rnn_tutorial(seed=0, H=6, M=2):
    """The JSON of a weights.js, and its network."""
    random = np.random.default_rng(seed)
    shapes = {
        "output_w": (H, 1 + 6 * M),
        "output_b": (1 + 6 * M,),
        "Wxh": (3, 4 * H),
        "Whh": (H, 4 * H),
        "bias": (4 * H,),
    }
    raw = {name: random.integers(0, 255, shape).astype(np.uint8) for name, shape in shapes.items()}
    w = {name: (v.astype(float) - 127) / 127 * SCALES[name] for name, v in raw.items()}
    document = [[text_of(row) for row in v] if v.ndim == 2 else text_of(v) for v in raw.values()]
    return document, Network([(w["Wxh"], w["Whh"], w["bias"])], w["output_w"], w["output_b"])


def weights_js(document):
    return f"lstm_data='{json.dumps(document)}'\n"


# sketch-rnn-js


def sketch_rnn(seed=0, H=6, M=2, **info):
    """The JSON of a .gen.json, and its network."""
    random = np.random.default_rng(seed)
    dims = [[H, 3 + 6 * M], [3 + 6 * M], [5, 4 * H], [H, 4 * H], [4 * H]]
    raw = [random.integers(-3000, 3000, shape).astype("<i2") for shape in dims]
    output_w, output_b, *layer = (v / 32767 * 10 for v in raw)
    info = {"name": "cat", "mode": 2, "version": 6, "max_seq_len": 130, "scale_factor": 71.5, **info}
    return [info, dims, [text_of(v) for v in raw]], Network([tuple(layer)], output_w, output_b)


# Keras


def keras_network(seed=0, H=6, L=2, M=2, inputs=3):
    random = np.random.default_rng(seed)

    def numbers(*shape):
        return random.normal(0, 0.5, shape).astype("f4")

    layers = []
    for n in range(L):
        bias = numbers(4 * H)
        bias[H : 2 * H] += 1  # unit_forget_bias
        layers.append((numbers(H if n else inputs, 4 * H), numbers(H, 4 * H), bias))
    return Network(layers, numbers(H, 1 + 6 * M), numbers(1 + 6 * M))


def layer_config(kind, name, **options):
    """A layer as Keras 2 and 3 describe it in a Sequential model."""
    usual = {"name": name, "trainable": True, "dtype": "float32"}
    if kind == "LSTM":
        usual |= {"units": 6, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True,
                  "go_backwards": False, "return_sequences": True, "unit_forget_bias": True, "stateful": False,
                  "implementation": 2, "dropout": 0.1, "kernel_initializer": {"class_name": "Zeros"}}  # fmt: skip
    elif kind == "Dense":
        usual |= {"units": 13, "activation": "linear", "use_bias": True}
    return {"class_name": kind, "config": usual | options}


def model_config(network, model="Sequential", between=(), **options):
    """The JSON of a model: input, LSTM layers with Dropout after the first, Dense; `options` of every LSTM."""
    layers = [layer_config("InputLayer", "input_1")]
    for n in range(len(network.layers)):
        layers.append(layer_config("LSTM", f"lstm_{n}", **options))
        layers += [layer_config("Dropout", "dropout")] if n == 0 else []
    layers += [*between, layer_config("Dense", "dense")]
    if model != "Sequential":
        for before, layer in zip([None, *layers], layers, strict=False):
            layer["inbound_nodes"] = [[[before["config"]["name"], 0, 0, {}]]] if before else []
            layer["name"] = layer["config"]["name"]
    return {"class_name": model, "config": {"name": "model_1", "layers": layers}}


def keras_h5(network, config=None, version="2.4.0", more=()):
    """Bytes of a file of `save_weights`, or with a config (or its JSON) of `model.save`, as Keras 2 writes them."""
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        group = file
        if config is not None:
            file.attrs["model_config"] = config if isinstance(config, bytes) else json.dumps(config).encode()
            group = file.create_group("model_weights")
        group.attrs["keras_version"], group.attrs["backend"] = version.encode(), b"tensorflow"
        named = [("input_1", {})]
        for n, layer in enumerate(network.layers):
            names = (f"lstm_{n}/lstm_cell/{name}:0" for name in ("kernel", "recurrent_kernel", "bias"))
            named.append((f"lstm_{n}", dict(zip(names, layer, strict=True))))
        named.append(("dense", {"dense/kernel:0": network.output_w, "dense/bias:0": network.output_b}))
        named += more
        group.attrs["layer_names"] = [name.encode() for name, _ in named]
        for name, weights in named:
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, value in weights.items():
                layer.create_dataset(weight, data=value)
    return sink.getvalue()


def keras_3_weights(network, time_distributed=False):
    """Bytes of a .weights.h5 of Keras 3."""
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        file.create_group("vars")
        layers = file.create_group("layers")
        for n, weights in enumerate(network.layers):
            layer = layers.create_group(f"lstm_{n}" if n else "lstm")
            layer.create_group("vars").attrs["name"] = f"layer_{n}"
            cell = layer.create_group("cell/vars")
            for k, value in enumerate(weights):
                cell.create_dataset(str(k), data=value)
        layers.create_group("dropout/vars")
        where = "time_distributed/layer/vars" if time_distributed else "dense/vars"
        for k, value in enumerate((network.output_w, network.output_b)):
            layers.create_dataset(f"{where}/{k}", data=value)
    return sink.getvalue()


def keras_zip(network, config, **members):
    """Bytes of a .keras file."""
    sink = io.BytesIO()
    held = {"metadata.json": b"{}", "config.json": json.dumps(config).encode()}
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in (held | {"model.weights.h5": keras_3_weights(network)} | members).items():
            archive.writestr(name, data)
    return sink.getvalue()


def write(path, data):
    path = Path(path)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path
