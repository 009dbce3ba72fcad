"""A network that samples, its weights and stream fixed: by our operator, the reference, or a loop over nn.LSTM."""

from __future__ import annotations

import copy
import math

import torch
from fusedmdn.ops import launch, sampling_plans
from torch import Tensor

from fusedmdn import ops

from ..models import LSTMStack, build
from .layer import ELEMENTS
from .machine import Outputs
from .timings import Wrong, deviation

PLANS = "resident", "rows", "graph"
SEED = 0
OPTIONS = "num_mixtures", "pen", "means", "skip", "peephole"


class Network:
    """A model of the benchmark, whose components lie on a circle: to choose another one shows."""

    def __init__(self, name: str, units: int | None, elements: str, device: torch.device) -> None:
        self.name, self.dtype, self.device = name, ELEMENTS[elements][0], device
        self.model = build(name, units)
        M = self.model.num_mixtures
        angle = 2 * math.pi * torch.arange(M) / M
        with torch.no_grad():
            self.model.head.bias[1 + M : 1 + 3 * M] = 3 * torch.cat([angle.cos(), angle.sin()])
        self.model.requires_grad_(False).to(device, self.dtype)
        self.weights = self.model._weights()
        self.options = {k: v for k, v in self.model.config().items() if k in OPTIONS}

    def plan(self, B: int) -> sampling_plans.Plan:
        """The plan of B sequences; raises RuntimeError where one is forced that does not fit."""
        sizes = self.model.num_layers, self.model.hidden_size, self.model.head.out_features, B
        return sampling_plans.choose(*sizes, self.dtype, launch.device_of(self.model.head.weight))

    def start(self, B: int, seed: int = SEED, first_index: int = 0) -> ops.GenerateState:
        """Sequences before their first row; seed and index on the device, so that a captured graph reads them anew."""
        h = torch.zeros(self.model.num_layers, B, self.model.hidden_size, device=self.device, dtype=self.dtype)
        row, drawn = h.new_zeros(B, 3, dtype=torch.float32), h.new_zeros(B, dtype=torch.int64)
        numbers = (torch.tensor(value, device=self.device) for value in (seed, first_index))
        return ops.GenerateState(h, h.to(torch.float32), row, drawn, drawn.bool(), *numbers)

    def draw(self, begin: ops.GenerateState, steps: int) -> tuple[Outputs, ops.GenerateState]:
        """Points (steps, B, 3) and the state after them, by name; and the state to go on from."""
        points, lengths, state = ops.generate(self.weights, begin, steps, **self.options)
        return {"points": points, "lengths": lengths} | named(state), state

    def follow(self, points: Tensor, dtype: torch.dtype) -> Outputs:
        """What the reference draws in a dtype where every step reads the row of `points` before it."""
        weights, state, rows = [w.to(dtype) for w in self.weights], self.start(points.shape[1]), []
        with ops.backend("reference"):
            for row in points:
                drawn, _, state = ops.generate(weights, state, 1, **self.options)
                rows.append(drawn[0])
                state = state._replace(row=row)
        return {"points": torch.stack(rows), "h": state.h, "c": state.c}

    def raw(self, x: Tensor, dtype: torch.dtype) -> Outputs:
        """Raw outputs (T, B, 1 + 6M) of the reference in a dtype, over given rows (T, B, 3)."""
        with ops.backend("reference"), torch.no_grad():
            return {"raw": copy.deepcopy(self.model).to(dtype)(x.to(dtype))[0].raw}

    def deviation(self, drawn: Outputs) -> float:
        """The largest relative deviation of rows, h and c, drawn from `start`, from the float64 reference.

        Rounding may carry a uniform over the edge between two choices: such rows are counted, not compared.

        Raises:
            Wrong: there are more of them than one in fifty and twice the reference's own, or values are not accurate.
        """
        points = drawn["points"]
        same, exact = (self.follow(points, dtype) for dtype in (self.dtype, torch.float64))
        ours, theirs = (alike(rows, exact["points"]) for rows in (points, same["points"]))
        other, allowed = int((~ours).sum()), 1 + ours.numel() // 50 + 2 * int((~theirs).sum())
        if other > allowed:
            raise Wrong(f"{other} of {ours.numel()} choices are not the reference's, {allowed} are allowed")

        def compared(values: Outputs) -> Outputs:
            return {"points": values["points"][ours & theirs], "h": values["h"], "c": values["c"]}

        return deviation(lambda: compared(drawn), lambda: compared(same), lambda: compared(exact))


def named(state: ops.GenerateState) -> Outputs:
    """All of a state but seed and first index."""
    return {name: value for name, value in state._asdict().items() if name not in ("seed", "first_index")}


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Rows (..., 3) of the same pen and the same component."""
    return (a[..., 2] == b[..., 2]) & ((a - b)[..., :2].abs().amax(-1) < 0.1)


class Loop:
    """What users write: in every step nn.LSTM called with one row, nn.Linear, and a draw; a `samplers.Sampler`."""

    def __init__(self, network: Network) -> None:
        self.net = LSTMStack(network.model).to(network.device, network.dtype).eval()
        self.network = network

    @torch.inference_mode()
    def raw(self, x: Tensor) -> Tensor:
        """Raw outputs (T, B, 1 + 6M) of given rows (T, B, 3), step by step."""
        state, outputs = None, []
        for row in x.to(self.network.dtype):
            raw, state = self.net(row[None], state)
            outputs.append(raw[0])
        return torch.stack(outputs)

    @torch.inference_mode()
    def draw(self, raw: Tensor) -> Tensor:
        """A row (B, 3) from each raw output (B, 1 + 6M), in float32."""
        M = self.net.num_mixtures
        eos, pi, mu_x, mu_y, s_x, s_y, r = raw.to(self.network.device, torch.float32).split([1, M, M, M, M, M, M], -1)
        j = torch.multinomial(torch.softmax(pi, -1), 1)
        n1, n2 = torch.randn(2, len(raw), 1, device=self.network.device)
        rho = torch.tanh(r.gather(-1, j))
        dx = mu_x.gather(-1, j) + s_x.gather(-1, j).exp() * n1
        dy = mu_y.gather(-1, j) + s_y.gather(-1, j).exp() * (rho * n1 + torch.sqrt(1 - rho * rho) * n2)
        return torch.cat([dx, dy, torch.bernoulli(torch.sigmoid(eos))], -1)

    @torch.inference_mode()
    def sample(self, batch: int, steps: int) -> Tensor:
        """Rows (steps, batch, 3), each fed back."""
        state, row, rows = None, torch.zeros(batch, 3, device=self.network.device), []
        for _ in range(steps):
            raw, state = self.net(row[None].to(self.network.dtype), state)
            row = self.draw(raw[0])
            rows.append(row)
        return torch.stack(rows)
