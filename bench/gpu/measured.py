"""`python -m bench.gpu.measured`: write docs/gpu-measured.md from what `bench.gpu.plan_times` has measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fusedmdn.ops import plans, sampling_plans, training_plans

from fusedmdn import FusedLSTMMDN, tune

from .. import precision
from ..markdown import table
from ..models import build
from .sampling_promises import KANJI

Json = dict[str, Any]
RESULTS, PAGE = Path("bench/results"), Path("docs/gpu-measured.md")
DIRECTIONS = "forward", "backward"
HEAD = """# GPU: measured plans

Written by `python -m bench.gpu.measured` from `bench/results/plans-*.json`, which `python -m bench.gpu.plan_times`
measures. Milliseconds, the median of seven calls and in brackets the least, by CUDA events: launches from Python are in
them. Of networks and of sampling what the planner chooses is bold; a dash where a plan does not fit or was not timed.
`make gpu` compares values; here nothing was compared.
"""


def page(runs: list[Json]) -> str:
    """All runs."""
    return "\n".join([HEAD, *(line for run in runs for line in of_run(run))]).rstrip() + "\n"


def of_run(run: Json) -> Iterator[str]:
    """One GPU's tables."""
    where, versions = run["environment"], run["environment"]["versions"]
    yield f"## {where['gpu']['name']}\n"
    yield (
        f"torch {versions['torch']}, Triton {versions['triton']}, CUDA {versions['cuda']}, cuDNN {versions['cudnn']}, "
        f"driver {where['gpu']['driver, power limit, highest clock'].split(', ')[1]}; {where['date'][:10]}.\n"
    )
    if run["left_out"]:
        missing = len(run["left_out"])
        yield f"Not measured: {missing} of {missing + len(run['cells'])} cells of the script.\n"
    yield from (f"{note}\n" for note in run.get("notes", []))
    cells = sorted(run["cells"], key=lambda cell: (cell["dtype"], str(cell["of"]).zfill(5), cell["B"]))
    run = run | {"cells": cells}
    yield "### A layer of H units, 200 steps, beside `nn.LSTM`\n"
    yield (
        "Its input has H columns; the input's projection and all gradients are in the times. Ours is by the plan that "
        "the planner chooses; ÷ is cuDNN's time over ours: below 1, cuDNN is faster.\n"
    )
    yield from table(["H", "B", "", "forward", "cuDNN", "÷", "backward", "cuDNN", "÷"], layers(run))
    yield "### A network's loss, 200 steps\n"
    yield "B: 3 layers of 400, skips, 20 components; C: 2 of 400, 2 components; D: 1 of 512, 20 components.\n"
    yield from table(
        ["", "B", "", *(f"{d}, {plan}" for d in DIRECTIONS for plan in ("fused", "composed"))],
        [row(cell, chosen(cell, run)) for cell in cells if cell["kind"] == "training"],
    )
    yield "### Sampling, 256 steps\n"
    yield "kanji: the shipped weights, 2 layers of 224 with skips. The graph plan captures its graph in every call.\n"
    yield from table(
        ["", "B", "", "resident", "rows", "graph"],
        [row(cell, chosen(cell, run)) for cell in cells if cell["kind"] == "sampling"],
    )


def layers(run: Json) -> list[list[str]]:
    """A row for each layer that cuDNN has run too: the chosen plan, cuDNN, and how many times longer that takes."""
    peers = {key(cell): cell["milliseconds"] for cell in run["cells"] if cell["kind"] == "cudnn"}
    rows = []
    for cell in run["cells"]:
        peer = peers.get(key(cell))
        if cell["kind"] != "layer" or peer is None:
            continue
        line = [str(cell["of"]), str(cell["B"]), cell["dtype"]]
        for direction, name in zip(DIRECTIONS, chosen(cell, run), strict=True):
            ours, theirs = cell["milliseconds"][name], peer[direction]
            line += [f"{shown(ours)} {name.split(', ')[1]}", shown(theirs), f"{theirs[0] / ours[0]:.2f}"]
        rows.append(line)
    return rows


def key(cell: Json) -> tuple[Any, ...]:
    """What was measured, by whatever."""
    return cell["of"], cell["B"], cell["dtype"]


def row(cell: Json, choice: list[str]) -> list[str]:
    """A cell's times, the chosen ones in bold."""
    names = [f"{d}, {plan}" for d in DIRECTIONS for plan in ("fused", "composed")]
    if cell["kind"] == "sampling":
        names = ["resident", "rows", "graph"]
    times = cell["milliseconds"]
    texts = [
        ("**{}**" if name in choice else "{}").format(shown(times[name])) if name in times else "–" for name in names
    ]
    return [str(cell["of"]), str(cell["B"]), cell["dtype"], *texts]


def shown(times: list[float]) -> str:
    """Median and least."""
    return f"{times[0]:.2f} ({times[1]:.2f})"


def chosen(cell: Json, run: Json) -> list[str]:
    """The names of what the planner chooses on that GPU, in each direction if there are two."""
    gpu, (of, B, elements) = run["environment"]["gpu"], key(cell)
    major, minor = gpu["capability"]
    device = plans.Device(f"sm_{major}{minor}", gpu["multiprocessors"], gpu["shared_memory_of_a_block"])
    dtype = precision.TORCH[elements]
    size, products = dtype.itemsize, plans.precision_of(dtype, elements == "tf32")
    if cell["kind"] == "layer":
        return [f"{d}, {tune.title(plans.ranked(d, of, B, size, products, device)[0])}" for d in DIRECTIONS]
    with torch.device("meta"):
        model = FusedLSTMMDN.from_pretrained(of) if of == KANJI else build(of)
    shape = model.num_layers, model.hidden_size, model.head.out_features, B, size, products, device
    if cell["kind"] == "sampling":
        return [sampling_plans.ranked(*shape)[0].name]
    return [f"{d}, {training_plans.ranked(d, *shape)[0].name}" for d in DIRECTIONS]


def runs() -> list[Json]:
    """All that was measured."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("plans-*.json"))]


if __name__ == "__main__":
    PAGE.write_text(page(runs()))
    print(f"wrote {PAGE}")
