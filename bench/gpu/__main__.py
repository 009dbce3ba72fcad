"""`python -m bench.gpu`: all tests on this machine's GPU, the kernels' promises, and times; one JSON file.

Every part has a process of its own: what a kernel breaks or hangs is that part's failure, and the rest still runs.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusedmdn import ops

from ..worker import FILE_WIDTH
from . import (
    network,
    objective,
    promises,
    report,
    sampling_promises,
    sampling_timings,
    suite,
    table,
    timings,
    training_promises,
    training_timings,
)
from .machine import Machine, cuda
from .sizes import Sizes

Json = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code: 1 where a part failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIRECTORY")
    parser.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="for a part, then it is ended")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(f"bench.gpu needs a GPU, and torch {torch.__version__} sees none: nothing was run", file=sys.stderr)
        return 2
    if given.part:
        given.into.write_text(json.dumps(attempt(parts(cuda(), Sizes())[given.part])))
        return 0
    where = report.describe(torch.cuda.get_device_properties(torch.cuda.current_device()))
    path = report.path_of(where, given.out)
    command = [sys.executable, "-m", "bench.gpu", "--part"]
    return run([*parts(cuda(), Sizes())], lambda name: apart([*command, name], given.limit), where, path)


def parts(machine: Machine, sizes: Sizes) -> dict[str, Callable[[], Json]]:
    """All parts by name, the quick and telling ones first."""
    found: dict[str, Callable[[], Json]] = {
        "tests": suite.run,
        "compiled variants": functools.partial(promises.compiled, machine, sizes),
        "repeated runs": functools.partial(promises.repeated, machine, sizes),
    }
    for plan in ("persistent", "stepwise"):
        found[f"CUDA graph, {plan}"] = functools.partial(promises.graph, machine, sizes, plan)
    of_training = {
        "training": training_promises.plain,
        "training in a CUDA graph": training_promises.captured,
        "training, compiled variants": training_promises.compiled,
    }
    of_sampling = {
        "sampling": sampling_promises.plain,
        "sampling in a CUDA graph": sampling_promises.captured,
        "sampling by the shipped weights": sampling_promises.real,
        "sampling, compiled variants": sampling_promises.compiled,
    }
    for plans, looks in ((objective.PLANS, of_training), (network.PLANS, of_sampling)):
        for plan, (name, look) in itertools.product(plans, looks.items()):
            found[f"{name}, {plan}"] = functools.partial(look, machine, sizes, plan)
    found["sampling on another GPU, graph"] = functools.partial(sampling_promises.elsewhere, machine, sizes)
    found |= {f"lstm, H {H}": functools.partial(timings.lstm, machine, sizes, H) for H in sizes.hidden}
    found["mdn_nll"] = functools.partial(timings.mdn_nll, machine, sizes)
    for name in sizes.training.models:
        found[f"training, model {name}"] = functools.partial(training_timings.training, machine, sizes, name)
    for name in sizes.sampling.models:
        found[f"sampling, model {name}"] = functools.partial(sampling_timings.sampling, machine, sizes, name)
    return found


def run(names: Sequence[str], perform: Callable[[str], Json], where: Json, path: Path) -> int:
    """Perform and print every part, and write the file anew after each; gives the exit code."""
    console, done = Console(), {}
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for name in names:
        start = time.monotonic()
        done[name] = {**perform(name), "seconds": time.monotonic() - start}
        report.write(path, where, done)
        for line in table.shown(name, done[name]):
            console.print(line, highlight=False, soft_wrap=isinstance(line, str), markup=False)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return int(any(part["trouble"] for part in done.values()))


def attempt(part: Callable[[], Json]) -> Json:
    """The part's results; an exception is its trouble, a refused launch too, unless the plan is none of this GPU's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ops.FallbackWarning)
            return part()
    except Exception as error:
        line = (str(error).strip() or "no message").partition("\n")[0]
        if timings.NO_FIT in line:
            return {"trouble": None, "left out": line}
        return {"trouble": f"{type(error).__name__}: {line}", "traceback": traceback.format_exc()}


def apart(command: Sequence[str], limit: float) -> Json:
    """The results of a part that runs in a process of its own, and of its group all that it starts."""
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) / "part.json"
        process = subprocess.Popen([*command, "--into", str(into)], start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return {"trouble": f"did not end in {limit:g} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code or not into.exists():
            return {"trouble": f"its process ended with exit code {code} and no results"}
        return json.loads(into.read_text())


if __name__ == "__main__":
    sys.exit(main())
