"""All parts by name; `python -m bench.gpu.parts FD` performs one.

Its standard input says which: {"part": name, "tests": what pytest is told}.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from fusedmdn import ops

from . import network, objective, promises, sampling_promises, suite, training_promises
from .machine import Machine, cuda
from .sizes import Sizes

Json = dict[str, Any]


def parts(machine: Machine, sizes: Sizes, tests: Sequence[str] = suite.WORDS) -> dict[str, Callable[[], Json]]:
    """All parts by name, the quick and telling ones first."""
    found: dict[str, Callable[[], Json]] = {
        "tests": functools.partial(suite.run, tests),
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
    return found


def attempt(part: Callable[[], Json]) -> Json:
    """The part's results; an exception is its trouble, a refused launch too, unless the plan is none of this GPU's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ops.FallbackWarning)
            return part()
    except Exception as error:
        line = (str(error).strip() or "no message").partition("\n")[0]
        if promises.NO_FIT in line:
            return {"trouble": None, "left out": line}
        return {"trouble": f"{type(error).__name__}: {line}", "traceback": traceback.format_exc()}


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "w") as out:
        task = json.load(sys.stdin)
        found = parts(cuda(), Sizes(), task["tests"])
        print(json.dumps({"part": attempt(found[task["part"]])}), file=out)
