"""What `fusedmdn doctor` examines: this installation, on this machine.

Every examination gives findings, one a line; one that raises gives its reason, and the others go on.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from .. import FusedLSTMMDN, checkpoint
from ..ops import _backend, _cpu, launch, plans, sampling_plans, training_plans, tuned
from ..ops.accuracy import Deviation
from ..ops.triton.arguments import tf32_allowed
from . import installation
from .apart import side_by_side
from .compared import STREAM, deviations
from .installation import C_COMPILER, REINSTALL, Finding, Problem
from .specimens import CALLS, Sizes

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = 300.0  # seconds for an operator on a GPU, its compilations included
AT_ONCE = 4  # operators; each has a CUDA context, of some 500 MB
NAMED = 3  # outputs of an operator that deviate
LANGUAGES = {"cpu": "C++", "triton": "Triton", "reference": "PyTorch"}
ON_REFERENCE = "runs the PyTorch reference"  # of a warning that repeats what the operator's line says
FORCE_REFERENCE = 'run on plain PyTorch inside `with fusedmdn.ops.backend("reference"):`'
REPORT = "and report it with this output"


class Network(NamedTuple):
    """What speed is measured on."""

    hidden: int = 400
    layers: int = 3
    mixtures: int = 20
    batches: tuple[int, ...] = (1, 64)  # of sampling
    points: int = 1500  # of a run, at most
    rows: tuple[int, int] = (50, 16)  # of a training step: steps, sequences

    def build(self, device: torch.device) -> FusedLSTMMDN:
        """With skip connections, as Graves's."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return FusedLSTMMDN(3, self.hidden, self.layers, self.mixtures, skip=True).to(device)


def examine(name: str, sizes: Sizes = Sizes(), network: Network = Network()) -> Iterator[Finding]:  # noqa: B008
    """Everything, on the CPU and, if it is another, on the device of this name; findings come as they are found."""
    yield from _safely("versions", "versions", installation.versions)
    yield from _safely("devices", "checked", partial(installation.checked, name))
    device, _ = installation.usable(name)
    yield from _safely("devices", "CPU", installation.cpu_and_extension)
    yield from _safely("devices", "GPU", partial(installation.gpus, device))
    yield from _safely("weights", "kanji", installation.weights)
    devices = [torch.device("cpu")] if device.type == "cpu" else [torch.device("cpu"), device]
    for where in devices:
        title = f"operators on {where}: error as a share of what is allowed"
        for operator, found in _operators(title, where, sizes):
            yield from _safely(title, operator, found)
        yield from _safely(f"plans on {where}", "plans", partial(_plans, where, network))
    for where in devices:
        title = f"speed on {where}: points per second"
        yield from _safely(title, "sampling", partial(_sampling, title, where, network))
        yield from _safely(title, "training", partial(_training, title, where, network))
    yield from _safely("extras", "extras", installation.extras)


def _operators(title: str, device: torch.device, sizes: Sizes) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """How each is examined; on a GPU side by side, as their kernels are compiled first, which takes the most time."""
    names = (STREAM, *CALLS) if device.type == "cpu" else CALLS
    examinations = {operator: partial(_operator, title, operator, device, sizes) for operator in names}
    if device.type == "cpu":
        yield from examinations.items()
        return
    calls = {name: partial(_found, title, name, call) for name, call in examinations.items()}
    yield from side_by_side(calls, PATIENCE, max(1, min(AT_ONCE, os.cpu_count() or 1)))


def _found(part: str, name: str, examination: Callable[[], Iterable[Finding]]) -> list[Finding]:
    return list(_safely(part, name, examination))


def _safely(part: str, name: str, examination: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings; if it raises, the reason as a problem; and what it warns of, once each."""
    found: list[Finding] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            found.extend(examination())
        except Exception as error:
            found.append(Finding(part, name, "failed", (_raised(f"{part.split(':')[0]}, {name}", error),)))
    yield from found
    for message in dict.fromkeys(_one_line(warning.message) for warning in caught):
        if ON_REFERENCE not in message:
            yield Finding(part, name, f"note: {message}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _raised(what: str, error: BaseException) -> Problem:
    reason = f"{what}: {type(error).__name__}: {_one_line(error) or 'no message'}"
    if isinstance(error, torch.OutOfMemoryError):
        return Problem(reason, "free the GPU's memory (`nvidia-smi` says who holds it), or give --device cpu")
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return Problem(reason, "free memory: something else on this machine holds it")
    if isinstance(error, checkpoint.CheckpointError):
        return Problem(reason, REINSTALL)
    if "C compiler" in str(error):
        return Problem(reason, f"install {C_COMPILER}: Triton builds with it what launches its kernels")
    return Problem(reason, f"{FORCE_REFERENCE}, {REPORT}")


def _operator(part: str, operator: str, device: torch.device, sizes: Sizes) -> Iterator[Finding]:
    """One line for all dtypes, each looked at for itself."""
    shares, problems, backends = [], [], []
    for name, dtype in DTYPES.items():
        if (operator == STREAM and name != "float32") or (device.type == "cpu" and name == "fp16"):
            continue
        backend = _backend.in_use(operator, device.type, dtype)
        if operator == STREAM and backend not in _backend._table[operator]:
            backend = _backend.choose(operator, device.type).backend
        backends.append(LANGUAGES[backend])
        where = f"{operator} on {device} in {name}"
        try:
            found = deviations(operator, device, dtype, sizes)
        except Exception as error:
            shares.append(f"{name} failed")
            problems.append(_raised(where, error))
            continue
        worst = max(found.values(), key=lambda d: d.share)
        shares.append(f"{name} {worst.share:.2f}")
        if any(d.excessive for d in found.values()):
            problems.append(Problem(f"{where} deviates: {_excessive(found)}", _instead_of(backend)))
    kernels = "/".join(dict.fromkeys(backends))
    yield Finding(part, operator, f"{kernels:8} {'  '.join(shares)}", tuple(problems))


def _excessive(found: dict[str, Deviation]) -> str:
    """The outputs that break the rule, the worst first."""
    broken = sorted(found.items(), key=lambda item: -item[1].share)
    named = [f"{name} by {d.error:.2g}, {d.allowed:.2g} is allowed" for name, d in broken if d.excessive]
    more = [f"and {len(named) - NAMED} more outputs"] if len(named) > NAMED else []
    return "; ".join(named[:NAMED] + more)


def _instead_of(backend: str) -> str:
    """What to force where a backend is wrong."""
    others = [isa for isa in _cpu.isas() if isa != _cpu.isa()] if backend == "cpu" else []
    isa = f"set FUSEDMDN_CPU_ISA={others[0]}, or " if others else ""
    return f"{isa}{FORCE_REFERENCE}, {REPORT}"


def _plans(device: torch.device, network: Network) -> Iterator[Finding]:
    """What a typical network takes on a GPU, and whether plans were measured there."""
    part = f"plans on {device}"
    if _backend.in_use("lstm_mdn_nll", device.type, torch.float32) != "triton":
        return
    properties, tf32 = launch.device_of(torch.empty(0, device=device)), tf32_allowed()
    L, H, D, B = network.layers, network.hidden, 1 + 6 * network.mixtures, max(network.batches)
    measured = tuned.load(device)
    yield Finding(part, "device", f"{properties.target}, {properties.processors} multiprocessors")
    for name in ("float32", "bf16"):
        dtype, taken = DTYPES[name], []
        for direction in ("forward", "backward"):
            plan = training_plans.choose(direction, L, H, D, B, dtype, properties, tf32=tf32)
            layer = plans.choose(direction, H, B, dtype, properties, tf32=tf32, tuned=measured)
            of_layers = f" of {layer.name} layers" if isinstance(plan, training_plans.Composed) else ""
            taken.append(f"{direction} {plan.name}{of_layers}")
        yield Finding(part, f"training {name}", f"{L}x{H}, batch {B}: {', '.join(taken)}")
        chosen = {b: sampling_plans.choose(L, H, D, b, dtype, properties, tf32=tf32).name for b in network.batches}
        sampling = ", ".join(f"batch {b} {plan}" for b, plan in chosen.items())
        yield Finding(part, f"sampling {name}", f"{L}x{H}: {sampling}")
    count, told = sum(map(len, measured.values())), "none; `fusedmdn tune` makes them"
    if count:
        told = f"{count} sizes, in {tuned.path_of(torch.cuda.get_device_name(device))}"
    yield Finding(part, "measured plans", told)


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    """Of a run after the first, which loads, packs or compiles."""
    run()
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return max(time.perf_counter() - started, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sampling(part: str, device: torch.device, network: Network) -> Iterator[Finding]:
    model, size = network.build(device), f"{network.layers}x{network.hidden}"
    for name in ("float32", "bf16"):
        rates = []
        for batch in network.batches:
            steps = max(1, min(100, network.points // batch))
            run = partial(model.generate, batch, steps, seed=0, dtype=DTYPES[name])
            rates.append(f"{batch * steps / _seconds(device, run):,.0f} at batch {batch}")
        yield Finding(part, f"sampling {name}", f"{size}: {', '.join(rates)}")


def _training(part: str, device: torch.device, network: Network) -> Iterator[Finding]:
    model, (T, B) = network.build(device), network.rows
    strokes = torch.randn(T, B, 3, generator=torch.Generator().manual_seed(0))
    strokes[..., 2] = (strokes[..., 2] > 1).float()
    strokes = strokes.to(device)
    rate = T * B / _seconds(device, lambda: model.nll(strokes).backward())
    size = f"{network.layers}x{network.hidden}, {B} sequences of {T}"
    yield Finding(part, "training float32", f"{size}: {rate:,.0f}")
