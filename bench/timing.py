"""Interleaved timing: a repetition runs every contender once, so that all share the machine's good and bad times."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

PAUSE = 0.02  # seconds: worker threads of the contender before stop spinning


class Times(NamedTuple):
    """Seconds of every repetition: wall clock, and processor time of all threads."""

    wall: list[float]
    cpu: list[float]


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    pause: float = PAUSE,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Times]:
    """Time `repeats` calls of every function, in turn."""
    if repeats < 1:
        raise ValueError(f"repeats must be >= 1, got {repeats}")
    times = {name: Times([], []) for name in runs}
    gc.collect()
    gc.disable()  # a collection would fall into some contender's time
    try:
        for repetition in range(repeats):
            for name, run in runs.items():
                say(f"{name}, {repetition + 1} of {repeats}")
                time.sleep(pause)
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    finally:
        gc.enable()
    return times
