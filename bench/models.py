"""The networks of the benchmark, and PyTorch's own modules with the same weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusedmdn import FusedLSTMMDN

SEED = 0


@dataclass(frozen=True)
class Config:
    """A network: layers of hidden units, mixture components; with skip, input to every layer and all to the head."""

    layers: int
    hidden: int
    mixtures: int
    skip: bool


CONFIGS = {
    "A": Config(1, 900, 20, False),
    "B": Config(3, 400, 20, True),
    "C": Config(2, 400, 2, False),
    "D": Config(1, 512, 20, False),
}


def config_of(name: str) -> Config:
    """One of CONFIGS, or "1xH" for a layer of H units like A's and D's.

    Raises:
        ValueError: there is no such network.
    """
    if name in CONFIGS:
        return CONFIGS[name]
    grid = re.fullmatch(r"1x([1-9][0-9]*)", name)
    if grid is None:
        raise ValueError(f"model must be one of {', '.join(CONFIGS)} or 1xH, as 1x128, got {name!r}")
    return Config(1, int(grid[1]), 20, False)


def build(name: str, hidden: int | None = None, **options: Any) -> FusedLSTMMDN:
    """The model of that name with its fixed weights, float32 on the CPU; `options` are more of FusedLSTMMDN's."""
    config = config_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return FusedLSTMMDN(
            3, hidden or config.hidden, config.layers, config.mixtures, skip=config.skip, pen="bernoulli", **options
        )


def inputs_of(x: Tensor, below: list[Tensor], skip: bool) -> Tensor:
    """The next layer's input, from the network's and the outputs of the layers so far."""
    if not below:
        return x
    return torch.cat([x, below[-1]], -1) if skip else below[-1]


class LSTMStack(nn.Module):
    """nn.LSTM + nn.Linear: one nn.LSTM of L layers, or with skip connections L of one layer each."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        super().__init__()
        L, H, I, device = model.num_layers, model.hidden_size, model.input_size, model.head.weight.device
        self.skip, self.hidden_size, self.num_mixtures = model.skip, H, model.num_mixtures
        self.depth = 1 if model.skip else L  # of each nn.LSTM
        self.layers = nn.ModuleList(
            [nn.LSTM(I if n == 0 else H + I, H, device=device) for n in range(L)]
            if model.skip
            else [nn.LSTM(I, H, L, device=device)]
        )
        self.head = nn.Linear(model.head.in_features, model.head.out_features, device=device)
        copy_weights(model, self.named())

    def named(self) -> dict[str, Tensor]:
        """The parameters under FusedLSTMMDN's names."""
        names: dict[str, Tensor] = {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for n, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                names[name.replace("_l0", f"_l{n}") if self.skip else name] = parameter
        return names

    def forward(
        self, x: Tensor, state: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Raw output (T, B, 1 + 6M) and every nn.LSTM's state, from inputs (T, B, 3)."""
        outputs: list[Tensor] = []
        new_state = []
        for n, layer in enumerate(self.layers):
            h, state_n = layer(inputs_of(x, outputs, self.skip), None if state is None else state[n])
            outputs.append(h)
            new_state.append(state_n)
        return self.head(torch.cat(outputs, -1) if self.skip else outputs[-1]), new_state


class CellStack(nn.Module):
    """nn.LSTMCell + nn.Linear, one step a call; TorchScript can compile it."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        super().__init__()
        H, I, device = model.hidden_size, model.input_size, model.head.weight.device
        self.skip, self.hidden_size, self.num_layers = model.skip, H, model.num_layers
        self.num_mixtures = model.num_mixtures
        below = [I] + [H + I * model.skip] * (model.num_layers - 1)
        self.cells = nn.ModuleList([nn.LSTMCell(size, H, device=device) for size in below])
        self.head = nn.Linear(model.head.in_features, model.head.out_features, device=device)
        copy_weights(model, self.named())

    @torch.jit.unused
    def named(self) -> dict[str, Tensor]:
        """The parameters under FusedLSTMMDN's names."""
        names: dict[str, Tensor] = {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for n, cell in enumerate(self.cells):
            names.update({f"{name}_l{n}": parameter for name, parameter in cell.named_parameters()})
        return names

    def top(self, x: Tensor, h: list[Tensor], c: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What the head reads, and the new h and c of every layer, from a row (B, 3)."""
        new_h: list[Tensor] = []
        new_c: list[Tensor] = []
        below = x
        for n, cell in enumerate(self.cells):
            if n and self.skip:
                below = torch.cat([x, below], -1)
            below, c_n = cell(below, (h[n], c[n]))
            new_h.append(below)
            new_c.append(c_n)
        return torch.cat(new_h, -1) if self.skip else below, new_h, new_c

    def forward(self, x: Tensor, h: list[Tensor], c: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Raw output (B, 1 + 6M), and the new h and c of every layer, from a row (B, 3)."""
        top, h, c = self.top(x, h, c)
        return self.head(top), h, c


def copy_weights(model: FusedLSTMMDN, into: dict[str, Tensor]) -> None:
    """Copy the model's weights into the parameters of the same names, which must be all that it has."""
    ours = dict(model.named_parameters())
    if ours.keys() != into.keys():
        raise ValueError(f"the peer lacks or has more of {sorted(ours.keys() ^ into.keys())}")
    with torch.no_grad():
        for name, parameter in into.items():
            parameter.copy_(ours[name])


def copied(model: FusedLSTMMDN) -> dict[str, Tensor]:
    """Parameters of the model's names and values that are nobody else's."""
    return {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
