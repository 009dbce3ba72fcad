"""Weights of other software: read right, or refused with a reason."""

import importlib.util
import io
import json
import sys
import time
import tracemalloc
from functools import partial

import fusedmdn.ops as ops
import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fusedmdn import FusedLSTMMDN, Scale, StrokeMixture, foreign
from fusedmdn.cli import app
from fusedmdn.foreign import ForeignFileError, hdf5, keras
from fusedmdn.quoting import shown, told

from . import foreign_files as files
from .foreign_files import keras_h5, keras_network, model_config, weights_js, write
from .synthetic import zigzags

pytestmark = pytest.mark.filterwarnings("ignore:.*holds weights alone")


@pytest.fixture(autouse=True)
def _h5py_here(request, monkeypatch):
    """HDF5 is read in this process, which saves half a second a file; but for tests of the other process."""
    if "another_process" not in request.node.name:
        monkeypatch.setattr(hdf5, "isolated", hdf5.dump)


def pen_rows(columns, T=12):
    x = np.random.default_rng(1).normal(0, 1, (T, columns)).astype("f4")
    x[:, 2:] = np.eye(columns - 2, dtype="f4")[np.arange(T) % (columns - 2)] * (np.arange(T)[:, None] % 2)
    return x


def raw_of(model, x):
    with torch.no_grad():
        return model.raw_output(torch.from_numpy(x)[:, None], None, None)[0][:, 0].numpy()


# What is right


@pytest.mark.parametrize(
    "spelling",
    [
        "lstm_data='{}'\n",
        "var lstm_data = '{}';",
        "const x={}\n;\n",
        "\n let $a_1 = {}",
        "window.lstm_data = {};",
        "// a [{{ b\n// c\nlstm_data='{}'",
        "/* [{{ a = 1\n */ /**/\n{}",
        "\ufeff {}",
        "\ufeff/* [{{ */lstm_data='{}'",
    ],
)
@pytest.mark.parametrize("ending", ["js", "json", "JSON"])
def test_rnn_tutorial(tmp_path, spelling, ending):
    document, network = files.rnn_tutorial()
    path = write(tmp_path / f"weights.{ending}", spelling.format(json.dumps(document)))
    assert foreign.format_of(path) == "rnn-tutorial"
    model = foreign.read(path)
    assert (model.pen, model.num_mixtures, model.hidden_size, model.means) == ("bernoulli", 2, 6, "linear")
    assert model.scale == Scale((0.0, 0.0), (40.0, 40.0))
    assert not model.training
    x = pen_rows(3)
    np.testing.assert_allclose(raw_of(model, x), files.outputs(network, x, "igfo", 1)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.gen.json", "{}"),
        ("a.js", "var model_raw_data='{}';"),
        ("a.js", "m={}"),
        ("a.json", "window.m = {};"),
        ("a.js", "// [[\n{}"),
        ("a.json", "\ufeff{}"),
        ("a.js", f"/* {'[[' * 9000} */ m='{{}}'"),
    ],
)
def test_sketch_rnn(tmp_path, name, text):
    document, network = files.sketch_rnn()
    path = write(tmp_path / name, text.format(json.dumps(document)))
    assert foreign.format_of(path) == "sketch-rnn"
    model = foreign.read(path)
    assert (model.pen, model.num_mixtures, model.hidden_size, model.input_size) == ("categorical", 2, 6, 5)
    assert model.scale == Scale((0.0, 0.0), (71.5, 71.5))
    x = pen_rows(5)
    np.testing.assert_allclose(raw_of(model, x), files.outputs(network, x, "igfo", 1)[0], rtol=1e-5, atol=1e-5)


def keras_files(network):
    config = model_config(network)
    return {
        "whole.h5": keras_h5(network, config),
        "functional.hdf5": keras_h5(network, model_config(network, "Functional")),
        "alone.h5": keras_h5(network),
        "three.weights.h5": files.keras_3_weights(network),
        "distributed.weights.h5": files.keras_3_weights(network, time_distributed=True),
        "three.keras": files.keras_zip(network, config),
    }


@pytest.mark.parametrize("name", keras_files(keras_network()))
def test_keras(tmp_path, name):
    network = keras_network()
    path = write(tmp_path / name, keras_files(network)[name])
    model = foreign.read(path)
    assert (model.num_layers, model.hidden_size, model.num_mixtures) == (2, 6, 2)
    assert (model.pen, model.means) == ("bernoulli", "sigmoid")
    x = pen_rows(3)
    raw, h = files.outputs(network, x, "ifgo", 0)
    mine = raw_of(model, x)
    np.testing.assert_allclose(mine[:, :3], raw[:, :3], rtol=1e-5, atol=1e-5)  # eos, pi
    np.testing.assert_allclose(mine[:, 3:].reshape(-1, 5, 2), raw[:, 3:].reshape(-1, 2, 5).swapaxes(1, 2), 1e-5, 1e-5)
    np.testing.assert_allclose(keras.lstm(path)(torch.from_numpy(x))[0].detach(), h, rtol=1e-5, atol=1e-5)
    assert foreign.read(path, means="linear").means == "linear"


def the_founding_network_s_loss(raw, target, M=2):
    """Nats of each row, by the density as printed, from outputs in Keras's order."""
    eos = files.sigmoid(raw[:, 0])
    pi = np.exp(raw[:, 1 : 1 + M]) / np.exp(raw[:, 1 : 1 + M]).sum(1, keepdims=True)
    density = 0
    for m in range(M):
        mu1, mu2, s1, s2, rho = raw[:, 1 + M + 5 * m : 6 + M + 5 * m].T
        mu1, mu2, s1, s2, rho = files.sigmoid(mu1), files.sigmoid(mu2), np.exp(s1), np.exp(s2), np.tanh(rho)
        a, b = (target[:, 0] - mu1) / s1, (target[:, 1] - mu2) / s2
        z = (a * a + b * b - 2 * rho * a * b) / (1 - rho * rho)
        density = density + pi[:, m] * np.exp(-z / 2) / (2 * np.pi * s1 * s2 * np.sqrt(1 - rho * rho))
    return -np.log(density) - np.log(np.where(target[:, 2] == 1, eos, 1 - eos))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_layers_of_400_and_two_mixtures(tmp_path, backend):
    """States, mixtures and the loss of the network that this package was first asked for."""
    network = keras_network(H=400)
    network = network._replace(
        layers=[(k * 0.2, r * 0.1, b * 0.5) for k, r, b in network.layers], output_w=network.output_w * 0.2
    )
    path = write(tmp_path / "model.h5", keras_h5(network, model_config(network, units=400)))
    model = foreign.read(path)
    assert model.head.out_features == 13
    x = pen_rows(3, T=40)
    raw, h = files.outputs(network, x, "ifgo", 0)
    with torch.no_grad(), ops.backend(backend):
        mixture, (h_T, _) = model(torch.from_numpy(x)[:-1])
        nll, _ = model(torch.from_numpy(x)[:-1], target=torch.from_numpy(x)[1:])
    np.testing.assert_allclose(h_T[1], h[-2], rtol=1e-5, atol=1e-5)
    q, raw = mixture.parameters, raw[:-1]
    np.testing.assert_allclose(mixture.pen_probs[:, 0], files.sigmoid(raw[:, 0]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q.mu_y, files.sigmoid(raw[:, 4::5][:, :2]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q.log_sigma_x.exp(), np.exp(raw[:, 5::5][:, :2]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q.r.tanh(), np.tanh(raw[:, 7::5][:, :2]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(nll, the_founding_network_s_loss(raw, x[1:]), rtol=1e-5, atol=1e-5)
    assert isinstance(mixture, StrokeMixture)


def test_layers_above_the_stack_do_not_matter_to_lstm(tmp_path):
    network = keras_network(inputs=4)
    more = [("mdn", {"mdn/mus/kernel:0": np.zeros((6, 20), "f4"), "mdn/mus/bias:0": np.zeros(20, "f4")})]
    path = write(tmp_path / "impsy.h5", keras_h5(network, more=more))
    assert keras.lstm(path).input_size == 4
    with pytest.raises(ForeignFileError, match=r"one Dense layer after.*foreign\.keras\.lstm\(path\) gives the 2 LSTM"):
        foreign.read(path)


def test_what_is_taken_for_granted_is_said(tmp_path, recwarn):
    network = keras_network()
    path = write(tmp_path / "a.h5", keras_h5(network, model_config(network)))
    foreign.read(path)
    assert not recwarn
    for data in (keras_h5(network), files.keras_3_weights(network)):
        with pytest.warns(
            UserWarning, match=r"a\.h5: holds weights alone; .*, with tanh and sigmoid, is taken for granted"
        ):
            foreign.read(write(path, data))


def test_names_cut_into_pieces(tmp_path):
    """Keras does so where a list would not fit into an attribute."""
    path = write(tmp_path / "a.h5", keras_h5(keras_network()))
    expected = foreign.read(path).state_dict()
    with h5py.File(path, "r+") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:2], names[2:]
        file.attrs["layer_names"] = names[:0]
    torch.testing.assert_close(foreign.read(path).state_dict(), expected)


# What is not


def refused(path, match):
    with pytest.raises(ForeignFileError, match=match) as told:
        foreign.read(path)
    message = str(told.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300


def peak(load):
    tracemalloc.start()
    try:
        load()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [files.rnn_tutorial, files.sketch_rnn])
def test_weights_are_decoded_in_little_memory(tmp_path, make):
    """The text twice, and each number four times in float32: its bytes, itself, and with the gates in order."""
    H = 300
    document, network = make(H=H)
    path = write(tmp_path / "a.json", json.dumps(document))
    numbers = 4 * H * H
    assert peak(lambda: foreign.read(path)) < 2 * path.stat().st_size + 4 * 4 * numbers
    x = pen_rows(5 if make is files.sketch_rnn else 3)
    expected = files.outputs(network, x, "igfo", 1)[0]
    np.testing.assert_allclose(raw_of(foreign.read(path), x), expected, rtol=1e-4, atol=1e-3)


def test_text_is_bounded(tmp_path):
    """The files have holes: they take no disk, nor memory."""
    for ending, most in (("js", 1 << 27), ("json", 1 << 27), ("h5", 1 << 30), ("keras", 1 << 30)):
        path = tmp_path / f"a.{ending}"
        with open(path, "wb") as file:
            file.truncate(most + 1)
        assert peak(lambda path=path, most=most: refused(path, f"more than {most} bytes are no model")) < 1 << 20


def test_what_is_huge_is_not_written_out_first():
    for value in ("a" * 50_000_000, b"a" * 50_000_000, [["a" * 50_000_000] * 9] * 9):
        assert peak(partial(shown, value)) < 1 << 16
        assert len(shown(value)) <= 101
    assert told(ValueError("a\n\x1b[31m" + "b" * 999)).startswith("a \\x1b[31mbbb")
    assert (told(KeyError()), len(told("b" * 999))) == ("KeyError", 181)


def test_no_file(tmp_path):
    for ending in ("js", "json", "h5", "keras"):
        refused(tmp_path / f"a.{ending}", "cannot be read: No such file")
    (tmp_path / "a.h5").mkdir()
    refused(tmp_path / "a.h5", "cannot be read: Is a directory")
    refused(write(tmp_path / "weights.pt", b"PK"), r"ends in \.js, \.json, \.h5, \.hdf5, \.keras")
    with pytest.raises(ValueError, match="format must be auto or one of rnn-tutorial, sketch-rnn, keras; got 'x'"):
        foreign.read(tmp_path / "a.js", "x")
    path = write(tmp_path / "a.js", weights_js(files.rnn_tutorial()[0]))
    with pytest.raises(ValueError, match="rnn-tutorial files take no option means"):
        foreign.read(path, means="linear")


@pytest.mark.parametrize("ending", ["js", "json", "h5", "keras"])
@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"<!DOCTYPE html>\n<html>", "web page"),
        (b"\xef\xbb\xbf\n<html lang=en>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        (b"\x89HDF\r\n\x1a\n", "damaged|not JSON"),
        (b"PK\x03\x04", "damaged|not JSON"),
        (b"null", "expected a list|neither HDF5"),
        (b"[" * 100_000, "nested|neither HDF5"),
        (b"[" * 200_000, "commas and brackets|neither HDF5"),
        (b"x='" + b"[],[]," * 100_000 + b"'", "commas and brackets|neither HDF5"),
        (b"x='[]'; fetch('y')", "one assignment|not JSON|neither HDF5"),
        (b"x='[\"a\\'b\"]'", "one assignment|not JSON|neither HDF5"),
        (b"x='[]'" + b" " * 200_000 + b"y", "one assignment|not JSON|neither HDF5"),
        (b"x=[]" + b" " * 200_000 + b"y", "not JSON|neither HDF5"),
        (b"x=''[]''", "one assignment|not JSON|neither HDF5"),
        (b"x='", "one assignment|not JSON|neither HDF5"),
        (b"// never ends", "not JSON|neither HDF5"),
        (b"/* never ends [", "not JSON|neither HDF5"),
        (b"/**/" * 200_000 + b"x", "not JSON|neither HDF5"),
        (b"window['a'] = []", "not JSON, nor one assignment of it, name = |neither HDF5"),
        (b"x=[NaN]", "no finite number|neither HDF5"),
        (b"[1e999]", "no finite number|neither HDF5"),
        (b"\xff\xfe", "not JSON|neither HDF5"),
    ],
)
def test_not_weights(tmp_path, ending, data, match):
    refused(write(tmp_path / f"a.{ending}", data), match)


def change(document, place, value):
    *way, last = place
    holder = document
    for key in way:
        holder = holder[key]
    holder[last] = value(holder[last]) if callable(value) else value


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ([3], lambda rows: rows[:-1], r"output_w: expected 5 rows, got 6"),
        ([3], [], "Whh: expected a list of rows"),
        ([3], "abc", "Whh: expected a list of rows, got str"),
        ([2], lambda rows: rows * 2, "Wxh: expected 3 rows, got 6"),
        ([2, 1], 7, "Wxh: expected 32 characters of base64 .* got int"),
        ([1], 3, "output_b: expected base64, got int"),
        ([1], "AAAA" * 5, "expected 1 \\+ 6M outputs, got 15"),
        ([1], "====", "expected 1 \\+ 6M outputs, got"),
        ([0, 2], lambda row: row[:-4], "output_w: expected 20 characters of base64 for \\(13,\\), got 16"),
        ([0, 2], lambda row: row[:4] + "!" + row[5:], "output_w: is not base64"),
        ([0, 2], lambda row: row[:4] + "\n" + row[5:], "one assignment"),  # it would need an escape
        ([4], lambda row: "=" * len(row), "bias: is not base64"),
        ([1], "A" * 17 + "B==", "output_b: is not base64 of 13 bytes"),  # bits that are thrown away
    ],
)
def test_rnn_tutorial_that_does_not_fit(tmp_path, place, value, match):
    document, _ = files.rnn_tutorial()
    change(document, place, value)
    refused(write(tmp_path / "weights.js", weights_js(document)), match)
    refused(write(tmp_path / "weights.js", weights_js(document)[:-10]), "one assignment")


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ([0, "mode"], 1, "mode 1: only decoder-only models can be read .* others have an encoder"),
        ([0, "mode"], 0, "mode 0: only decoder-only"),
        ([0, "scale_factor"], 0, "scale_factor: expected a number above zero, got 0"),
        ([0, "scale_factor"], "a" * 1000, "scale_factor: .* got 'aaaa"),
        ([0, "scale_factor"], True, "scale_factor"),
        ([0, "scale_factor"], 1e300, "scale_factor"),
        ([1, 0, 0], 7, "sizes: expected"),
        ([1, 0, 1], 16, "expected 3 \\+ 6M outputs, got 16"),
        ([1, 0, 0], 1 << 30, "sizes: expected"),
        ([1, 0, 0], 1 << 80, "sizes: expected 5 lists of whole numbers"),
        ([1, 3, 1], 24.0, "sizes: expected 5 lists of whole numbers"),
        ([1, 3], [], "sizes: expected 5 lists of whole numbers"),
        ([1], {}, "sizes: expected 5 lists of whole numbers"),
        ([1, 0], [6, 15, 1], "sizes: expected \\[H, 3 \\+ 6M\\] first"),
        ([2], lambda blobs: blobs * 2, "expected 5 arrays"),
        ([2, 2], lambda blob: blob[4:], "Wxh: expected 320 characters of base64 for \\(5, 24\\), got 316"),
        ([2, 2], None, "Wxh: .* got NoneType"),
        ([0], [], "expected a list of 5 parts"),
    ],
)
def test_sketch_rnn_that_does_not_fit(tmp_path, place, value, match):
    document, _ = files.sketch_rnn()
    change(document, place, value)
    refused(write(tmp_path / "a.json", json.dumps(document)), match)


def test_sketch_rnn_sizes_are_looked_at_before_anything_is_made(tmp_path):
    document, _ = files.sketch_rnn()
    H = 1 << 28
    document[1] = [[H, 15], [15], [5, 4 * H], [H, 4 * H], [4 * H]]
    refused(write(tmp_path / "a.json", json.dumps(document)), "output_w: expected 10737418240 characters")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"recurrent_activation": "hard_sigmoid"},
            r"lstm_0 \(LSTM\): recurrent_activation is 'hard_sigmoid'; only 'sig",
        ),
        ({"activation": "relu"}, "activation is 'relu'; only 'tanh'"),
        ({"activation": {"class_name": "x" * 500}}, "activation is {'class_name'"),
        ({"use_bias": False}, "use_bias is False; only True"),
        ({"use_bias": 1}, "use_bias is 1"),
        ({"go_backwards": True}, "go_backwards is True"),
        ({"return_sequences": False}, "return_sequences is False"),
    ],
)
def test_keras_options_that_change_the_mathematics(tmp_path, options, match):
    network = keras_network()
    for name, data in (
        ("a.h5", keras_h5(network, model_config(network, **options))),
        ("a.keras", files.keras_zip(network, model_config(network, **options))),
    ):
        refused(write(tmp_path / name, data), match)


@pytest.mark.parametrize("kind", ["Masking", "GRU", "Bidirectional", "CuDNNLSTM", "Concatenate", "Dense"])
def test_keras_layers_between(tmp_path, kind):
    network = keras_network()
    config = model_config(network)
    config["config"]["layers"].insert(2, files.layer_config(kind, "other"))
    more = [("other", {"other/kernel:0": network.output_w, "other/bias:0": network.output_b})]
    refused(write(tmp_path / "a.h5", keras_h5(network, config, more=more)), f"other: {kind} before or between LSTM")


def test_keras_heads(tmp_path):
    network = keras_network()

    def with_dense(**options):
        config = model_config(network)
        config["config"]["layers"][-1]["config"] |= options
        return write(tmp_path / "a.h5", keras_h5(network, config))

    refused(with_dense(activation="sigmoid"), r"dense \(Dense\): activation is 'sigmoid'; only 'linear'")
    refused(with_dense(use_bias=False), "use_bias is False")
    narrow = network._replace(output_w=network.output_w[:, :12], output_b=network.output_b[:12])
    refused(write(tmp_path / "a.h5", keras_h5(narrow)), r"expected 1 \+ 6M outputs, got 12")
    refused(write(tmp_path / "a.h5", keras_h5(keras_network(inputs=4))), r"expected 3 inputs \(dx, dy, eos\)")
    headless = model_config(network)
    del headless["config"]["layers"][-1]
    refused(
        write(tmp_path / "a.h5", keras_h5(network, headless)), "expected one Dense layer after the LSTMs, got 'nothing'"
    )


def test_keras_graphs_that_are_no_stack(tmp_path):
    network = keras_network()
    config = model_config(network, "Functional")
    layers = config["config"]["layers"]
    layers[-1]["inbound_nodes"] = [[["lstm_0", 0, 0, {}]]]
    path = write(tmp_path / "a.h5", keras_h5(network, config))
    refused(path, r"dense has the inputs \['lstm_0'\], expected \['lstm_1'\]: only a plain stack")
    assert keras.lstm(path).num_layers == 2
    three = {"class_name": "__keras_tensor__", "config": {"keras_history": ["dropout", 0, 0]}}
    layers[3]["inbound_nodes"] = [{"args": [three], "kwargs": {"initial_state": [three], "mask": None}}]
    refused(
        write(tmp_path / "a.keras", files.keras_zip(network, config)), r"lstm_1 has the inputs \['dropout', 'dropout'\]"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(class_name="MyModel"), "a model of class 'MyModel' cannot be converted"),
        (lambda c: c["config"]["layers"][1].update(class_name="x" * 999), "'xxx.* is no name of a layer"),
        (
            lambda c: c["config"]["layers"][1]["config"].update(name="a\n\x1b[0m"),
            r"'a\\n\\x1b\[0m' is no name of a layer",
        ),
        (lambda c: c.update(config=None), "the model's JSON cannot be read"),
        (lambda c: c["config"].update(layers={}), "the model's JSON cannot be read"),
        (lambda c: c["config"]["layers"].append(3), "the model's JSON cannot be read"),
        (lambda c: c["config"]["layers"][1].update(config="lstm"), "the model's JSON cannot be read"),
        (lambda c: c["config"]["layers"][1]["config"].update(name="gone"), "names 'gone', which has no weights"),
        (lambda c: c["config"].update(layers=[]), "has no LSTM layer; layers: 'none'"),
    ],
)
def test_keras_descriptions_that_do_not_fit(tmp_path, change, match):
    network = keras_network()
    config = model_config(network)
    change(config)
    refused(write(tmp_path / "a.h5", keras_h5(network, config)), match)


def edited(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


CELL = "lstm_0/lstm_0/lstm_cell/"


def put(name, **options):
    def edit(file):
        del file[CELL + name]
        file[CELL.rstrip("/")].create_dataset(name, **options)

    return edit


def link(name, target):
    def edit(file):
        file.move(name, "elsewhere")
        file[name] = target

    return edit


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (put("kernel:0", data=np.full((3, 24), np.nan, "f4")), "lstm_0: kernel is not finite"),
        (put("bias:0", data=np.full(24, 1e300)), "lstm_0: bias is not finite in float32"),
        (put("bias:0", data=np.zeros(48, "f4")), "two biases: CuDNNLSTM's weights are not read"),
        (put("bias:0", data=np.zeros((1, 24), "f4")), "bias has shape"),
        (put("kernel:0", data=np.zeros((3, 20), "f4")), "expected weights .* of an LSTM"),
        (put("kernel:0", data=np.zeros((3, 24), "i4")), "kernel:0' is no array of numbers"),
        (put("kernel:0", data=np.zeros((3, 24), "f4"), compression="gzip"), "is compressed"),
        (put("kernel:0", shape=(3, 24), dtype="f4"), r"has 288 bytes by its shape \(3, 24\), and 0 are there"),
        (put("kernel:0", shape=(1 << 20, 1 << 20), dtype="f4"), "bytes by its shape .*, and 0 are there"),
        (put("kernel:0", shape=(3, 24), dtype="f4", external=[("/etc/passwd", 0, 288)]), "lies elsewhere"),
        (lambda f: f.attrs.update(keras_version=b"2.2.4"), "whose LSTM had recurrent_activation='hard_sigmoid'"),
        (lambda f: f.attrs.pop("layer_names"), "has neither model_config, layer_names nor a group layers"),
        (lambda f: f.attrs.update(layer_names=[b"lstm_9"]), "'lstm_9' is not there, is a link, or has no"),
        (link(CELL + "bias:0", h5py.SoftLink("/elsewhere")), "bias:0' is a link"),
        (link("lstm_0", h5py.SoftLink("/elsewhere")), "'lstm_0' is not there, is a link, or has no"),
        (link("lstm_0", h5py.ExternalLink("other.h5", "/")), "'lstm_0' is not there, is a link, or has no"),
        (lambda f: f["lstm_0"].__setitem__("again", f["lstm_0"]), "or 16 groups in each other"),
        (lambda f: f["lstm_1"].attrs.pop("weight_names"), "has no weight_names"),
        (lambda f: f["lstm_0"].attrs.update(weight_names=[b"../dense"]), "unknown class|is not there, or is a link"),
    ],
)  # fmt: skip
def test_hdf5_that_does_not_fit(tmp_path, edit, match):
    path = write(tmp_path / "a.h5", keras_h5(keras_network()))
    refused(edited(path, edit), match)


def test_layers_of_unequal_size(tmp_path):
    first, second = keras_network(L=1), keras_network(H=8, L=1, inputs=6)
    path = write(tmp_path / "a.h5", keras_h5(second._replace(layers=[*first.layers, *second.layers])))
    refused(path, "lstm_1: 8 units above 6; all layers must be equally large")


def test_gru_by_its_weights(tmp_path):
    network = keras_network(L=1)
    kernel, recurrent, bias = network.layers[0]
    gru = network._replace(layers=[(kernel[:, :18], recurrent[:, :18], bias[:18])])
    refused(write(tmp_path / "a.h5", keras_h5(gru)), r"no LSTM layer; layers: .*lstm_0 \(GRU\)")


def test_other_layers_of_keras_3(tmp_path):
    for layer, match in (
        ("bidirectional", "cannot be converted"),
        ("gru_1", "cannot be converted"),
        ("multiply", "one Dense"),
    ):
        path = write(tmp_path / "a.weights.h5", files.keras_3_weights(keras_network()))
        refused(edited(path, lambda f, layer=layer: f.create_group(f"layers/{layer}/vars")), match)


def test_a_zip_that_is_not_keras_s(tmp_path):
    network = keras_network()
    config = model_config(network)
    sink = io.BytesIO()
    np.savez(sink, a=np.zeros(3))
    refused(write(tmp_path / "a.keras", sink.getvalue()), "without config.json, model.weights.h5 is not Keras's")
    bomb = files.keras_zip(network, config)
    with files.zipfile.ZipFile(path := tmp_path / "a.keras", "w", files.zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(1 << 25))
        archive.writestr("model.weights.h5", files.keras_3_weights(network))
    refused(path, "that would unpack to .* are no model")
    refused(write(path, bomb[:-30]), "is damaged, or not a file of Keras")
    old = keras_h5(network)
    refused(write(path, files.keras_zip(network, config, **{"model.weights.h5": old})), "have no group layers")


@pytest.mark.parametrize("name", keras_files(keras_network()))
def test_truncated(tmp_path, name):
    data = keras_files(keras_network())[name]
    for length in range(9, len(data), len(data) // 40):
        refused(write(tmp_path / name, data[:length]), "damaged|not there|no weight|neither|are there")


def test_without_h5py(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", keras_h5(keras_network()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"Keras files need h5py: pip install 'fusedmdn\[convert\]'"):
        foreign.read(path)


def test_another_process(tmp_path):
    network = keras_network()
    path = write(tmp_path / "a.h5", keras_h5(network, model_config(network)))
    x = pen_rows(3)
    expected = files.outputs(network, x, "ifgo", 0)[1]
    np.testing.assert_allclose(keras.lstm(path)(torch.from_numpy(x))[0].detach(), expected, rtol=1e-5, atol=1e-5)
    refused(write(path, path.read_bytes()[:3000]), "is damaged, or not a file of Keras: Unable to .* open file")


@pytest.mark.parametrize(
    ("program", "match"),
    [
        ("while True: pass", "HDF5's library did not come to an end in 2 s"),
        ("import os; os.abort()", r"HDF5's library failed \(exit code -6\)"),
        ("pass", r"HDF5's library failed \(exit code 0\)"),
    ],
)
def test_another_process_that_fails(tmp_path, monkeypatch, program, match):
    """As HDF5's library does on some damaged files."""
    monkeypatch.setattr(hdf5, "PROGRAM", [sys.executable, "-c", program])
    monkeypatch.setattr(hdf5, "SECONDS", 2)
    started = time.monotonic()
    refused(write(tmp_path / "a.h5", keras_h5(keras_network())), match)
    assert time.monotonic() - started < 20


# The command


def call(*words, code=0):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("weights.js", weights_js(files.rnn_tutorial()[0]),
         ["rnn-tutorial, 355 numbers", "1 layer of 6 units, 2 mixtures, pen bernoulli", "network is 40 of"]),
        ("cat.gen.json", json.dumps(files.sketch_rnn()[0]),
         ["sketch-rnn, 417 numbers", "1 layer of 6 units, 2 mixtures, pen categorical", "unit of the network is 71.5"]),
        ("model.h5", keras_h5(keras_network(), model_config(keras_network())),
         ["keras, 691 numbers", "2 layers of 6 units", "means sigmoid; a unit of the network is 1 of"]),
    ],
)  # fmt: skip
def test_convert_and_use(tmp_path, name, data, told):
    path, out, strokes = write(tmp_path / name, data), tmp_path / "out", tmp_path / "strokes.npz"
    zigzags(20).save(strokes)
    output = call("convert", path, "--out", out)
    for words in (*told, f"wrote {out}"):
        assert words in output
    loaded, read = FusedLSTMMDN.from_pretrained(out), foreign.read(path)
    assert loaded.config() == read.config()
    assert loaded.scale == read.scale
    torch.testing.assert_close(loaded.state_dict(), read.state_dict(), rtol=0, atol=0)
    assert "nats per point" in call("eval", out, strokes, "--part", "all", "--device", "cpu")
    call("sample", out, "-n", 2, "--max-steps", 20, "--out", tmp_path / "x.svg", "--device", "cpu")
    refused_again = call("convert", path, "--out", out, code=2)
    assert f"{out}: is there already, and not an empty directory" in refused_again


def test_convert_refuses_and_writes_nothing(tmp_path):
    path = write(tmp_path / "a.js", "<html>")
    assert "a.js: is a web page (HTML)" in call("convert", path, "--out", tmp_path / "out", code=2)
    path = write(tmp_path / "b.js", weights_js(files.rnn_tutorial()[0]))
    assert "--scale must be above zero" in call("convert", path, "--out", tmp_path / "out", "--scale", 0, code=2)
    assert "rnn-tutorial files take no option means" in call(
        "convert", path, "--out", tmp_path / "out", "--means", "linear", code=2
    )
    assert "list of three" in call("convert", path, "--out", tmp_path / "out", "--format", "sketch-rnn", code=2)
    assert "means must be" in call(
        "convert",
        write(tmp_path / "c.h5", keras_h5(keras_network())),
        "--out",
        tmp_path / "out",
        "--means",
        "x",
        code=2,
    )
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    call("convert", path, "--out", tmp_path / "out")
