"""Processes of a benchmark: pinned to cores, told their threads before libraries load, heard line by line."""

from __future__ import annotations

import functools
import json
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]
ENDING = 60.0  # seconds that a process may take to end after its last word
LOOK = 0.5  # seconds between two looks whether all shall stop


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(cores: list[int]) -> functools.partial[None] | None:
    """What binds a new process to cores before its libraries start threads; None where the system cannot."""
    return functools.partial(os.sched_setaffinity, 0, cores) if hasattr(os, "sched_setaffinity") else None


def environment(threads: int, kind: str = "cpu") -> dict[str, str]:
    """Variables that libraries read when they are loaded, for work on the CPU, or on a GPU ("cuda")."""
    count = str(threads)
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    if kind == "cpu":
        variables["JAX_PLATFORMS"] = "cpu"  # which takes its threads from the cores it is pinned to
    return {**os.environ, **variables}


def converse(
    command: Sequence[str],
    task: Json,
    hear: Callable[[Json], None],
    *,
    threads: int,
    kind: str = "cpu",
    cores: list[int] | None = None,
    silence: float,
    stop: threading.Event | None = None,
) -> str | None:
    """Run a process that reads `task` and writes JSON lines to the descriptor that is its last argument.

    Its group is killed when it says nothing for `silence` seconds, when this is interrupted, or `stop` is set.

    Returns:
        What went wrong, in a line, or None.
    """
    reader, writer = os.pipe()
    with tempfile.TemporaryFile("w+", errors="replace") as printed, os.fdopen(reader, "rb") as lines:
        process = subprocess.Popen(
            [*command, str(writer)],
            stdin=subprocess.PIPE, stdout=printed, stderr=printed, text=True, pass_fds=(writer,),
            env=environment(threads, kind), preexec_fn=None if cores is None else pin(cores), start_new_session=True,
        )  # fmt: skip
        os.close(writer)
        try:
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(json.dumps(task))
            if not _heard(lines.fileno(), hear, silence, stop or threading.Event()):
                return f"said nothing for {silence:g} s and was ended"
            process.wait(ENDING)
        except BrokenPipeError:
            process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return f"did not end in {ENDING:g} s after its last word"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return _fate(process.returncode, printed)


def _heard(descriptor: int, hear: Callable[[Json], None], silence: float, stop: threading.Event) -> bool:
    """Hand over every line until the other end is closed; False where there was silence for too long, or it stops."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            end = time.monotonic() + silence
            while not selector.select(min(LOOK, max(0.0, end - time.monotonic()))):
                if stop.is_set() or time.monotonic() >= end:
                    return False
            block = os.read(descriptor, 1 << 16)
            if not block:
                return True
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                hear(json.loads(line))


def _fate(code: int, printed: Any) -> str | None:
    """How a process ended that did not end well."""
    if code == 0:
        return None
    if code < 0:
        hint = ": out of memory?" if -code == signal.SIGKILL else ""
        return f"killed by signal {-code} ({signal.Signals(-code).name}){hint}"
    printed.seek(0)
    last = (printed.read().strip() or "it printed nothing").splitlines()[-1]
    return f"ended with exit code {code}: {last}"
