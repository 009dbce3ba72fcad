"""Spoil every loader's files for a while, guided by coverage (atheris), each in a process of its own.

What fails is kept in build/fuzz, and told with how to see it again; exit code 1 then. The corpus stays there, too, and
the next run begins with it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..conftest import ROOT
from .targets import TARGETS, prepare

BUILD = ROOT / "build" / "fuzz"
MEGABYTES, SECONDS = 2048, 10  # that one input may take
FINDINGS = ("crash", "timeout", "oom", "leak")
DONE = re.compile(r"^#\d+\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)
EXECUTIONS = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)


class Result(NamedTuple):
    """Of a target: how many inputs ran, libFuzzer's coverage, features and corpus, and what failed."""

    executions: int
    coverage: int
    features: int
    corpus: int
    findings: list[Path]
    log: Path


def main(arguments: list[str]) -> int:
    """The command; gives its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="in all, divided over the targets (%(default)s)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be repeated")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="load what was found, by the one --target given")
    options = parser.parse_args(arguments)
    chosen = options.target or list(TARGETS)
    if options.reproduce is not None:
        if len(chosen) != 1:
            parser.error("--reproduce takes one --target")
        return reproduce(chosen[0], options.reproduce)
    if find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install atheris")
    seconds = round(60 * options.minutes / len(chosen))
    if seconds < 1:
        parser.error(f"--minutes {options.minutes:g} leaves nothing for each of {len(chosen)} targets")
    console = Console(soft_wrap=True)
    results = {name: fuzz(name, seconds) for name in track(chosen, f"{seconds} s a target", console=console)}
    show(results, console)
    return 1 if any(result.findings for result in results.values()) else 0


def reproduce(name: str, path: Path) -> int:
    """Load one input, without atheris: its error comes out as it is."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(name, Path(folder)).check(path.read_bytes())
    print(f"{name} takes {path}, or refuses it with a reason")
    return 0


def fuzz(name: str, seconds: int) -> Result:
    """Run a target for so long, or until something fails."""
    found = BUILD / name
    before = {path: path.stat().st_mtime for path in failed(found)}
    (found / "corpus").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(found / "files", ignore_errors=True)
    (found / "files").mkdir()
    command = [
        sys.executable, "-m", "tests.fuzz.program", name, str(found), f"-max_total_time={seconds}",
        f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={found}/", "-print_final_stats=1",
    ]  # fmt: skip
    log = found / "log"
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=seconds + 300)
        except BaseException:
            process.kill()
            process.wait()
            raise
    told = log.read_text(errors="replace")
    findings = [path for path in failed(found) if before.get(path) != path.stat().st_mtime]
    if process.returncode and not findings:
        findings = [log]  # it failed before, or beside, an input
    executions, reached = EXECUTIONS.findall(told) or [0], DONE.findall(told) or [(0, 0, 0)]
    return Result(int(executions[-1]), *map(int, reached[-1]), findings, log)


def failed(folder: Path) -> list[Path]:
    """Inputs that libFuzzer kept."""
    return sorted(path for kind in FINDINGS for path in folder.glob(f"{kind}-*"))


def show(results: dict[str, Result], console: Console) -> None:
    """A row a target, and below it how to see every finding again."""
    table = Table("target", "executions", "coverage", "features", "corpus", "findings")
    for name, result in results.items():
        table.add_row(name, f"{result.executions:,}", *map(str, result[1:4]), str(len(result.findings)))
    table.add_section()
    total = [f"{sum(column):,}" for column in zip(*(result[:4] for result in results.values()), strict=True)]
    table.add_row("all", *total, str(sum(len(result.findings) for result in results.values())))
    console.print(table)
    for name, result in results.items():
        for path in result.findings:
            if path == result.log:
                console.print(f"{name}: stopped for another reason than an input; see {path}")
            else:
                where = os.path.relpath(path)
                console.print(f"{name}: python -m tests.fuzz --target {name} --reproduce {where}; see {result.log}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
