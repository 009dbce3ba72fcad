"""PyTorch's training steps: nn.LSTM over whole, padded and packed sequences, and loops over cells.

A loop over nn.LSTMCell under torch.compile is not among them: it is unrolled, and three layers took 32 seconds to
compile for 10 steps and 76 for 25 (PyTorch 2.13, one core).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fusedmdn import FusedLSTMMDN

from ..cell import Cannot
from ..models import CellStack, LSTMStack, copy_weights, inputs_of
from ..problems import Problem
from . import compiling
from .layers import LayerTrainer
from .torch_losses import compiled_mean, eager_mean, mean_over
from .training import TorchTrainer, row_weights

COMPILED = None, "loss", "all"
OWN = itertools.count()  # a constant of each scripted module: those alike would share what is compiled for one's dtype


class LSTMTrainer(TorchTrainer):
    """nn.LSTM over whole sequences, the padding of ragged ones masked in the loss.

    compiled: what torch.compile takes: nothing (None), the "loss", or "all", network and loss.
    """

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str, compiled: str | None = None) -> None:
        if compiled not in COMPILED:
            raise ValueError(f"compiled must be one of {COMPILED}, got {compiled!r}")
        self.net = LSTMStack(model)
        super().__init__(self.net.named(), dtype)
        self.x, self.target = problem.x, problem.target
        mean = mean_over(row_weights(problem), model.num_mixtures)
        self.mean = compiling.compiled(mean, fullgraph=True) if compiled == "loss" else mean
        self.whole = compiling.compiled(self._whole) if compiled == "all" else self._whole

    def loss(self) -> Tensor:
        """See `TorchTrainer.loss`."""
        return self.whole(self.x, self.target)

    def _whole(self, x: Tensor, target: Tensor) -> Tensor:
        return self.mean(self.net(x)[0], target)


class PackedTrainer(TorchTrainer):
    """nn.LSTM over a PackedSequence, packed beforehand; head and loss see its rows alone."""

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str, compiled: str | None = None) -> None:
        self.net = LSTMStack(model)
        super().__init__(self.net.named(), dtype)
        self.x, self.target = (
            pack_padded_sequence(rows, problem.lengths_of_all, enforce_sorted=False)
            for rows in (problem.x, problem.target)
        )
        self.mean = (compiled_mean if compiled == "loss" else eager_mean)(model.num_mixtures)

    def loss(self) -> Tensor:
        """See `TorchTrainer.loss`."""
        outputs: list[Tensor] = []
        for layer in self.net.layers:
            below = PackedSequence(inputs_of(self.x.data, outputs, self.net.skip), *self.x[1:])
            outputs.append(layer(below)[0].data)
        top = torch.cat(outputs, -1) if self.net.skip else outputs[-1]
        return self.mean(self.net.head(top), self.target.data)


class CellTrainer(TorchTrainer):
    """A Python loop over nn.LSTMCell; head and loss once for all steps."""

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str) -> None:
        self.net = CellStack(model)
        super().__init__(self.net.named(), dtype)
        self.x, self.target = problem.x, problem.target
        self.mean = mean_over(row_weights(problem), model.num_mixtures)

    def loss(self) -> Tensor:
        """See `TorchTrainer.loss`."""
        h, c = ([self.x.new_zeros(self.x.shape[1], self.net.hidden_size) for _ in self.net.cells] for _ in "hc")
        tops = []
        for row in self.x:
            top, h, c = self.net.top(row, h, c)
            tops.append(top)
        return self.mean(self.net.head(torch.stack(tops)), self.target)


class ScriptedLayer(nn.Module):
    """A layer as PyTorch's own TorchScript LSTMs have it: the input's product over all steps, then a cell written out.

    Cells of fused kernels (nn.LSTMCell) would leave the compiler nothing to fuse.
    """

    __constants__ = ("own",)

    def __init__(self, inputs: int, hidden: int, device: torch.device) -> None:
        super().__init__()
        self.own = next(OWN)
        self.hidden = hidden
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inputs, device=device))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden, device=device))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden, device=device))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden, device=device))

    def forward(self, below: Tensor) -> Tensor:
        """h (T, B, H) from inputs (T, B, I)."""
        projected = F.linear(below, self.weight_ih, self.bias_ih + self.bias_hh)
        h = torch.zeros(below.shape[1], self.hidden, device=below.device)
        c = torch.zeros_like(h)
        outputs: list[Tensor] = []
        for z in projected.unbind(0):
            i, f, g, o = (z + F.linear(h, self.weight_hh)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs)


class ScriptedStack(nn.Module):
    """`ScriptedLayer`s and the head, to be compiled whole by torch.jit.script."""

    __constants__ = ("own",)

    def __init__(self, model: FusedLSTMMDN) -> None:
        super().__init__()
        self.own = next(OWN)
        self.skip, device = model.skip, model.head.weight.device
        sizes = [model.input_size if n == 0 else model.hidden_size for n in range(model.num_layers)]
        sizes = [size + model.input_size * (model.skip and n > 0) for n, size in enumerate(sizes)]
        self.layers = nn.ModuleList([ScriptedLayer(size, model.hidden_size, device) for size in sizes])
        self.head = nn.Linear(model.head.in_features, model.head.out_features, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Raw output (T, B, 1 + 6M) from inputs (T, B, 3)."""
        tops: list[Tensor] = []
        below = x
        for n, layer in enumerate(self.layers):
            if n and self.skip:
                below = torch.cat([x, below], -1)
            below = layer(below)
            tops.append(below)
        return F.linear(torch.cat(tops, -1) if self.skip else below, self.head.weight, self.head.bias)


class ScriptedTrainer(TorchTrainer):
    """TorchScript: the network compiled whole, its loops over the steps inside; the loss by eager PyTorch.

    It profiles its first steps and compiles in the next.
    """

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str) -> None:
        stack = ScriptedStack(model)
        names: dict[str, Tensor] = {"head.weight": stack.head.weight, "head.bias": stack.head.bias}
        for n, layer in enumerate(stack.layers):
            names.update({f"{name}_l{n}": parameter for name, parameter in layer.named_parameters()})
        copy_weights(model, names)
        super().__init__(names, dtype)
        self.net = torch.jit.script(stack)
        self.x, self.target = problem.x, problem.target
        self.mean = mean_over(row_weights(problem), model.num_mixtures)

    def loss(self) -> Tensor:
        """See `TorchTrainer.loss`."""
        return self.mean(self.net(self.x), self.target)


class WrittenCellTrainer(LayerTrainer):
    """A loop over a cell written out with F.linear, as peepholes or clipping at every step make one write it.

    The clipping is a hook on the pre-activations. Layers run one after the other, so that a layer's input projection is
    one product over all steps.

    Raises:
        Cannot: the model has peepholes and clips.
    """

    def __init__(self, model: FusedLSTMMDN, problem: Problem, dtype: str) -> None:
        if model.peephole and model.clip_gates is not None:
            raise Cannot("the written-out cell has peepholes or clips, not both")
        super().__init__(model, problem, dtype)
        self.peephole = model.peephole
        self.bound = None if model.clip_gates is None else model.clip_gates * self.scale  # of scaled gradients

    def _layer(self, n: int, below: Tensor) -> Tensor:
        projected = F.linear(below, self.p[f"weight_ih_l{n}"], self.p[f"bias_ih_l{n}"])
        h, c = (below.new_zeros(below.shape[1], self.H) for _ in "hc")
        outputs = []
        for z in projected.unbind(0):
            h, c = self._cell(n, z + F.linear(h, self.p[f"weight_hh_l{n}"], self.p[f"bias_hh_l{n}"]), c)
            outputs.append(h)
        return torch.stack(outputs)

    def _cell(self, n: int, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        bound = self.bound
        if bound is not None:
            z.register_hook(lambda gradient: gradient.clamp(-bound, bound))
        i, f, g, o = z.chunk(4, -1)
        if self.peephole:
            see_i, see_f, see_o = self.p[f"peephole_l{n}"].unbind(0)
            i, f = i + see_i * c, f + see_f * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if self.peephole:
            o = o + see_o * c
        return torch.sigmoid(o) * torch.tanh(c), c
