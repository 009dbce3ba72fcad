"""A network that samples, its weights and stream fixed: by our operator or the reference."""

from __future__ import annotations

import math

import torch
from fusedmdn.ops import sampling_plans
from fusedmdn.ops.reference import END
from torch import Tensor

from fusedmdn import FusedLSTMMDN, ops
from fusedmdn.doctor.compared import same_choice

from .. import plans
from ..models import build
from ..precision import TORCH
from .accuracy import Wrong, deviation
from .machine import Outputs

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
        self.name, self.dtype, self.device = name, TORCH[elements], device
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
        return plans.sampling(self.model, B, self.dtype)

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
        ours, theirs = (same_choice(rows, exact["points"]) for rows in (points, same["points"]))
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
