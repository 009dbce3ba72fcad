"""The committed table of figures: reading and writing it, whether it is stale, and what a figure must not be."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from .sources import source_of
from .targets import TARGETS
from .variants import Variant, pairs_of

PATH = Path(__file__).with_name("table.json")
PINNED = "3.7.1"  # the Triton that the figures are of: another compiles the same kernel differently
REFRESH = "python -m tests.compile_gate --refresh"
GROWING = ("registers", "shared", "spills", "barriers")


def key(name: str, target: str) -> str:
    return f"{name} {target}"


def digests(variants: Iterable[Variant]) -> dict[str, str]:
    """By the name of a variant: of its definition and its kernel's source, which with Triton determine its rows."""
    variants = list(variants)
    source = {kernel: source_of(kernel) for kernel in {variant.kernel for variant in variants}}
    found = {}
    for variant in variants:
        definition = f"{replace(variant, targets=())!r}\n".encode()
        found[variant.name] = hashlib.sha256(definition + source[variant.kernel]).hexdigest()[:12]
    return found


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def write(rows: dict[str, dict], triton: str, path: Path) -> None:
    """One line for a row, so that a change of one is a change of one line."""
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f'{{\n  "triton": {json.dumps(triton)},\n  "pairs": {{\n{lines}\n  }}\n}}\n')
    os.replace(temporary, path)


def stale(table: dict, variants: Iterable[Variant]) -> list[str]:
    """Why the table is not of these variants, if it is not."""
    variants = list(variants)
    digest = digests(variants)
    rows, wanted = table["pairs"], {key(v.name, target): digest[v.name] for v, target in pairs_of(variants)}
    changed = [name for name in wanted.keys() & rows.keys() if rows[name].get("digest") != wanted[name]]
    found = {
        "no row for": wanted.keys() - rows.keys(),
        "rows that do not ship:": rows.keys() - wanted.keys(),
        "kernel or variant has changed since the row was made:": changed,
    }
    reasons = [f"{reason} {few(names)}" for reason, names in found.items() if names]
    if table["triton"] != PINNED:
        reasons.append(f"it is of Triton {table['triton']}, not of {PINNED}")
    return [f"the table is stale, run `{REFRESH}`: {reason}" for reason in reasons]


def few(names: Collection[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
