"""`python -m bench.gpu.plan_times`: every plan side by side on this GPU, and cuDNN's layer; one JSON file.

What the planner's constants (python/cost.py) are fitted to. A layer's times are of its operators as training calls
them, launches from Python included: T steps forward (keeping what backward needs), and backward. A network's are those
of its loss; sampling's are of `generate`. Kernels are compiled before, side by side. No values are compared here:
`python -m bench.gpu` does.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from fusedmdn.ops import launch, plans
from torch import nn

from fusedmdn import FusedLSTMMDN, ops, tune

from .. import environment, precision
from ..models import build
from ..record import Record
from ..screen import console
from . import layer, network, objective
from .promises import NO_FIT
from .sampling_promises import KANJI

Json = dict[str, Any]
Times = dict[str, tuple[float, float]]
ROUNDS, WARM = 7, 2
T, STEPS = 200, 256
COMPILED = 16  # sequences: one batch's kernels are every batch's
END = 2  # the pen's logit that ends a sequence

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def timed(run: Callable[[], object], timer: tune.Timer, rounds: int = ROUNDS) -> tuple[float, float]:
    """Median and least milliseconds of a call."""
    for _ in range(WARM):
        run()
    seconds = [timer(run) for _ in range(rounds)]
    return 1000 * median(seconds), 1000 * min(seconds)


def of_layer(H: int, B: int, elements: str, device: torch.device, steps: int = T) -> Times:
    """One layer on H inputs: every plan of the recurrence, forward and backward."""
    dtype, found, timer = precision.TORCH[elements], {}, tune.cuda_timer(device)
    ours = layer.ours(steps, B, H, dtype, device)
    leaves = tuple(ours.leaves.values())
    products, chip = plans.precision_of(dtype, elements == "tf32"), launch.device_of(ours.grad)
    with ops.plan("stepwise"):
        h = ours.call(*leaves)
    runs = {
        "forward": lambda: ours.call(*leaves),
        "backward": lambda: torch.autograd.grad(h, leaves, ours.grad, retain_graph=True),
    }
    for direction, run in runs.items():
        fitting = plans.persistent_plans(direction, H, B, dtype.itemsize, products, chip)
        for plan in (*fitting, plans.stepwise_plan(H)):
            with ops.plan(plan):
                found[f"{direction}, {tune.title(plan)}"] = timed(run, timer)
    return found


def of_cudnn(H: int, B: int, elements: str, device: torch.device, steps: int = T) -> Times:
    """nn.LSTM of the same size."""
    dtype, timer = precision.TORCH[elements], tune.cuda_timer(device)
    lstm = nn.LSTM(H, H, device=device, dtype=dtype)
    x = torch.randn(steps, B, H, device=device, dtype=dtype, requires_grad=True)
    grad, leaves = torch.randn_like(x), (x, *lstm.parameters())
    h = lstm(x)[0]
    return {
        "forward": timed(lambda: lstm(x)[0], timer),
        "backward": timed(lambda: torch.autograd.grad(h, leaves, grad, retain_graph=True), timer),
    }


def of_training(model: str, B: int, elements: str, device: torch.device, steps: int = T) -> Times:
    """A network's loss and its gradients, each by either plan that fits."""
    timer = tune.cuda_timer(device)
    subject = objective.Objective(model, None, elements, (steps, B), device)
    with ops.plan("composed"):  # what forward keeps is the same
        outputs, leaves = subject.forward()
    total = torch.stack([value.mean().to(outputs["nll"].dtype) for value in outputs.values()]).sum()
    backward = partial(torch.autograd.grad, total, tuple(leaves.values()), retain_graph=True)
    runs = {"forward": subject.forward, "backward": backward}
    every = {f"{d}, {plan}": (plan, run) for d, run in runs.items() for plan in objective.PLANS}
    return by_each_plan(every, timer)


def by_each_plan(runs: dict[str, tuple[str, Callable[[], object]]], timer: tune.Timer) -> Times:
    """What each run takes by its plan, of those that fit."""
    found = {}
    for name, (plan, run) in runs.items():
        with ops.plan(plan):
            try:
                found[name] = timed(run, timer)
            except RuntimeError as error:
                if NO_FIT not in str(error):
                    raise
    return found


def of_sampling(model: str, B: int, elements: str, device: torch.device, steps: int = STEPS) -> Times:
    """`generate`, whose sequences do not end by themselves, by every plan."""
    timer = tune.cuda_timer(device)
    subject = FusedLSTMMDN.from_pretrained(model) if model == KANJI else build(model)
    subject.requires_grad_(False).to(device, precision.TORCH[elements])
    if subject.pen == "categorical":
        subject.head.bias[END] = -1e4
    draw = partial(subject.generate, B, steps, seed=1)
    return by_each_plan({plan: (plan, draw) for plan in network.PLANS}, timer)


KINDS = {"layer": of_layer, "cudnn": of_cudnn, "training": of_training, "sampling": of_sampling}
Cell = tuple[str, str | int, int, str]  # kind, units or model, sequences, elements


def cells() -> Iterable[Cell]:
    """What is timed."""
    for elements, hidden in (("bf16", (128, 400, 512, 1024)), ("float32", (400, 512)), ("tf32", (400, 512))):
        for H in hidden:
            for B in (1, 16, 64, 128, 256, 1024):
                yield "layer", H, B, elements
                yield "cudnn", H, B, elements
        for model in ("B", "C", "D"):
            for B in (1, 16, 32, 64, 128):
                yield "training", model, B, elements
    for elements in ("bf16", "float32"):
        for model in ("B", KANJI):
            for B in (1, 16, 64, 128, 512):
                yield "sampling", model, B, elements


def perform(cell: Cell, device: torch.device, **steps: int) -> Times:
    """Its times."""
    kind, subject, B, elements = cell
    with precision.products(elements):
        return KINDS[kind](subject, B, elements, device, **steps)  # type: ignore[arg-type]


def compile_for(cell: Cell, device: torch.device) -> None:
    """Leave its kernels in Triton's cache."""
    perform(cell, device, steps=1 if cell[0] == "sampling" else 2)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Directory of the JSON file.")] = Path("bench/results"),
    minutes: Annotated[float, typer.Option(help="After which nothing new is timed.", min=0.1)] = 10.0,
    processes: Annotated[int, typer.Option(help="That compile side by side.", min=1)] = 8,
) -> None:
    """Every plan of the recurrence, of training and of sampling, and cuDNN's layer; ends with 2 without a GPU."""
    if not torch.cuda.is_available():
        print(f"bench.gpu.plan_times needs a GPU, and torch {torch.__version__} sees none", file=sys.stderr)
        raise typer.Exit(2)
    device = torch.device("cuda", torch.cuda.current_device())
    where = environment.describe(torch.get_num_threads(), device)
    name = f"plans-{environment.slug(where['gpu']['name'])}.json"
    record = Record(out / f"partial-{name}", where)  # until it is whole
    chosen, screen = list(cells()), console()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        firsts = [cell for cell in chosen if cell[0] != "cudnn" and cell[2] == COMPILED]
        list(pool.map(partial(compile_for, device=device), firsts))
    end = time.monotonic() + 60 * minutes
    for cell in chosen:
        if time.monotonic() > end:
            record.run["left_out"].append(" ".join(map(str, cell)))
            continue
        kind, subject, B, elements = cell
        times = perform(cell, device)
        record.run["cells"].append({"kind": kind, "of": subject, "B": B, "dtype": elements, "milliseconds": times})
        record.write()
        shown = ", ".join(f"{name} {middle:.2f} ({least:.2f})" for name, (middle, least) in times.items())
        screen.print(f"{kind} {subject}, B {B}, {elements}: {shown} ms", highlight=False, soft_wrap=True, markup=False)
    path = record.path.rename(out / name)
    screen.print(f"wrote {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m bench.gpu.plan_times")
