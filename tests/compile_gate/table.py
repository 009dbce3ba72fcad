"""The committed table of figures: reading and writing it, whether it is stale, and what a figure must not be."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path

from .targets import TARGETS
from .variants import Variant, pairs_of
from .workers import ROOT

PATH = Path(__file__).with_name("table.json")
PINNED = "3.7.1"  # the Triton that the figures are of: another compiles the same kernel differently
REFRESH = "python -m tests.compile_gate --refresh"
GROWING = ("registers", "shared", "spills", "barriers")


def key(name: str, target: str) -> str:
    return f"{name} {target}"


def digest(variants: Iterable[Variant]) -> str:
    """SHA-256 of what determines the figures, but for Triton: the kernels' files and the variants' definitions."""
    variants = list(variants)
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "kernels" / "triton").glob("*.py")}
    for module in {variant.kernel.partition(":")[0] for variant in variants}:
        spec = importlib.util.find_spec(module)
        path = Path(spec.origin).resolve() if spec and spec.origin else None
        if path not in {file.resolve() for file in files.values()}:
            files[module] = path
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        found.update(f"{name}\n".encode() + (path.read_bytes() if path else b""))
    for variant in sorted(variants, key=lambda variant: variant.name):
        found.update(f"{variant!r}\n".encode())
    return found.hexdigest()


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def write(variants: Iterable[Variant], figures: dict[tuple[str, str], dict], triton: str, path: Path) -> None:
    """One line for a pair, so that a change of one is a change of one line."""
    rows = {key(*pair): row for pair, row in figures.items()}
    lines = ",\n".join(f"    {json.dumps(pair)}: {json.dumps(rows[pair])}" for pair in sorted(rows))
    head = f'  "triton": {json.dumps(triton)},\n  "digest": {json.dumps(digest(variants))},\n'
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f'{{\n{head}  "pairs": {{\n{lines}\n  }}\n}}\n')
    os.replace(temporary, path)


def stale(table: dict, variants: Iterable[Variant]) -> list[str]:
    """Why the table is not of these variants, if it is not."""
    variants = list(variants)
    wanted = {key(variant.name, target) for variant, target in pairs_of(variants)}
    reasons = [f"no row for {name}" for name in sorted(wanted - set(table["pairs"]))]
    reasons += [f"a row for {name}, which does not ship" for name in sorted(set(table["pairs"]) - wanted)]
    if table["digest"] != digest(variants):
        reasons.append("kernels or variants have changed since it was made")
    if table["triton"] != PINNED:
        reasons.append(f"it is of Triton {table['triton']}, not of {PINNED}")
    return [f"the table is stale, run `{REFRESH}`: {reason}" for reason in reasons]


def faults(variant: Variant, target: str, figures: dict) -> list[str]:
    """What a kernel must not do, with any Triton."""
    if "error" in figures:
        return [f"did not compile: {figures['error']}"]
    found = list(figures["lint"])
    if figures["spills"]:
        found.append(f"spills {figures['spills']} bytes a thread")
    if figures["shared"] > TARGETS[target].shared:
        found.append(f"shared memory {figures['shared']} > {TARGETS[target].shared} bytes")
    if variant.wants_mma and not figures["matrix"]:
        found.append("no matrix instructions")
    return found


def growth(figures: dict, row: dict) -> list[str]:
    """What is more than in the table."""
    if "error" in figures:
        return []
    return [f"{name} {figures[name]} > {row[name]} in the table" for name in GROWING if figures[name] > row[name]]
