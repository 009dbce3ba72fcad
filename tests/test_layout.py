"""The tree: imports point one way, the wheel is what it should be, a checkout does not hide an installed package."""

import ast
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

ORDER = ["kernels", "python", "fusedmdn", "bench"]  # each may import from those before it
PACKAGE = {"kernels": "fusedmdn.kernels", "python": "fusedmdn.ops", "fusedmdn": "fusedmdn", "bench": "bench"}


def imported(path, package):
    """Absolute names of what a file imports, relative imports resolved."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            module = base + (node.module or "")
            yield from (f"{module.rstrip('.')}.{alias.name}" for alias in node.names)


def layer(name):
    for folder in ("kernels", "python"):
        if name == PACKAGE[folder] or name.startswith(PACKAGE[folder] + "."):
            return folder
    return next((top for top in ("fusedmdn", "bench") if name == top or name.startswith(top + ".")), None)


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_one_way(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        package = ".".join([PACKAGE[folder], *path.parent.relative_to(ROOT / folder).parts])
        for name in imported(path, package):
            found = layer(name)
            assert found is None or ORDER.index(found) <= ORDER.index(folder), f"{path} imports {name}"
            assert folder != "kernels" or not name.startswith("torch.nn"), f"{path} imports {name}"


def test_the_import_test_can_fail(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from ..module import FusedLSTMMDN\nfrom . import reference\nimport fusedmdn.ops._cpu, bench.cpu\n")
    names = list(imported(path, "fusedmdn.ops"))
    assert names == ["fusedmdn.module.FusedLSTMMDN", "fusedmdn.ops.reference", "fusedmdn.ops._cpu", "bench.cpu"]
    assert [layer(name) for name in names] == ["fusedmdn", "python", "python", "bench"]


def test_the_build_never_imports_torch():
    assert not [n for n in imported(ROOT / "setup.py", "") if n.split(".")[0] == "torch"]
    assert '[build-system]\nrequires = ["setuptools>=77"]\n' in (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    copy = tmp_path_factory.mktemp("source") / "fusedmdn"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, copy]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel(wheel):
    assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "fusedmdn/__init__.py",
        "fusedmdn/py.typed",
        "fusedmdn/cli/jobs.py",
        "fusedmdn/doctor/specimens.py",
        "fusedmdn/foreign/hdf5.py",
        "fusedmdn/jobs/job.py",
        "fusedmdn/loaders/__init__.py",
        "fusedmdn/render/views.py",
        "fusedmdn/ops/reference.py",
        "fusedmdn/kernels/__init__.py",
        "fusedmdn/assets/kanjivg/kanjivg.npz",
        "fusedmdn/assets/kanjivg/COPYING",
        "fusedmdn/assets/kanjivg/README.md",
        "fusedmdn/assets/kanji/config.json",
        "fusedmdn/assets/kanji/README.md",
        "fusedmdn/_cpu.abi3.so",
    ):
        assert name in names
    assert {name.split("/")[0] for name in names} == {"fusedmdn", f"fusedmdn-{wheel.name.split('-')[1]}.dist-info"}


def test_a_checkout_does_not_hide_the_installed_package(wheel, tmp_path):
    """From the repository's root, after a regular install: this folder of the checkout, the rest as installed."""
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # torch and numpy; not the editable install's hook
    code = (
        "import fusedmdn, fusedmdn.ops as ops; print(fusedmdn.__file__); print(ops.__file__); "
        "ops.uniforms(0, 0, 1, 1); print(ops.report()[0].backend)"
    )
    for cwd, home in ((ROOT, ROOT), (tmp_path, site)):
        out = subprocess.run(
            [tmp_path / "venv/bin/python", "-c", code], cwd=cwd, check=True, capture_output=True, text=True
        ).stdout.split()
        assert Path(out[0]).parent == home / "fusedmdn"
        assert Path(out[1]).parent == site / "fusedmdn" / "ops"
        assert out[2] == "cpu"
