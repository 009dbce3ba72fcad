"""LSTM layers of other projects, composed over the stack: FlashRNN, haste and TorchRL's Triton kernels.

Each offers one layer, of one direction, over sequences of one length; so each layer is called in turn, what it reads is
concatenated where there are skip connections, and head and loss are PyTorch's, as nn.LSTM's are. Ragged sequences are
padded and masked in the loss. All are imported when they are made: ImportError where one is not installed.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedmdn import FusedLSTMMDN

from ..cell import Cannot
from ..precision import elements
from ..problems import Problem
from .layers import LayerTrainer
from .limits import only_cuda, only_dtypes

TILE = 16  # hidden units that a warp of FlashRNN's fused kernels multiplies


class FlashRNNTrainer(LayerTrainer):
    """flashrnn(Wx, R, b), one head of all hidden units; gates in PyTorch's order, its second bias in the products.

    backend: "cuda_fused", one kernel for all steps; or "cuda", a product and a kernel in every step.

    Raises:
        Cannot: not on CUDA; or a dtype or a hidden size that the backend does not compute.
    """

    batch_first = True

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str, backend: str = "cuda_fused") -> None:
        only_cuda("FlashRNN", model.head.weight.device)
        able = ("tf32", "bf16", "fp16") if backend == "cuda_fused" else ("float32", "bf16", "fp16")
        only_dtypes(f"FlashRNN's {backend}", dtype, able)
        if backend == "cuda_fused" and model.hidden_size % TILE:
            raise Cannot(f"FlashRNN's fused kernels take multiples of {TILE} hidden units, not {model.hidden_size}")
        self.flashrnn, self.backend = importlib.import_module("flashrnn").flashrnn, backend
        super().__init__(model, problem, dtype)
        self.elements = elements(dtype)

    def _layer(self, n: int, below: Tensor) -> Tensor:
        B, T, _ = below.shape
        projected = F.linear(below, self.p[f"weight_ih_l{n}"], self.p[f"bias_ih_l{n}"])
        states, _ = self.flashrnn(
            projected.view(B, T, 4, 1, self.H),
            self.p[f"weight_hh_l{n}"].to(self.elements).view(4, 1, self.H, self.H),
            self.p[f"bias_hh_l{n}"].to(self.elements).view(4, 1, self.H),
            function="lstm",
            backend=self.backend,
            dtype=str(self.elements).removeprefix("torch."),
        )
        return states[0].reshape(B, T, self.H)


class TritonTrainer(LayerTrainer):
    """TorchRL's lstm_triton, as its LSTMModule calls it; no sequence begins anew inside.

    Raises:
        Cannot: not on CUDA, or fp16.
    """

    batch_first = True

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str) -> None:
        only_cuda("TorchRL's Triton backend", model.head.weight.device)
        only_dtypes("TorchRL's Triton backend", dtype, ("float32", "tf32", "bf16"))
        self.lstm = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton").lstm_triton
        super().__init__(model, problem, dtype)
        B, T, _ = self.x.shape
        self.start = self.x.new_zeros(B, T, self.H)
        self.begins = torch.zeros(B, T, dtype=torch.bool, device=self.device)
        self.options = {"compute_dtype": elements(dtype), "input_precision": "ieee" if dtype == "float32" else "tf32"}

    def _layer(self, n: int, below: Tensor) -> Tensor:
        names = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
        weights = [self.p[f"{name}_l{n}"] for name in names]
        with torch.autocast(self.device.type, enabled=False):  # it casts by itself, of float32 inputs
            return self.lstm(below.float(), self.start, self.start, *weights, self.begins, **self.options)[0]


class HasteTrainer(LayerTrainer):
    """haste_pytorch.LSTM, a module for each layer; its gates are in the order i, g, f, o, and its biases are one.

    Raises:
        Cannot: not on CUDA, where it is a Python loop; or another dtype than float32.
    """

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str) -> None:
        only_cuda("haste", model.head.weight.device)
        only_dtypes("haste's LSTM", dtype, ("float32",))
        self.module = importlib.import_module("haste_pytorch").LSTM
        super().__init__(model, problem, dtype)

    def gradients(self) -> dict[str, Tensor]:
        """See `TorchTrainer.gradients`."""
        given = super().gradients()
        named = {name: gradient for name, gradient in given.items() if name.startswith("head.")}
        for n in range(self.L):
            named[f"weight_ih_l{n}"] = _in_our_order(given[f"{n}.kernel"]).t()
            named[f"weight_hh_l{n}"] = _in_our_order(given[f"{n}.recurrent_kernel"]).t()
            named[f"bias_ih_l{n}"] = named[f"bias_hh_l{n}"] = _in_our_order(given[f"{n}.bias"])
        return named

    def _parameters(self, model: FusedLSTMMDN) -> dict[str, Tensor]:
        ours = {name: p.detach().clone() for name, p in model.named_parameters()}
        parameters: dict[str, Tensor] = {name: nn.Parameter(ours[name]) for name in ("head.weight", "head.bias")}
        self.layers: list[Any] = []
        for n in range(model.num_layers):
            weights = [ours[f"{name}_l{n}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            layer = self.module(weights[0].shape[1], model.hidden_size).to(weights[0].device)
            layer.from_native_weights(*weights)
            self.layers.append(layer)
            parameters.update({f"{n}.{name}": parameter for name, parameter in layer.named_parameters()})
        return parameters

    def _layer(self, n: int, below: Tensor) -> Tensor:
        return self.layers[n](below)[0]


def _in_our_order(blocks: Tensor) -> Tensor:
    """Four blocks of the last dimension: i, g, f, o -> i, f, g, o."""
    i, g, f, o = blocks.chunk(4, -1)
    return torch.cat([i, f, g, o], -1)
