"""Runs of the real command on small jobs, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fusedmdn import jobs

PATIENCE = 120  # seconds for what takes a few: the machine may be busy


def tree(directory):
    """Names and bytes of all files."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


def assert_whole(directory, expected):
    """Complete, byte for byte what is expected, every sequence once, nothing left over."""
    job = jobs.Job(directory)
    found = jobs.verify(job, clean=True)
    assert found.complete, found
    assert not job.leftovers()
    assert tree(directory) == expected
    shards = sorted((directory / "strokes").iterdir())
    indices = np.concatenate([pq.read_table(shard)["index"].to_numpy() for shard in shards])
    assert np.array_equal(indices, np.arange(job.spec.sequences))


@contextmanager
def command(*arguments, lingering=None, **options):
    """`fusedmdn jobs run` at work, in a session of its own, which is then empty, or put into `lingering`."""
    words = [sys.executable, "-m", "fusedmdn", "jobs", "run", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, **pipes, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
        if lingering is None:
            wait_until_empty(process.pid)
        else:
            lingering.append(process.pid)


def ended(process):
    """Its exit code, what it said, and what it said on stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def run_to_the_end(*arguments):
    with command(*arguments) as process:
        code, out, err = ended(process)
        assert (code, err) == (0, ""), (code, out, err)


def wait_until(condition, what, seconds=PATIENCE):
    """Wait for something; gives it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)
    return found


def wait_until_empty(leader):
    """Wait until a session's processes are gone, and see to it."""
    try:
        wait_until(lambda: not session(leader), "the run's processes to be gone")
    finally:
        for pid in session(leader):
            os.kill(pid, signal.SIGKILL)


def session(leader):
    """Processes of a session that are alive, and the command line of each."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def actors(leader):
    """Those of a session that make shards."""
    return [pid for pid, line in session(leader).items() if line.startswith("ray::_Maker")]
