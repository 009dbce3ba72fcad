"""PyTorch's samplers: loops over nn.LSTM and nn.LSTMCell, a TorchScript loop, and a torch.compile'd step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusedmdn import FusedLSTMMDN

from ..models import CellStack, LSTMStack


def draw_rows(raw: Tensor, M: int) -> Tensor:
    """A row (N, 3) from each mixture (N, 1 + 6M)."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = raw.split([1, M, M, M, M, M, M], -1)
    j = torch.multinomial(torch.softmax(pi, -1), 1)
    rho = torch.tanh(r.gather(-1, j))
    n = torch.randn(raw.shape[0], 2)
    n1, n2 = n[:, :1], n[:, 1:]
    dx = mu_x.gather(-1, j) + s_x.gather(-1, j).exp() * n1
    dy = mu_y.gather(-1, j) + s_y.gather(-1, j).exp() * (rho * n1 + torch.sqrt(1 - rho * rho) * n2)
    return torch.cat([dx, dy, torch.bernoulli(torch.sigmoid(eos))], -1)


class Step(Protocol):
    """One step of a network and one draw."""

    M: int

    def start(self, batch: int) -> Any:
        """The state of zeros."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Raw output, row drawn from it, and new state from a row (B, 3)."""


class Loop:
    """A Python loop over a step, under inference mode."""

    def __init__(self, network: Step) -> None:
        self.network = network

    @torch.inference_mode()
    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        state, outputs = self.network.start(x.shape[1]), []
        for row in x:
            raw, _, state = self.network.step(row, state)
            outputs.append(raw)
        return torch.stack(outputs)

    @torch.inference_mode()
    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return draw_rows(raw, self.network.M)

    @torch.inference_mode()
    def sample(self, batch: int, steps: int) -> Tensor:
        """See `Sampler.sample`."""
        state, row, rows = self.network.start(batch), torch.zeros(batch, 3), []
        for _ in range(steps):
            _, row, state = self.network.step(row, state)
            rows.append(row)
        return torch.stack(rows)


class LSTMStep:
    """nn.LSTM called with sequences of one row."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        self.net = LSTMStack(model).eval()
        self.M = model.num_mixtures

    def start(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """See `Step.start`."""
        shape = self.net.depth, batch, self.net.hidden_size
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in self.net.layers]

    def step(self, x: Tensor, state: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Any]:
        """See `Step.step`."""
        raw, state = self.net(x[None], state)
        return raw[0], draw_rows(raw[0], self.M), state


class CellStep:
    """nn.LSTMCell for every layer; with `compiler`, that function of the whole step."""

    def __init__(self, model: FusedLSTMMDN, compiler: Callable[..., Any] | None = None) -> None:
        self.net = CellStack(model).eval()
        self.M = model.num_mixtures
        self.whole = self._whole if compiler is None else compiler(self._whole)

    def start(self, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """See `Step.start`."""
        h, c = ([torch.zeros(batch, self.net.hidden_size) for _ in self.net.cells] for _ in range(2))
        return h, c

    def step(self, x: Tensor, state: tuple[list[Tensor], list[Tensor]]) -> tuple[Tensor, Tensor, Any]:
        """See `Step.step`."""
        raw, row, h, c = self.whole(x, *state)
        return raw, row, (h, c)

    def _whole(self, x: Tensor, h: list[Tensor], c: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        raw, h, c = self.net(x, h, c)
        return raw, draw_rows(raw, self.M), h, c


class ScriptedLoop(nn.Module):
    """The loop over nn.LSTMCell, to be compiled whole by torch.jit.script."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        super().__init__()
        self.net = CellStack(model)
        self.M = model.num_mixtures

    @torch.jit.export
    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        h = [torch.zeros(x.shape[1], self.net.hidden_size) for _ in range(self.net.num_layers)]
        c = [torch.zeros(x.shape[1], self.net.hidden_size) for _ in range(self.net.num_layers)]
        outputs: list[Tensor] = []
        for t in range(x.shape[0]):
            raw, h, c = self.net(x[t], h, c)
            outputs.append(raw)
        return torch.stack(outputs)

    @torch.jit.export
    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return draw_rows(raw, self.M)

    @torch.jit.export
    def sample(self, batch: int, steps: int) -> Tensor:
        """See `Sampler.sample`."""
        h = [torch.zeros(batch, self.net.hidden_size) for _ in range(self.net.num_layers)]
        c = [torch.zeros(batch, self.net.hidden_size) for _ in range(self.net.num_layers)]
        row = torch.zeros(batch, 3)
        rows: list[Tensor] = []
        for _ in range(steps):
            raw, h, c = self.net(row, h, c)
            row = draw_rows(raw, self.M)
            rows.append(row)
        return torch.stack(rows)


class Scripted:
    """`ScriptedLoop` compiled, under inference mode."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        self.loop = torch.jit.script(ScriptedLoop(model).eval())

    @torch.inference_mode()
    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        return self.loop.raw(x)

    @torch.inference_mode()
    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return self.loop.draw(raw)

    @torch.inference_mode()
    def sample(self, batch: int, steps: int) -> Tensor:
        """See `Sampler.sample`."""
        return self.loop.sample(batch, steps)


def lstm_loop(model: FusedLSTMMDN) -> Loop:
    """A Python loop over nn.LSTM."""
    return Loop(LSTMStep(model))


def cell_loop(model: FusedLSTMMDN) -> Loop:
    """A Python loop over nn.LSTMCell."""
    return Loop(CellStep(model))


def compiled_loop(model: FusedLSTMMDN) -> Loop:
    """A Python loop over a step of nn.LSTMCell and the draw, compiled together for each batch."""
    return Loop(CellStep(model, lambda step: torch.compile(step, dynamic=False)))
