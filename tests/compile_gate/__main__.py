"""Compiles the kernels that ship, and prints, checks or rewrites their figures."""

import argparse
import fnmatch
import sys
from pathlib import Path

from . import table
from .shipped import shipped
from .targets import TARGETS
from .variants import Variant, pairs_of
from .workers import compile_all, installed_triton

COLUMNS = ("registers", "spills", "stack", "shared", "matrix", "barriers", "atomics", "loop_loads")


def main(arguments: list[str], variants: list[Variant], path: Path) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compile_gate", description=__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--refresh", action="store_true", help=f"rewrite {path.name}")
    action.add_argument("--check", action="store_true", help=f"compare with {path.name}")
    parser.add_argument(
        "--variant", metavar="PATTERN", default="*", help="only variants with this in their name (a glob)"
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this target; may be repeated")
    options = parser.parse_args(arguments)
    pairs = [
        (variant, target)
        for variant, target in pairs_of(variants)
        if fnmatch.fnmatchcase(variant.name, f"*{options.variant}*") and target in (options.target or TARGETS)
    ]
    if not pairs:
        parser.error("no such variant and target")
    if options.refresh and len(pairs) < len(pairs_of(variants)):
        parser.error("--refresh is for all variants and targets")
    triton = installed_triton()
    if options.refresh and triton != table.PINNED:
        parser.error(
            f"the table is of Triton {table.PINNED}, and {triton} is installed: pip install triton=={table.PINNED}"
        )

    done = 0

    def progress(variant: Variant, target: str, figures: dict) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{len(pairs)}] {variant.name} {target}", file=sys.stderr)

    figures = compile_all(pairs, progress)
    faults = {(v.name, t): table.faults(v, t, figures[v.name, t]) for v, t in pairs}
    complaints = []
    if options.check:
        committed = table.read(path)
        complaints += table.stale(committed, variants)
        if triton == committed["triton"]:
            for pair in figures:
                faults[pair] += table.growth(figures[pair], committed["pairs"].get(table.key(*pair), figures[pair]))
        else:
            print(f"Triton {triton}: growth is not checked, the table is of {committed['triton']}")
    else:
        show(figures)
    complaints += [f"{table.key(*pair)}: {fault}" for pair, found in faults.items() for fault in found]
    for complaint in complaints:
        print(complaint)
    if options.refresh:
        if any("error" in row for row in figures.values()):
            print(f"{path.name} is as it was")
        else:
            table.write(variants, figures, triton, path)
    print(f"{len(pairs)} pairs with Triton {triton}, {len(complaints)} complaints")
    return 1 if complaints else 0


def show(figures: dict[tuple[str, str], dict]) -> None:
    """An aligned table."""
    rows = [("variant", "target", *COLUMNS)]
    rows += [(*pair, *(str(row.get(column, "-")) for column in COLUMNS)) for pair, row in figures.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], shipped(), table.PATH))
