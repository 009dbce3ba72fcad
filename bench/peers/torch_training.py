"""PyTorch's training steps: nn.LSTM over whole, padded and packed sequences, and loops over cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fusedmdn import FusedLSTMMDN

from ..models import CellStack, LSTMStack, copy_weights, inputs_of
from ..problems import Answer, Problem
from .torch_losses import Loss, careful, eager_mean


class Trainer:
    """A training step: gradients cleared, loss, backward pass. Subclasses say what the loss is."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters

    def loss(self, problem: Problem) -> Tensor:
        """Mean per row that counts."""
        raise NotImplementedError

    def step(self, problem: Problem) -> Tensor:
        """The step that is timed."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss = self.loss(problem)
        loss.backward()
        return loss

    def answer(self, problem: Problem) -> Answer:
        """What a step computes."""
        loss = self.step(problem).item()
        return Answer(loss, {name: p.grad for name, p in self.parameters.items() if p.grad is not None})


class LSTMTrainer(Trainer):
    """nn.LSTM over whole sequences, all of one length."""

    def __init__(self, model: FusedLSTMMDN, mean_loss: Loss | None = None) -> None:
        self.net = LSTMStack(model)
        self.mean_loss = mean_loss or eager_mean(model.num_mixtures)
        super().__init__(self.net.named())

    def loss(self, problem: Problem) -> Tensor:
        """See `Trainer.loss`."""
        return self.mean_loss(self.net(problem.x)[0], problem.target)


class PaddedTrainer(LSTMTrainer):
    """nn.LSTM over padded sequences, the padding masked in the loss."""

    def loss(self, problem: Problem) -> Tensor:
        """See `Trainer.loss`."""
        inside = torch.arange(problem.x.shape[0])[:, None] < problem.lengths_of_all
        rows = careful(self.net(problem.x)[0], problem.target, self.net.num_mixtures)
        return (rows * inside).sum() / inside.sum()


class PackedTrainer(LSTMTrainer):
    """nn.LSTM over a PackedSequence; head and loss see its rows alone."""

    def loss(self, problem: Problem) -> Tensor:
        """See `Trainer.loss`."""
        x, target = (
            pack_padded_sequence(v, problem.lengths_of_all, enforce_sorted=False) for v in (problem.x, problem.target)
        )
        outputs: list[Tensor] = []
        for layer in self.net.layers:
            below = PackedSequence(inputs_of(x.data, outputs, self.net.skip), *x[1:])
            outputs.append(layer(below)[0].data)
        top = torch.cat(outputs, -1) if self.net.skip else outputs[-1]
        return self.mean_loss(self.net.head(top), target.data)


class CellTrainer(Trainer):
    """A Python loop over nn.LSTMCell; head and loss once for all steps."""

    def __init__(self, model: FusedLSTMMDN) -> None:
        self.net = CellStack(model)
        super().__init__(self.net.named())

    def loss(self, problem: Problem) -> Tensor:
        """See `Trainer.loss`."""
        h, c = ([problem.x.new_zeros(problem.x.shape[1], self.net.hidden_size) for _ in self.net.cells] for _ in "hc")
        tops = []
        for x in problem.x:
            top, h, c = self.net.top(x, h, c)
            tops.append(top)
        return careful(self.net.head(torch.stack(tops)), problem.target, self.net.num_mixtures).mean()


class WrittenCellTrainer(Trainer):
    """A loop over a cell written out with F.linear, as peepholes or clipping at every step make one write it.

    The clipping is a hook on the pre-activations. Layers run one after the other, so that a layer's input projection is
    one product over all steps.
    """

    def __init__(self, model: FusedLSTMMDN) -> None:
        if model.peephole and model.clip_gates is not None:
            raise ValueError("the written-out cell has peepholes or clips, not both")
        self.skip, self.layers, self.H = model.skip, model.num_layers, model.hidden_size
        self.M, self.bound, self.peephole = model.num_mixtures, model.clip_gates, model.peephole
        super().__init__({name: nn.Parameter(torch.empty_like(p)) for name, p in model.named_parameters()})
        copy_weights(model, self.parameters)

    def loss(self, problem: Problem) -> Tensor:
        """See `Trainer.loss`."""
        outputs: list[Tensor] = []
        for n in range(self.layers):
            outputs.append(self._layer(n, inputs_of(problem.x, outputs, self.skip)))
        top = torch.cat(outputs, -1) if self.skip else outputs[-1]
        raw = F.linear(top, self.parameters["head.weight"], self.parameters["head.bias"])
        return careful(raw, problem.target, self.M).mean()

    def _layer(self, n: int, below: Tensor) -> Tensor:
        p = self.parameters
        projected = F.linear(below, p[f"weight_ih_l{n}"], p[f"bias_ih_l{n}"])
        h, c = (below.new_zeros(below.shape[1], self.H) for _ in "hc")
        outputs = []
        for z in projected.unbind(0):
            h, c = self._cell(n, z + F.linear(h, p[f"weight_hh_l{n}"], p[f"bias_hh_l{n}"]), c)
            outputs.append(h)
        return torch.stack(outputs)

    def _cell(self, n: int, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if self.bound is not None:
            z.register_hook(lambda gradient: gradient.clamp(-self.bound, self.bound))
        i, f, g, o = z.chunk(4, -1)
        if self.peephole:
            see_i, see_f, see_o = self.parameters[f"peephole_l{n}"].unbind(0)
            i, f = i + see_i * c, f + see_f * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if self.peephole:
            o = o + see_o * c
        return torch.sigmoid(o) * torch.tanh(c), c
