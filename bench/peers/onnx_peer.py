"""ONNX Runtime: one graph of ONNX's own LSTM operators a step, the row drawn with NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from fusedmdn import FusedLSTMMDN

from ..cell import Cannot
from .limits import only_dtypes

OPSET = 14
IR_VERSION = 8


def reorder(weight: Tensor) -> Tensor:
    """Blocks in PyTorch's order i, f, g, o -> ONNX's i, o, f, c."""
    i, f, g, o = weight.detach().chunk(4)
    return torch.cat([i, o, f, g])


def graph(model: FusedLSTMMDN) -> onnx.ModelProto:
    """Inputs x (1, B, 3), h0, c0, h1 and so on (1, B, H); outputs raw (1, B, 1 + 6M), new_h0, new_c0 and so on."""
    H = model.hidden_size
    nodes, weights, tops = [], [], []
    inputs = [_value("x", 3)]
    outputs = [_value("raw", model.head.out_features)]

    def constant(name: str, value: Tensor) -> str:
        weights.append(numpy_helper.from_array(value.detach().contiguous().numpy(), name))
        return name

    below = "x"
    for n in range(model.num_layers):
        if n and model.skip:
            nodes.append(helper.make_node("Concat", ["x", below], [f"input{n}"], axis=2))
            below = f"input{n}"
        w, r, *biases = (
            reorder(getattr(model, f"{name}_l{n}")) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        given = [constant(f"W{n}", w[None]), constant(f"R{n}", r[None]), constant(f"B{n}", torch.cat(biases)[None])]
        nodes.append(
            helper.make_node(
                "LSTM", [below, *given, "", f"h{n}", f"c{n}"], ["", f"new_h{n}", f"new_c{n}"], hidden_size=H
            )
        )
        inputs += [_value(f"h{n}", H), _value(f"c{n}", H)]
        outputs += [_value(f"new_h{n}", H), _value(f"new_c{n}", H)]
        below = f"new_h{n}"
        tops.append(below)
    if model.skip:
        nodes.append(helper.make_node("Concat", tops, ["top"], axis=2))
        below = "top"
    head = constant("head_weight", model.head.weight.t()), constant("head_bias", model.head.bias)
    nodes.append(helper.make_node("MatMul", [below, head[0]], ["product"]))
    nodes.append(helper.make_node("Add", ["product", head[1]], ["raw"]))
    whole = helper.make_graph(nodes, "step", inputs, outputs, weights)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _value(name: str, size: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "B", size])


class OnnxSampler:
    """A session that runs a step, and a NumPy draw between two steps.

    Raises:
        Cannot: another dtype than float32, or a model that is not on the CPU.
    """

    def __init__(self, model: FusedLSTMMDN, dtype: str, threads: int) -> None:
        only_dtypes("ONNX Runtime's LSTM", dtype, ("float32",))
        if model.head.weight.device.type != "cpu":
            raise Cannot("ONNX Runtime's package of this name runs on the CPU")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        proto = graph(model).SerializeToString()
        self.session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        self.L, self.H, self.M = model.num_layers, model.hidden_size, model.num_mixtures
        self.state = [f"{name}{n}" for n in range(self.L) for name in "hc"]
        self.outputs = ["raw", *(f"new_{name}" for name in self.state)]
        self.generator = np.random.default_rng(0)

    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        state, outputs = self._start(x.shape[1]), []
        for row in x.numpy():
            raw, state = self._step(row[None], state)
            outputs.append(raw)
        return torch.from_numpy(np.concatenate(outputs))

    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return torch.from_numpy(self._draw(raw.numpy()))

    def sample(self, batch: int, steps: int) -> np.ndarray:
        """See `Sampler.sample`."""
        state, row, rows = self._start(batch), np.zeros((1, batch, 3), np.float32), []
        for _ in range(steps):
            raw, state = self._step(row, state)
            row = self._draw(raw[0])[None]
            rows.append(row)
        return np.concatenate(rows)

    def _start(self, batch: int) -> dict[str, np.ndarray]:
        return {name: np.zeros((1, batch, self.H), np.float32) for name in self.state}

    def _step(self, row: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        raw, *new = self.session.run(self.outputs, {"x": row, **state})
        return raw, dict(zip(self.state, new, strict=True))

    def _draw(self, raw: np.ndarray) -> np.ndarray:
        rows, M, random = np.arange(len(raw)), self.M, self.generator
        exponential = random.standard_exponential((len(raw), M), dtype=np.float32)
        j = 1 + (raw[:, 1 : 1 + M] - np.log(exponential)).argmax(1)  # the Gumbel-max trick
        mu_x, mu_y, s_x, s_y, r = (raw[rows, j + k * M] for k in range(1, 6))
        n = random.standard_normal((len(raw), 2), dtype=np.float32)
        rho = np.tanh(r)
        out = np.empty((len(raw), 3), np.float32)
        out[:, 0] = mu_x + np.exp(s_x) * n[:, 0]
        out[:, 1] = mu_y + np.exp(s_y) * (rho * n[:, 0] + np.sqrt(1 - rho * rho) * n[:, 1])
        out[:, 2] = random.random(len(raw), dtype=np.float32) < 1 / (1 + np.exp(-raw[:, 0]))
        return out
