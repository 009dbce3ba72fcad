"""A network that samples, its weights and stream fixed: by our operator, the reference, or a loop over nn.LSTM."""

from __future__ import annotations

import copy
import math

import torch
from fusedmdn.ops import launch, sampling_plans
from fusedmdn.ops.reference import END
from torch import Tensor

from fusedmdn import FusedLSTMMDN, ops

from ..models import LSTMStack, build
from .layer import ELEMENTS
from .machine import Outputs
from .timings import Wrong, deviation

PLANS = "resident", "rows", "graph"
SEED = 0
OPTIONS = "num_mixtures", "pen", "means", "skip", "peephole"
RAGGED, KANJI = "ragged", "kanji"
UNITS = 203  # of the ragged network: the last of the resident plan's programs has fewer than the others
PRIMED = 3  # rows of its primes at most


def ragged(units: int) -> FusedLSTMMDN:
    """All that a network may have, by a bias of the pen one row in twenty ends its sequence."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = FusedLSTMMDN(5, units, 2, 20, pen="categorical", skip=True, peephole=True)
    with torch.no_grad():
        model.head.bias[:3] = torch.tensor([1.0, 0.0, -1.6])
    return model


def spread(model: FusedLSTMMDN) -> None:
    """The means of the components on a circle."""
    M = model.num_mixtures
    angle, first = 2 * math.pi * torch.arange(M) / M, model.head.out_features - 5 * M
    with torch.no_grad():
        model.head.bias[first : first + 2 * M] = 3 * torch.cat([angle.cos(), angle.sin()])


class Network:
    """A model of the benchmark or the ragged one, their components on a circle: to choose another shows; or "kanji"."""

    def __init__(self, name: str, units: int | None, elements: str, device: torch.device) -> None:
        self.name, self.dtype, self.device = name, ELEMENTS[elements][0], device
        if name == KANJI:
            self.model = FusedLSTMMDN.from_pretrained(name)
        else:
            self.model = ragged(units or UNITS) if name == RAGGED else build(name, units)
            spread(self.model)
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
        row = h.new_zeros(B, self.model.input_size, dtype=torch.float32)
        drawn = h.new_zeros(B, dtype=torch.int64)
        numbers = (torch.tensor(value, device=self.device) for value in (seed, first_index))
        return ops.GenerateState(h, h.to(torch.float32), row, drawn, drawn.bool(), *numbers)

    def prime(self, B: int, first: int = 0) -> dict[str, Tensor]:
        """What sequences read before they draw, whatever the batch; none with a Bernoulli pen. NaN is never read."""
        if self.model.pen == "bernoulli":
            return {}
        place = torch.arange(first * PRIMED, (first + B) * PRIMED).view(B, PRIMED)
        lengths, lift = torch.arange(first, first + B) % (PRIMED + 1), place % 2
        rows = torch.stack([place % 7 / 4 - 0.75, place % 5 / 2 - 1, 1 - lift, lift, 0 * lift], -1)
        rows[torch.arange(PRIMED) >= lengths[:, None]] = math.nan
        return {"prime": rows.to(self.device), "prime_lengths": lengths.to(self.device)}

    def draw(self, begin: ops.GenerateState, steps: int, **primed: Tensor) -> tuple[Outputs, ops.GenerateState]:
        """Points (steps, B, I) and the state after them, by name; and the state to go on from."""
        points, lengths, state = ops.generate(self.weights, begin, steps, **self.options, **primed)
        return {"points": points, "lengths": lengths} | named(state), state

    def follow(self, points: Tensor, dtype: torch.dtype, **primed: Tensor) -> Outputs:
        """What the reference draws in a dtype where every step reads the row of `points` before it, and ends by it."""
        weights, state, rows = [w.to(dtype) for w in self.weights], self.start(points.shape[1]), []
        with ops.backend("reference"):
            for row in points:
                done = state.done | (row[:, END] > 0.5) if self.model.pen == "categorical" else state.done
                drawn, _, state = ops.generate(weights, state, 1, **self.options, **({} if rows else primed))
                rows.append(drawn[0])
                state = state._replace(row=row, done=done)
        return {"points": torch.stack(rows), "lengths": state.drawn - state.done.long()} | named(state)

    def raw(self, x: Tensor, dtype: torch.dtype) -> Outputs:
        """Raw outputs (T, B, 1 + 6M) of the reference in a dtype, over given rows (T, B, 3)."""
        with ops.backend("reference"), torch.no_grad():
            return {"raw": copy.deepcopy(self.model).to(dtype)(x.to(dtype))[0].raw}

    def deviation(self, drawn: Outputs, **primed: Tensor) -> float:
        """The largest relative deviation of rows, h and c, drawn from `start`, from the float64 reference.

        Rounding may carry a uniform over the edge between two choices: such rows are counted, not compared.

        Raises:
            Wrong: there are more of them than one in fifty and twice the reference's own, values are not accurate, or
                counts do not follow from the rows.
        """
        points = drawn["points"]
        same, exact = (self.follow(points, dtype, **primed) for dtype in (self.dtype, torch.float64))
        counts = [name for name in ("lengths", "drawn", "done") if not torch.equal(drawn[name], exact[name])]
        if counts:
            raise Wrong(f"not as the rows say: {counts}")
        ours, theirs = (alike(rows, exact["points"]) for rows in (points, same["points"]))
        other, rows = int((~ours).sum()), int(drawn["drawn"].sum())
        allowed = 1 + rows // 50 + 2 * int((~theirs).sum())
        if other > allowed:
            raise Wrong(f"{other} of {rows} choices are not the reference's, {allowed} are allowed")

        def compared(values: Outputs) -> Outputs:
            return {"points": values["points"][ours & theirs], "h": values["h"], "c": values["c"]}

        return deviation(lambda: compared(drawn), lambda: compared(same), lambda: compared(exact))


def named(state: ops.GenerateState) -> Outputs:
    """All of a state but seed and first index."""
    return {name: value for name, value in state._asdict().items() if name not in ("seed", "first_index")}


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Rows (..., I) of the same pen and the same component."""
    return (a[..., 2:] == b[..., 2:]).all(-1) & ((a - b)[..., :2].abs().amax(-1) < 0.1)


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
