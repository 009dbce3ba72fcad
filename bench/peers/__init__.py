"""The peers, one file per family, each used as its own documentation says; here are their names, by work and device.

An optional package is imported when its peer is made: one that is missing costs its own row alone, by ImportError.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from fusedmdn import FusedLSTMMDN

from ..cell import Cannot
from ..contracts import MakeLoss, MakeSampler, MakeTrainer, Trainer
from ..problems import Problem
from . import cuda_layers, torch_losses, torch_sampling, torch_training

TORCH_SCRIPT = "TorchScript"
LOOPS = ("nn.LSTM loop", "nn.LSTMCell loop", TORCH_SCRIPT, "torch.compile step", "CUDA graph of a step")  # step by step
# whose memory on a GPU PyTorch's allocator does not see, or saw when a graph was captured
UNSEEN = ("JAX", "JAX scan", "CUDA graph of a step", "torch.compile step")
WARM_UP = {TORCH_SCRIPT: 5}  # runs until all is compiled; one of everybody else


def training(device_type: str) -> dict[str, MakeTrainer]:
    """Who trains on sequences of one length."""
    lstm = torch_training.LSTMTrainer
    makers: dict[str, MakeTrainer] = {
        "nn.LSTM + eager loss": lstm,
        "nn.LSTM + torch.compile loss": functools.partial(lstm, compiled="loss"),
        "torch.compile": functools.partial(lstm, compiled="all"),
        "nn.LSTMCell loop": torch_training.CellTrainer,
        TORCH_SCRIPT: torch_training.ScriptedTrainer,
        "JAX": _later("jax_peer", "JaxTrainer"),
        "ONNX Runtime": _onnx_trainer,
    }
    return makers | _layers(device_type)


def ragged(device_type: str) -> dict[str, MakeTrainer]:
    """Who trains on sequences of several lengths."""
    makers: dict[str, MakeTrainer] = {
        "nn.LSTM padded": functools.partial(torch_training.LSTMTrainer, compiled="loss"),
        "nn.LSTM packed": functools.partial(torch_training.PackedTrainer, compiled="loss"),
    }
    return makers | {f"{name} padded": make for name, make in _layers(device_type).items()}


def written_out(device_type: str) -> dict[str, MakeTrainer]:
    """Who trains with peepholes, or with gradients clipped at every step."""
    return {"written-out cell loop": torch_training.WrittenCellTrainer}


def sampling(device_type: str) -> dict[str, MakeSampler]:
    """Who samples."""
    makers: dict[str, MakeSampler] = {
        "nn.LSTM loop": torch_sampling.lstm_loop,
        "nn.LSTMCell loop": torch_sampling.cell_loop,
        TORCH_SCRIPT: torch_sampling.scripted_loop,
        "torch.compile step": torch_sampling.compiled_loop,
        "JAX scan": _later("jax_peer", "JaxSampler"),
    }
    if device_type == "cuda":
        return makers | {"CUDA graph of a step": torch_sampling.GraphedLoop}
    return makers | {"ONNX Runtime": _later("onnx_peer", "OnnxSampler")}


def losses(device_type: str) -> dict[str, MakeLoss]:
    """Who computes the loss alone."""
    return {
        "eager": torch_losses.eager_mean,
        "naive eager": torch_losses.naive_mean,
        "torch.compile": torch_losses.compiled_mean,
        "JAX": _later("jax_peer", "jax_mean"),
    }


def _layers(device_type: str) -> dict[str, MakeTrainer]:
    if device_type != "cuda":
        return {}
    flashrnn = cuda_layers.FlashRNNTrainer
    return {
        "FlashRNN": flashrnn,
        "FlashRNN, alternating": functools.partial(flashrnn, backend="cuda"),
        "haste": cuda_layers.HasteTrainer,
        "TorchRL Triton": cuda_layers.TritonTrainer,
    }


def _onnx_trainer(model: FusedLSTMMDN, problem: Problem, dtype: str) -> Trainer:
    raise Cannot("ONNX Runtime's packages on PyPI run inference only")


def _later(module: str, name: str) -> Any:
    """What is made by a module that is imported when it is first needed."""

    def make(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)(*arguments)

    return make
