"""A part's process: heard line by line, and whatever becomes of it told in a line."""

import os
import sys
import time

import pytest

from bench import processes

SAY = "import json, os, sys\nout = os.fdopen(int(sys.argv[-1]), 'w')\ntask = json.load(sys.stdin)\n"


def converse(code, silence=20.0, **options):
    heard = []
    command = [sys.executable, "-c", SAY + code]
    trouble = processes.converse(command, {"n": 3}, heard.append, threads=1, silence=silence, **options)
    return heard, trouble


def test_every_line_is_heard():
    heard, trouble = converse("for n in range(task['n']): print(json.dumps({'n': n, 'long': 'x' * 100000}), file=out)")
    assert trouble is None
    assert [message["n"] for message in heard] == [0, 1, 2]


def test_what_libraries_print_is_not_heard():
    heard, trouble = converse("print('hello'); sys.stderr.write('oh'); print(json.dumps(1), file=out)")
    assert (heard, trouble) == ([1], None)


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        ("raise ValueError('such a number')", "ended with exit code 1: ValueError: such a number"),
        ("sys.exit(7)", "ended with exit code 7: it printed nothing"),
        ("os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL): out of memory?"),
        ("os.abort()", "killed by signal 6 (SIGABRT)"),
    ],
)
def test_what_became_of_it(code, trouble):
    heard, told = converse(f"print('1', file=out, flush=True)\n{code}")
    assert heard == [1]
    assert told == trouble


def test_a_process_that_hangs_is_ended_with_all_that_it_started():
    start = time.monotonic()
    code = (
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '600'], pass_fds=[out.fileno()])\n"
        "print(child.pid, file=out, flush=True)\ntime.sleep(600)"
    )
    (child,), trouble = converse(code, silence=2.0)
    assert trouble == "said nothing for 2 s and was ended"
    assert time.monotonic() - start < 15
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}") or "Z" in open(f"/proc/{child}/stat").read().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the child lives")


def test_it_does_not_read_its_task():
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    trouble = processes.converse(command, {"n": "x" * 10_000_000}, print, threads=1, silence=20.0)
    assert trouble == "ended with exit code 3: it printed nothing"


def test_an_interrupt_ends_it():
    def interrupt(message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.converse(
            [sys.executable, "-c", SAY + "print(1, file=out, flush=True); import time; time.sleep(600)"],
            {}, interrupt, threads=1, silence=20.0,
        )  # fmt: skip


def test_threads_and_cores():
    code = "print(json.dumps([os.environ['OMP_NUM_THREADS'], sorted(os.sched_getaffinity(0))]), file=out)"
    (core, *_) = processes.available_cores()
    assert converse(code, cores=[core])[0] == [["1", [core]]]
