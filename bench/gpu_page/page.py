"""The whole page."""

from __future__ import annotations

import itertools

from . import kernels, recurrence, sampling, training
from .common import Rows

COMMAND = "python -m bench.gpu_page"
HEAD = f"""# GPU kernels: computed costs

**Nothing on this page was measured on a GPU.** Every time is a floor, arithmetic on a datasheet's figures, and never an
expected time: latencies, barriers and launches are not in it. What was measured: [gpu-measured.md](gpu-measured.md).

Written by `{COMMAND}` from `python/plans.py`, `python/training_plans.py`, `python/sampling_plans.py`,
`python/cost.py` and `tests/compile_gate/table.json`.
"""


def page(rows: Rows) -> str:
    """The recurrence, training, sampling, and what the compiler says of all."""
    written = (section.sections(rows) for section in (recurrence, training, sampling))
    parts = itertools.chain(*written, kernels.needs(rows))
    return "\n".join([HEAD, *parts]).rstrip() + "\n"
