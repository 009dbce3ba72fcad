"""`python -m bench.cpu`: measure on this machine's CPU; one process, pinned, for each number of threads."""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .settings import FULL, QUICK, WORKS, Settings

MODELS = ("A", "B", "C", "D")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = options()
    given = parser.parse_args(argv)
    if given.worker:
        from .worker import run

        (threads,) = given.threads
        run(settings(given, threads), given.out, quick=given.quick)
        return 0
    cores = available_cores()
    for threads in given.threads:
        if not 1 <= threads <= len(cores):
            parser.error(f"--threads {threads}: this process may use 1 to {len(cores)} cores")
    for threads in given.threads:
        command = [sys.executable, "-m", "bench.cpu", *argv, "--threads", str(threads), "--worker"]
        done = subprocess.run(command, env=environment(threads), preexec_fn=pin(cores[-threads:]))
        if done.returncode:
            print(f"the run on {threads} threads failed with exit code {done.returncode}", file=sys.stderr)
            return 1
    return 0


def options() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("--works", type=_some_of(WORKS), default=WORKS, metavar=",".join(WORKS))
    parser.add_argument("--models", type=_some_of(MODELS), default=MODELS, metavar="A,B,C,D", help="for sampling")
    parser.add_argument("--models-train", type=_some_of(MODELS), default=("B",), metavar="B", help="for training")
    parser.add_argument("--threads", type=_numbers, default=(1, 2), metavar="1,2")
    parser.add_argument("--repeats", type=_positive, default=5, metavar="N", help="of sampling, loss and limit")
    parser.add_argument("--repeats-train", type=_positive, default=3, metavar="N", help="of training steps")
    parser.add_argument("--without", type=_words, default=(), metavar="WORD,…", help="contenders with these in names")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/results"), metavar="DIRECTORY", help="each run's file is written anew"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def settings(given: argparse.Namespace, threads: int) -> Settings:
    """What a worker measures."""
    return Settings(
        given.works,
        given.models,
        given.models_train,
        threads,
        2 if given.quick else given.repeats,
        2 if given.quick else given.repeats_train,
        given.without,
        QUICK if given.quick else FULL,
    )


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(cores: list[int]) -> functools.partial[None] | None:
    """What binds a new process to cores before its libraries start threads; None where the system cannot."""
    return functools.partial(os.sched_setaffinity, 0, cores) if hasattr(os, "sched_setaffinity") else None


def environment(threads: int) -> dict[str, str]:
    """Variables that libraries read when they are loaded."""
    count = str(threads)
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    return {**os.environ, **variables, "JAX_PLATFORMS": "cpu"}  # JAX takes its threads from the cores it is pinned to


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _some_of(known: Sequence[str]) -> functools.partial[tuple[str, ...]]:
    return functools.partial(_known_words, known)


def _known_words(known: Sequence[str], text: str) -> tuple[str, ...]:
    words = _words(text)
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
    return words


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {number}")
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


if __name__ == "__main__":
    sys.exit(main())
