"""PyTorch's samplers: loops over nn.LSTM and nn.LSTMCell, TorchScript, torch.compile, and a captured CUDA graph.

Weights and state have the precision's dtype. Draws are in float32, by nothing that waits for the device:
torch.multinomial looks at its weights, so the component is the largest weight over an exponential variable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusedmdn import FusedLSTMMDN

from ..models import CellStack, LSTMStack
from ..precision import elements
from .compiling import compiled
from .limits import only_cuda, refuse_tf32_on_cpu
from .torch_training import OWN

WARM_UP = 3  # runs before a capture


def draw_rows(raw: Tensor, M: int) -> Tensor:
    """A row (N, 3) from each mixture (N, 1 + 6M), in float32."""
    eos, pi, mu_x, mu_y, s_x, s_y, r = torch.split(raw.float(), [1, M, M, M, M, M, M], -1)
    weight = torch.softmax(pi, -1)
    j = (weight / torch.empty_like(weight).exponential_()).argmax(-1, keepdim=True)
    rho = torch.tanh(r.gather(-1, j))
    n1, n2 = torch.randn(raw.shape[0], 2, device=raw.device).split(1, -1)
    dx = mu_x.gather(-1, j) + s_x.gather(-1, j).exp() * n1
    dy = mu_y.gather(-1, j) + s_y.gather(-1, j).exp() * (rho * n1 + torch.sqrt(1 - rho * rho) * n2)
    return torch.cat([dx, dy, torch.bernoulli(torch.sigmoid(eos))], -1)


class Step(Protocol):
    """One step of a network and one draw."""

    M: int
    weight: Tensor  # any of its weights: they are of one dtype, on one device

    def start(self, batch: int) -> Any:
        """The state of zeros."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Raw output, row drawn from it, and new state from a row (B, 3) of float32."""


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
            outputs.append(raw.float())
        return torch.stack(outputs)

    @torch.inference_mode()
    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return draw_rows(raw, self.network.M)

    @torch.inference_mode()
    def sample(self, batch: int, steps: int) -> Tensor:
        """See `Sampler.sample`."""
        state, row, rows = self.network.start(batch), torch.zeros(batch, 3, device=self.network.weight.device), []
        for _ in range(steps):
            _, row, state = self.network.step(row, state)
            rows.append(row)
        return torch.stack(rows)


class LSTMStep:
    """nn.LSTM called with sequences of one row."""

    def __init__(self, model: FusedLSTMMDN, dtype: str) -> None:
        refuse_tf32_on_cpu(dtype, model.head.weight.device)
        self.net = LSTMStack(model).to(elements(dtype)).eval()
        self.M, self.weight = model.num_mixtures, self.net.head.weight

    def start(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """See `Step.start`."""
        shape = self.net.depth, batch, self.net.hidden_size
        return [(self.weight.new_zeros(shape), self.weight.new_zeros(shape)) for _ in self.net.layers]

    def step(self, x: Tensor, state: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Any]:
        """See `Step.step`."""
        raw, state = self.net(x[None].to(self.weight.dtype), state)
        return raw[0], draw_rows(raw[0], self.M), state


Whole = Callable[[Tensor, list[Tensor], list[Tensor]], tuple[Tensor, Tensor, list[Tensor], list[Tensor]]]


class CellStep:
    """nn.LSTMCell for every layer; with `compiler`, that function of the whole step."""

    def __init__(self, model: FusedLSTMMDN, dtype: str, compiler: Callable[[Whole], Whole] | None = None) -> None:
        refuse_tf32_on_cpu(dtype, model.head.weight.device)
        self.net = CellStack(model).to(elements(dtype)).eval()
        self.M, self.weight = model.num_mixtures, self.net.head.weight
        self.whole = self._whole if compiler is None else compiler(self._whole)

    def start(self, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """See `Step.start`."""
        h, c = ([self.weight.new_zeros(batch, self.net.hidden_size) for _ in self.net.cells] for _ in "hc")
        return h, c

    def step(self, x: Tensor, state: tuple[list[Tensor], list[Tensor]]) -> tuple[Tensor, Tensor, Any]:
        """See `Step.step`."""
        raw, row, h, c = self.whole(x, *state)
        return raw, row, (h, c)

    def _whole(self, x: Tensor, h: list[Tensor], c: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        raw, h, c = self.net(x.to(self.weight.dtype), h, c)
        return raw, draw_rows(raw, self.M), h, c


def reduced_overhead(step: Whole) -> Whole:
    """torch.compile's own CUDA graphs: what a replay gives lies where the next will write, so it is cloned."""
    graphed = compiled(step, fullgraph=True, mode="reduce-overhead")

    def cloned(x: Tensor, h: list[Tensor], c: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        raw, row, h, c = graphed(x, h, c)
        return raw.clone(), row.clone(), [v.clone() for v in h], [v.clone() for v in c]

    return cloned


class ScriptedLoop(nn.Module):
    """The loop over nn.LSTMCell, to be compiled whole by torch.jit.script."""

    __constants__ = ("own",)

    def __init__(self, model: FusedLSTMMDN) -> None:
        super().__init__()
        self.own = next(OWN)
        self.net = CellStack(model)
        self.M = model.num_mixtures

    @torch.jit.export
    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        weight = self.net.head.weight
        h = [weight.new_zeros([x.shape[1], self.net.hidden_size]) for _ in range(self.net.num_layers)]
        c = [weight.new_zeros([x.shape[1], self.net.hidden_size]) for _ in range(self.net.num_layers)]
        outputs: list[Tensor] = []
        for t in range(x.shape[0]):
            raw, h, c = self.net(x[t].to(weight.dtype), h, c)
            outputs.append(raw.float())
        return torch.stack(outputs)

    @torch.jit.export
    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return draw_rows(raw, self.M)

    @torch.jit.export
    def sample(self, batch: int, steps: int) -> Tensor:
        """See `Sampler.sample`."""
        weight = self.net.head.weight
        h = [weight.new_zeros([batch, self.net.hidden_size]) for _ in range(self.net.num_layers)]
        c = [weight.new_zeros([batch, self.net.hidden_size]) for _ in range(self.net.num_layers)]
        row = torch.zeros(batch, 3, device=weight.device)
        rows: list[Tensor] = []
        for _ in range(steps):
            raw, h, c = self.net(row.to(weight.dtype), h, c)
            row = draw_rows(raw, self.M)
            rows.append(row)
        return torch.stack(rows)


class Scripted:
    """`ScriptedLoop` compiled, under inference mode. It profiles its first run and compiles in its second."""

    def __init__(self, model: FusedLSTMMDN, dtype: str) -> None:
        refuse_tf32_on_cpu(dtype, model.head.weight.device)
        self.loop = torch.jit.script(ScriptedLoop(model).to(elements(dtype)).eval())

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


Run = Callable[[], None]


def cuda_graph(run: Run) -> Run:
    """A captured CUDA graph's replay of what `run` does, after runs on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Captured:
    """A step of one batch whose tensors never move: row, raw, and state, all written in place by `replay`."""

    def __init__(self, step: CellStep, batch: int, capture: Callable[[Run], Run]) -> None:
        self.step, self.state = step, step.start(batch)
        self.row = torch.zeros(batch, 3, device=step.weight.device)
        self.raw = step.weight.new_zeros(batch, step.net.head.out_features)
        self.replay = capture(self._run)

    def restart(self) -> None:
        """Zeros, as before the first step."""
        for tensor in (self.row, *self.state[0], *self.state[1]):
            tensor.zero_()

    def _run(self) -> None:
        raw, row, new = self.step.step(self.row, self.state)
        self.raw.copy_(raw)
        self.row.copy_(row)
        for kept, given in zip(self.state, new, strict=True):
            for tensor, value in zip(kept, given, strict=True):
                tensor.copy_(value)


class GraphedLoop:
    """nn.LSTMCell and the draw in one CUDA graph for each batch, replayed once a step; the row is fed back inside.

    Raises:
        Cannot: the model is not on a GPU, and `capture` is not given.
    """

    def __init__(
        self, model: FusedLSTMMDN, dtype: str, threads: int = 1, capture: Callable[[Run], Run] | None = None
    ) -> None:
        if capture is None:
            only_cuda("a CUDA graph", model.head.weight.device)
        self.step = CellStep(model, dtype)
        self.captured = functools.cache(functools.partial(Captured, self.step, capture=capture or cuda_graph))

    @torch.inference_mode()
    def raw(self, x: Tensor) -> Tensor:
        """See `Sampler.raw`."""
        graph = self._restarted(x.shape[1])
        outputs = x.new_empty(*x.shape[:2], graph.raw.shape[-1])
        for row, output in zip(x, outputs, strict=True):
            graph.row.copy_(row)
            graph.replay()
            output.copy_(graph.raw)
        return outputs

    @torch.inference_mode()
    def draw(self, raw: Tensor) -> Tensor:
        """See `Sampler.draw`."""
        return draw_rows(raw, self.step.M)

    @torch.inference_mode()
    def sample(self, batch: int, steps: int) -> Tensor:
        """See `Sampler.sample`."""
        graph = self._restarted(batch)
        rows = torch.empty(steps, batch, 3, device=graph.row.device)
        for row in rows:
            graph.replay()
            row.copy_(graph.row)
        return rows

    def _restarted(self, batch: int) -> Captured:
        with torch.inference_mode(False), torch.no_grad():  # so that graphs of either mode can follow
            graph = self.captured(batch)
        graph.restart()
        return graph


def lstm_loop(model: FusedLSTMMDN, dtype: str, threads: int) -> Loop:
    """A Python loop over nn.LSTM."""
    return Loop(LSTMStep(model, dtype))


def cell_loop(model: FusedLSTMMDN, dtype: str, threads: int) -> Loop:
    """A Python loop over nn.LSTMCell."""
    return Loop(CellStep(model, dtype))


def scripted_loop(model: FusedLSTMMDN, dtype: str, threads: int) -> Scripted:
    """A loop over nn.LSTMCell by TorchScript."""
    return Scripted(model, dtype)


def compiled_loop(model: FusedLSTMMDN, dtype: str, threads: int) -> Loop:
    """A Python loop over a step of nn.LSTMCell and the draw, compiled for each batch, on GPUs to a CUDA graph."""
    on_gpu = model.head.weight.device.type == "cuda"
    return Loop(CellStep(model, dtype, reduced_overhead if on_gpu else functools.partial(compiled, fullgraph=True)))
