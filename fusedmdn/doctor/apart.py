"""Calls side by side, each in a process of its own: what one breaks or hangs is its own trouble."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")


def side_by_side(
    calls: Mapping[str, Callable[[], T]], patience: float, most: int
) -> Iterator[tuple[str, Callable[[], T]]]:
    """For each call its name and what waits for its result, `most` of them running at a time.

    Waiting raises RuntimeError if the process died, and TimeoutError if it took more than `patience` seconds from then
    on; it is then killed. Calls and results must be picklable; what a call raises is a death.
    """
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    left, begun = list(calls.items()), {}

    def begin() -> None:
        if left:
            name, call = left.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(sender, call), daemon=True)
            process.start()
            sender.close()
            begun[name] = process, receiver

    try:
        for _ in range(most):
            begin()
        for name in calls:
            yield name, partial(_result, *begun[name], patience)
            begin()
    finally:
        for process, _ in begun.values():
            process.kill()


def _answer(sender: Connection, call: Callable[[], T]) -> None:
    sender.send(call())


def _result(process: BaseProcess, receiver: Connection, patience: float) -> Any:
    if not receiver.poll(patience):
        process.kill()
        raise TimeoutError(f"it did not end in {patience:g} s")
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with exit code {process.exitcode}") from None
