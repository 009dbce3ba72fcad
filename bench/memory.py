"""Peak memory of a loss, in a process of its own: `python -m bench.memory NAME T B` prints it, `peak_over_raw` asks.

The allocator is told to give every large block back at once, so that the peak of resident memory is that of live
tensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPEATS = 3
WARM_UP = 2
MMAP_THRESHOLD = 65536


def peak_over_raw(name: str, T: int, B: int) -> list[float]:
    """Peaks above y, as multiples of y's bytes, of the loss of that name in `works.loss`.

    Raises RuntimeError with the process's last line where it failed.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)}
    command = [sys.executable, "-m", "bench.memory", name, str(T), str(B)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def status(field: str) -> int:
    """Bytes that /proc/self/status gives for a field."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peaks(name: str, T: int, B: int) -> list[float]:
    """Measure in this process."""
    import torch

    from .works import loss

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    raw, target = loss.arguments(T, B)
    function = loss.TORCH[name](loss.M)
    for _ in range(WARM_UP):
        loss.forward_and_gradient(function, raw, target)
    multiples = []
    for _ in range(REPEATS):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        before = status("VmRSS")
        loss.forward_and_gradient(function, raw, target)
        multiples.append((status("VmHWM") - before) / raw.nbytes)
    return multiples


if __name__ == "__main__":
    print(json.dumps(peaks(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
