"""One revision's process: does single repetitions of the cases when it is told to, over pipes.

    python -m bench.compare.worker SITE THREADS

A message is a line of JSON. First it says {"ready": true}, or {"refused": why}. Then it answers

    {"prepare": name}                -> {"values": lists of numbers, "seconds": of one call}
    {"time": how many calls}         -> {"seconds": of all calls}

until its input ends. What a case raises is an answer too, {"cannot": why}. Whatever else is printed goes to stderr.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

PACKAGE = "fusedmdn"
NUMBERS = 64  # of a tensor that are compared

Json = dict[str, Any]


class Refused(Exception):
    """The package is not the one that was to be measured."""


class Bench:
    """The case that is being measured."""

    def __init__(self, site: Path, prepare: Callable[[str], Callable[[], Any]]) -> None:
        self.site, self.prepare = site, prepare
        self.run: Callable[[], Any] | None = None

    def answer(self, message: Json) -> Json:
        """What is said to a message; an exception of the case's is its reason."""
        try:
            return self._prepare(message["prepare"]) if "prepare" in message else self._time(message["time"])
        except Exception as error:  # what an older revision lacks may be missed anywhere
            return {"cannot": f"{type(error).__name__}: {error}".splitlines()[0]}

    def _prepare(self, name: str) -> Json:
        self.run = None  # the last case's memory is free before this one's is asked for
        gc.collect()
        self.run = self.prepare(name)
        check_origin(self.site)
        values = [sample(v) for v in self.run()]
        gc.collect()
        return {"values": values, **self._time(1)}

    def _time(self, calls: int) -> Json:
        if self.run is None:
            raise RuntimeError("no case was prepared")
        start = time.perf_counter()
        for _ in range(calls):
            self.run()
        return {"seconds": time.perf_counter() - start}


def sample(tensor: Any) -> list[float]:
    """Numbers spread over a tensor, which stand for all of them."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // NUMBERS)].double().tolist()


def check_origin(site: Path) -> None:
    """Raise Refused unless all that is loaded of the package, and would be, lies in the directory."""
    package = importlib.import_module(PACKAGE)
    extension = importlib.util.find_spec(f"{PACKAGE}._cpu")
    found: dict[str, list[str | None]] = {
        f"the path of {PACKAGE}": list(package.__path__),
        "its extension": [extension.origin if extension else None],
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE:
            found[name] = [getattr(module, "__file__", None)]
    for name, paths in found.items():
        for path in paths:
            if path is not None and site.resolve() not in Path(path).resolve().parents:
                raise Refused(f"{name} is {path}, not in {site}")


def forget_editable_install() -> None:
    """The finder of an editable install would fill in, from the checkout, what a revision lacks."""
    prefix = f"__editable___{PACKAGE}_"
    sys.meta_path[:] = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith(prefix)]


def own_streams() -> tuple[IO[str], IO[str]]:
    """The pipes, which nobody else can read or print to from now on: not even C, by the descriptors' numbers."""
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return orders, answers


def serve(orders: IO[str], answers: IO[str], start: Callable[[], Callable[[Json], Json]]) -> None:
    """Start, say so, and answer every order."""

    def say(message: Json) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        answer = start()
    except Exception as error:
        say({"refused": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for line in orders:
        say(answer(json.loads(line)))


def start(site: Path, threads: int) -> Callable[[Json], Json]:
    """Load the package and the cases; gives what answers."""
    forget_editable_install()
    check_origin(site)
    import torch

    from ..speed.cases import CASES, prepare

    torch.set_num_threads(threads)
    gc.disable()  # a collection would fall into some revision's time
    return Bench(site, lambda name: prepare(CASES[name])).answer


if __name__ == "__main__":
    serve(*own_streams(), lambda: start(Path(sys.argv[1]), int(sys.argv[2])))
