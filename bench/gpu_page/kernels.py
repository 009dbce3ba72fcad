"""Registers and shared memory of all kernels, on all targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..markdown import table
from .common import GPUS, Rows, kib


def needs(rows: Rows) -> Iterator[str]:
    """Registers and shared memory of all kernels, on all targets."""
    pairs = [(name.split(), figures) for name, figures in rows.pairs.items()]
    yield "## What the kernels need\n"
    yield f"{len(pairs):,} pairs of a kernel, with its sizes and options, and a target, by Triton {rows.triton}."
    yield "Least to most registers of a thread; the most shared memory of a program in KiB.\n"
    yield from spills(pairs)
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for words, figures in pairs:
        groups.setdefault((words[0], words[1]), {}).setdefault(words[-1], []).append(figures)
    lines = [
        [*key, *(span(by_target[target]) if target in by_target else "–" for target in GPUS)]
        for key, by_target in sorted(groups.items())
    ]
    yield from table(["kernel", "elements", *GPUS], lines)


def spills(pairs: list[tuple[list[str], dict[str, Any]]]) -> Iterator[str]:
    """That no kernel spills, or which do."""
    spilling: dict[str, list[int]] = {}
    for words, figures in pairs:
        if figures["spills"]:
            spilling.setdefault(" ".join(words[:2]), []).append(figures["spills"])
    if not spilling:
        yield "No pair spills a register.\n"
        return
    yield f"**{sum(map(len, spilling.values()))} pairs spill**, in bytes of a thread at most:\n"
    yield from (f"- {kernel}: {len(sizes)} pairs, {max(sizes)}" for kernel, sizes in sorted(spilling.items()))
    yield ""


def span(figures: list[dict[str, Any]]) -> str:
    """The range of registers and the largest shared memory."""
    registers = sorted({row["registers"] for row in figures})
    least, most = registers[0], registers[-1]
    return f"{least if least == most else f'{least}–{most}'}; {kib(max(row['shared'] for row in figures))}"
