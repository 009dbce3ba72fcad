"""Compiles the kernels that ship, and prints or checks their figures, or writes those that are out of date."""

import argparse
import fnmatch
import itertools
import signal
import sys
from collections.abc import Callable
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
    action.add_argument("--refresh", action="store_true", help=f"bring {path.name} up to date")
    action.add_argument("--check", action="store_true", help=f"compare with {path.name}")
    parser.add_argument("--all", action="store_true", help="with --refresh: compile what is up to date, too")
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

    if options.refresh:
        figures = refresh(pairs, triton, options.all, path)
    else:
        figures = compile_all(pairs, progress_of(len(pairs)))
        if not options.check:
            show(figures)
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
    complaints += [f"{table.key(*pair)}: {fault}" for pair, found in faults.items() for fault in found]
    for complaint in complaints:
        print(complaint)
    print(f"{len(pairs)} pairs with Triton {triton}, {len(complaints)} complaints")
    return 1 if complaints else 0


def progress_of(total: int) -> Callable[[Variant, str, dict], None]:
    """Says on stderr what has been compiled, and which of how many it is."""
    number = itertools.count(1)
    return lambda variant, target, figures: print(f"[{next(number)}/{total}] {variant.name} {target}", file=sys.stderr)


def refresh(pairs: list[tuple[Variant, str]], triton: str, everything: bool, path: Path) -> dict[tuple[str, str], dict]:
    """Figures of all pairs, after compiling those whose row is missing or stale and rewriting the table.

    An interruption loses no finished row; the others stay as they are, and stale. Digests are taken before anything is
    compiled, so that a kernel that is edited meanwhile is stale, too.
    """
    old = table.read(path) if path.exists() else {"triton": triton, "pairs": {}}
    digest = table.digests(variant for variant, _ in pairs)
    names = {(variant.name, target): table.key(variant.name, target) for variant, target in pairs}
    reusable = old["pairs"] if old["triton"] == triton and not everything else {}
    rows = {name: reusable[name] for name in names.values() if name in reusable}
    todo = [(v, t) for v, t in pairs if rows.get(names[v.name, t], {}).get("digest") != digest[v.name]]
    tell = progress_of(len(todo))

    def progress(variant: Variant, target: str, figures: dict) -> None:
        tell(variant, target, figures)
        if "error" not in figures:
            rows[names[variant.name, target]] = figures | {"digest": digest[variant.name]}

    try:
        compiled = compile_all(todo, progress)
    finally:
        table.write(rows, triton, path)
    show(compiled)
    dropped = len(old["pairs"].keys() - names.values())
    print(f"{path.name}: {len(pairs) - len(todo)} rows kept, {len(todo)} compiled, {dropped} dropped")
    return {pair: compiled.get(pair) or rows[name] for pair, name in names.items()}


def show(figures: dict[tuple[str, str], dict]) -> None:
    """An aligned table."""
    rows = [("variant", "target", *COLUMNS)]
    rows += [(*pair, *(str(row.get(column, "-")) for column in COLUMNS)) for pair, row in figures.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an interruption, as Ctrl-C is
    sys.exit(main(sys.argv[1:], shipped(), table.PATH))
