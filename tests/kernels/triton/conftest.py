"""The fixture that makes a mutant (mutants.py)."""

import os
import shutil
import sys

import pytest

from ...conftest import ROOT
from .mutants import Mutant


@pytest.fixture
def mutated(request, tmp_path, monkeypatch):
    """The package of a mutant's kernels."""
    mutant: Mutant = request.param
    package = f"mutant_{abs(hash(mutant))}"
    shutil.copytree(ROOT / "kernels" / "triton", tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / package / mutant.file
    before, *after = path.read_text().split(mutant.old)
    assert len(after) > (mutant.nth or 0), f"{mutant.old!r} does not stand in {mutant.file}"
    for n, text in enumerate(after):
        before += (mutant.new if mutant.nth in (n, None) else mutant.old) + text
    path.write_text(before)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
