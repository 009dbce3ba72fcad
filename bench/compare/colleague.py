"""The parent's side of a worker: started pinned, asked line by line, ended with the block."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..processes import environment, pin

LAST_LINES = 3  # of a dead worker's stderr, which are shown


class Cannot(Exception):
    """A case cannot be run; the message is the reason that is shown."""


class Died(Exception):
    """A worker has ended, or never began; the message says how."""


class Ready(NamedTuple):
    """A prepared case: numbers of every tensor, and about how long a call takes."""

    values: list[list[float]]
    seconds: float


class Worker:
    """A process that speaks the protocol of `worker`; every method raises Died if it does so no more."""

    def __init__(self, process: subprocess.Popen[str], stderr: IO[str]) -> None:
        self.process, self.stderr = process, stderr

    def greet(self) -> None:
        """Wait until it is ready."""
        hello = self._read()
        if "refused" in hello:
            raise Died(f"refused: {hello['refused']}")

    def prepare(self, case: str) -> Ready:
        """Build a case, check it, and run it; raises Cannot."""
        answer = self._ask({"prepare": case})
        return Ready(answer["values"], answer["seconds"])

    def time(self, calls: int) -> float:
        """Seconds of so many calls of the prepared case; raises Cannot."""
        return float(self._ask({"time": calls})["seconds"])

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._epitaph()) from None
        answer = self._read()
        if "cannot" in answer:
            raise Cannot(answer["cannot"])
        return answer

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise Died(self._epitaph())
        return dict(json.loads(line))

    def _epitaph(self) -> str:
        code = self.process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self.stderr.seek(0)
        last = " | ".join(line.strip() for line in self.stderr.read().splitlines()[-LAST_LINES:])
        return f"{how}: {last}" if last else how


@contextlib.contextmanager
def running(command: Sequence[str], cwd: Path, variables: dict[str, str], cores: list[int]) -> Iterator[Worker]:
    """A worker's process, pinned to the cores; killed when the block ends.

    Raises:
        Died: it did not get ready.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            preexec_fn=pin(cores),
            start_new_session=True,  # Ctrl-C is for the parent alone, which then ends this process
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            worker = Worker(process, stderr)
            worker.greet()
            yield worker
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # what it did not read
                process.stdin.close()


def measuring(site: Path, harness: Path, cores: list[int], threads: int) -> contextlib.AbstractContextManager[Worker]:
    """The process of the package installed in `site`; `harness` holds `bench` and no package that could hide it."""
    variables = environment(threads)
    inherited = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    others = [path for path in inherited if not (Path(path) / "fusedmdn").exists()]
    variables["PYTHONPATH"] = os.pathsep.join([str(site), *others])
    variables["FUSEDMDN_REQUIRE_NATIVE"] = "1"  # one revision on the reference would be no comparison
    command = [sys.executable, "-m", "bench.compare.worker", str(site), str(threads)]
    return running(command, harness, variables, cores)
