"""Sampling: one call draws `steps` rows of every sequence, each row fed back as the next input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fusedmdn import FusedLSTMMDN

from ..cell import Cell, Contender, Prepared
from ..models import build
from ..peers import torch_sampling
from ..problems import strokes
from ..samplers import Sampler, check_draws, exact_raw, largest, our_error, run_ours
from ..settings import Settings

TOLERANCE = 1e-3
ROUNDED_WEIGHTS = 2e-2  # bfloat16 has 8 bits
TORCH_SCRIPT = "TorchScript loop"  # profiles in its first run and compiles in its second
OURS = {"ours float32": None, "ours bfloat16": torch.bfloat16}


def cells(settings: Settings) -> Iterator[Cell]:
    """One cell for each model and batch."""
    for name in settings.models:
        model = build(name, settings.sizes.hidden)
        samplers = peers(model, settings)
        for batch, steps in settings.sizes.steps.items():
            x = strokes(settings.sizes.check_steps, batch)
            exact = functools.cache(functools.partial(exact_raw, model, x))
            contenders = [ours(model, label, batch, steps, settings) for label in OURS]
            contenders += [peer(label, make, x, exact, steps) for label, make in samplers.items()]
            yield Cell("sampling", name, {"batch": batch, "steps": steps}, "us/step", contenders)


def peers(model: FusedLSTMMDN, settings: Settings) -> dict[str, Callable[[], Sampler]]:
    """How each peer is built, its draws checked; built once for all batches."""

    def jax() -> Sampler:
        from ..peers.jax_peer import JaxSampler

        return JaxSampler(model)

    def onnx() -> Sampler:
        from ..peers.onnx_peer import OnnxSampler

        return OnnxSampler(model, settings.threads)

    makers: dict[str, Callable[[], Sampler]] = {
        "nn.LSTM loop": lambda: torch_sampling.lstm_loop(model),
        "nn.LSTMCell loop": lambda: torch_sampling.cell_loop(model),
        TORCH_SCRIPT: lambda: torch_sampling.Scripted(model),
        "torch.compile step": lambda: torch_sampling.compiled_loop(model),
        "JAX scan": jax,
        "ONNX Runtime": onnx,
    }

    def checked(make: Callable[[], Sampler]) -> Sampler:
        sampler = make()
        check_draws(sampler, model, settings.sizes.check_draws)
        return sampler

    return {label: functools.cache(functools.partial(checked, make)) for label, make in makers.items()}


def ours(model: FusedLSTMMDN, label: str, batch: int, steps: int, settings: Settings) -> Contender:
    """Our operator, its weights in the dtype that the label names."""
    dtype = OURS[label]

    def prepare() -> Prepared:
        return Prepared(
            lambda: run_ours(model, dtype, batch, steps),
            lambda: our_error(model, dtype, batch, settings.sizes.check_steps),
        )

    return Contender(label, "ours", prepare, TOLERANCE if dtype is None else ROUNDED_WEIGHTS, steps)


def peer(label: str, make: Callable[[], Sampler], x: Tensor, exact: Callable[[], Tensor], steps: int) -> Contender:
    """A peer at the batch of x; exact: the raw outputs that it must give over x."""
    batch = x.shape[1]

    def prepare() -> Prepared:
        sampler = make()
        return Prepared(lambda: sampler.sample(batch, steps), lambda: largest(sampler.raw(x), exact()))

    return Contender(label, "peer", prepare, TOLERANCE, steps, 2 if label == TORCH_SCRIPT else 1)
