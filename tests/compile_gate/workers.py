"""Compiles pairs in worker processes. What kills a worker (Triton 3.9.0 can abort) costs only the pair it was at."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .compiler import request
from .variants import Variant

ROOT = Path(__file__).parents[2]
WORKERS = 2
TIMEOUT = 300  # seconds for one pair


class Died(Exception):
    """A worker ended before it answered."""


class Worker:
    """One process of compiler.py, with a cache folder of its own."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="compile-gate-")
        self.errors = open(Path(self.folder.name) / "stderr", "w+", errors="replace")
        # What steers Triton from outside would make figures that are not the package's.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PTXAS_", "AMDGCN_"))}
        environment["TRITON_CACHE_DIR"] = f"{self.folder.name}/cache"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.compile_gate.compiler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,  # so that a kill also reaches the ptxas it waits for
        )
        self.triton = self.answer(TIMEOUT)["triton"]

    def answer(self, timeout: float) -> dict:
        late = threading.Event()
        timer = threading.Timer(timeout, lambda: (late.set(), self.kill()))
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        said = " ".join(self.errors.read().split())[-600:]
        self.close()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        raise Died(f"no answer in {timeout:g} s" if late.is_set() else f"the compiler died, {how}: {said}")

    def compile(self, variant: Variant, target: str, timeout: float) -> dict:
        try:
            self.process.stdin.write(request(variant, target))
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() says why
        return self.answer(timeout)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            stream.close()
        self.folder.cleanup()


def compile_all(
    pairs: Iterable[tuple[Variant, str]],
    progress: Callable[[Variant, str, dict], None] = lambda variant, target, figures: None,
    timeout: float = TIMEOUT,
) -> dict[tuple[str, str], dict]:
    """Figures by (name of variant, target), {"error": why} for what did not compile, in the order of pairs."""
    pairs = list(pairs)
    waiting = deque(pairs)
    figures: dict[tuple[str, str], dict] = {}
    running: set[Worker] = set()

    def work() -> None:
        worker = None
        try:
            while True:
                try:
                    variant, target = waiting.popleft()
                except IndexError:  # the other thread may have taken the last
                    return
                try:
                    if worker is None:
                        worker = Worker()
                        running.add(worker)
                    found = worker.compile(variant, target, timeout)
                except Died as death:
                    running.discard(worker)
                    worker, found = None, {"error": str(death)}
                figures[variant.name, target] = found
                progress(variant, target, found)
        finally:
            if worker is not None:
                running.discard(worker)
                worker.close()

    with ThreadPoolExecutor(WORKERS) as pool:
        threads = [pool.submit(work) for _ in range(min(WORKERS, len(pairs)))]
        try:
            for thread in threads:
                thread.result()
        except BaseException:
            waiting.clear()
            for worker in list(running):
                worker.kill()
            raise
    return {(variant.name, target): figures[variant.name, target] for variant, target in pairs}


def installed_triton() -> str:
    """The version that workers compile with."""
    worker = Worker()
    worker.close()
    return worker.triton
