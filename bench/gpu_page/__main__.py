"""`python -m bench.gpu_page`: write docs/gpu.md, costs of the GPU kernels that arithmetic and a compiler can tell.

Nothing on it was measured on a GPU: plans and floors are of python/plans.py, python/training_plans.py,
python/sampling_plans.py and python/cost.py, registers and shared memory of the compile gate's table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .common import MissingRowError, Rows
from .page import COMMAND, page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"), metavar="FILE")
    given = parser.parse_args(argv)
    try:
        text = page(Rows())
    except MissingRowError as missing:
        print(missing, file=sys.stderr)
        return 1
    given.out.write_text(text)
    print(f"wrote {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
