"""The tests, in a process of their own; on a CUDA machine those that take a backend run on it too."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..environment import ROOT

WORDS = ("-m", "not slow")


def run(words: Sequence[str] = WORDS, folder: Path = ROOT) -> dict[str, Any]:
    """Counts, names and messages of failures, and how often each reason to skip was given."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "junit.xml"
        done = subprocess.run([sys.executable, "-m", "pytest", *words, f"--junitxml={path}"], cwd=folder)
        if not path.exists():
            return {"trouble": f"pytest ended with exit code {done.returncode} and no results"}
        found = read(path)
    if found["failed"]:
        return {"trouble": f"{found['failed']} of {found['failed'] + found['passed']} tests failed", **found}
    return {"trouble": f"pytest ended with exit code {done.returncode}" if done.returncode else None, **found}


def read(path: Path) -> dict[str, Any]:
    """The results in a JUnit XML file."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    failures, skips = [], Counter[str]()
    for case in cases:
        for kind in ("failure", "error"):
            for trouble in case.findall(kind):
                name = f"{case.get('classname')}::{case.get('name')}"
                failures.append({"test": name, "message": (trouble.get("message") or "").partition("\n")[0]})
        skips.update(skip.get("message") or "" for skip in case.findall("skipped"))
    failed = len({failure["test"] for failure in failures})
    skipped = sum(skips.values())
    return {
        "passed": len(cases) - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "failures": failures,
        "skips": dict(skips),
    }
