"""What sampling promises, plan by plan: the reference's choices, the same bits however it is called, CUDA graphs."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from fusedmdn import ops

from .. import precision
from .machine import Machine, Outputs
from .network import KANJI, RAGGED, SEED, Network, named
from .promises import judged, repeats, tried, unequal
from .sizes import Sampling, Sizes

Json = dict[str, Any]
Promise = Callable[[Machine, Sampling, Network], str | None]  # gives what is wrong
SAME = 1e-3  # of rows by the shipped weights, whose standard deviation is 1


def plain(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """Values, and the same bits in every run, batch and call."""
    promises = {"values": values, "repeated": repeated, "batches": batches, "calls": calls, "to the host": to_the_host}
    return every(promises, machine, sizes.sampling, plan)


def captured(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """CUDA graphs, in a part of their own: after a failed capture nothing else may run."""
    return every({"replayed": replayed, "no seed": no_seed}, machine, sizes.sampling, plan)


def every(promises: dict[str, Promise], machine: Machine, sizes: Sampling, plan: str) -> Json:
    """Every promise of every network and dtype that the plan fits."""
    B, T = sizes.promised
    found = tried(
        {name: functools.partial(promise, machine, sizes) for name, promise in promises.items()},
        itertools.product(dict(sizes.runs), sizes.elements),
        lambda model, elements: Network(model, sizes.units, elements, machine.device),
        lambda network: network.plan(B)._asdict(),
        plan,
    )
    return found | {"T": T, "B": B}


def values(machine: Machine, sizes: Sampling, network: Network) -> None:
    """The reference's choices, and numbers within the accuracy rule (`Network.deviation`)."""
    B = sizes.promised[0]
    primed = network.prime(B)
    network.deviation(network.draw(network.start(B), sizes.checked, **primed)[0], **primed)


def repeated(machine: Machine, sizes: Sampling, network: Network) -> str | None:
    """The same call again and again: what is read before it is there would show."""
    B, T = sizes.promised
    begin, primed, runs = network.start(B), network.prime(B), dict(sizes.runs)[network.name]
    different = repeats(lambda: network.draw(begin, T, **primed)[0], runs)
    return f"not bitwise equal: {different} of {runs} runs" if different else None


def batches(machine: Machine, sizes: Sampling, network: Network) -> str | None:
    """Some of the sequences, as batches of other sizes and at other places in them."""
    B, T = sizes.promised
    whole, different = network.draw(network.start(B), T, **network.prime(B))[0], []
    for first, count in ((0, 1), (B - 1, 1), (B // 3, B // 2), (1, B - 1)):
        some = network.draw(network.start(count, first_index=first), T, **network.prime(count, first))[0]
        names = unequal(some, {name: of(value, first, count) for name, value in whole.items()})
        different += [f"{count} from {first}: {names}"] if names else []
    return "; ".join(different) or None


def of(value: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Some sequences: of (·, B, ·) or (B), or of rows (B, I)."""
    return value.narrow(1 if value.dim() == 3 else 0, first, count)


def calls(machine: Machine, sizes: Sampling, network: Network) -> str | None:
    """One call, and three that go on from each other, a prime before the first."""
    B, T = sizes.promised
    state, primed, pieces = network.start(B), network.prime(B), []
    whole = network.draw(state, T, **primed)[0]
    for steps in (1, T // 2, T - 1 - T // 2):
        outputs, state = network.draw(state, steps, **({} if pieces else primed))
        pieces.append(outputs)
    joined: Outputs = named(state) | {
        "points": torch.cat([piece["points"] for piece in pieces]),
        "lengths": sum((piece["lengths"] for piece in pieces), torch.zeros_like(state.drawn)),
    }
    names = unequal(joined, whole)
    return f"not bitwise equal: {names}" if names else None


def to_the_host(machine: Machine, sizes: Sampling, network: Network) -> str | None:
    """Points that are copied to the CPU chunk by chunk, by the model's own `generate`."""
    B, T = sizes.promised
    plain, moved = (
        network.model.generate(B, T, seed=SEED, **network.prime(B), **options)
        for options in ({}, {"to": "cpu", "chunk": T // 3 or 1})
    )
    if moved.points.device.type != "cpu" or moved.lengths.device.type != "cpu":
        return f"points and lengths are on {moved.points.device} and {moved.lengths.device}"
    expected = {"points": plain.points.cpu(), "lengths": plain.lengths.cpu()} | named(plain.state)
    names = unequal({"points": moved.points, "lengths": moved.lengths} | named(moved.state), expected)
    return f"not bitwise equal: {names}" if names else None


def replayed(machine: Machine, sizes: Sampling, network: Network) -> str | None:
    """One graph, replayed with other seeds and indices written into the captured tensors."""
    B, T = sizes.promised
    begin, primed, different = network.start(B), network.prime(B), Counter[str]()
    replay, outputs = machine.capture(lambda: network.draw(begin, T, **primed)[0])
    seeds = (SEED, 0), (7, 0), (-1, 1 << 40)
    for seed, first_index in seeds:
        begin.seed.fill_(seed)
        begin.first_index.fill_(first_index)
        replay()
        found = {name: value.clone() for name, value in outputs.items()}
        different.update(unequal(found, network.draw(network.start(B, seed, first_index), T, **primed)[0]))
    return f"replay is not a plain call: {dict(different)} of {len(seeds)} seeds" if different else None


def no_seed(machine: Machine, sizes: Sampling, network: Network) -> str | None:
    """A capture without a seed is refused: every replay would draw the same."""
    B, T = sizes.promised
    try:
        machine.capture(lambda: {"points": network.model.generate(B, T).points})
    except RuntimeError as error:
        return None if "seed" in str(error) else f"refused for another reason: {error}".partition("\n")[0]
    return "captured"


def real(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """The shipped weights, every step from the reference's own state: its rows, but for ties."""
    B, most = sizes.sampling.real
    rows = different = 0
    with precision.products("float32"), ops.plan(plan):
        network = Network(KANJI, None, "float32", machine.device)
        state = network.start(B)
        for _ in range(most):
            ours = network.draw(state, 1)[0]["points"]
            rows += int((~state.done).sum())
            with ops.backend("reference"):
                theirs, state = network.draw(state, 1)
            different += int((~((ours - theirs["points"]).abs() < SAME).all(-1)).sum())
            if state.done.all():
                break
    allowed = 1 + rows // 2000
    trouble = f"{different} of {rows} rows are not the reference's, {allowed} are allowed"
    found = {"B": B, "rows": rows, "different": different, "ended": int(state.done.sum())}
    return {"trouble": trouble if different > allowed else None, **found}


def compiled(machine: Machine, sizes: Sizes, plan: str) -> Json:
    """How often every kernel is compiled, over many numbers of steps and sequences, with and without a prime."""
    network = Network(RAGGED, sizes.sampling.units, "bf16", machine.device)
    with machine.compilations() as counts, ops.plan(plan):
        for T, B in sizes.shapes:
            for primed in ({}, network.prime(B)):
                network.draw(network.start(B), T, **primed)
    return judged(counts) | {"shapes": list(sizes.shapes)}


def elsewhere(machine: Machine, sizes: Sizes) -> Json:
    """The graph plan on a GPU that is not the current one gives what it gives there as the current one."""
    GPUs = torch.cuda.device_count()
    if GPUs < 2:
        return {"trouble": None, "left out": f"it takes two GPUs, of which there are {GPUs}"}
    B, T = sizes.sampling.promised
    network, found = Network(RAGGED, sizes.sampling.units, "bf16", torch.device("cuda", 1)), []
    for current in (0, 1):
        with ops.plan("graph"), torch.cuda.device(current):
            found.append(network.draw(network.start(B), T, **network.prime(B))[0])
    names = unequal(*found)
    return {"trouble": f"not bitwise equal: {names}" if names else None, "T": T, "B": B}
