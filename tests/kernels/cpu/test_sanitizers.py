"""The C++ kernels under sanitizers, driven by check.cpp: no Python, no torch, arrays of exactly their size.

Compiled as setup.py compiles them, once for each instruction set, but with -Og -g1: GCC takes three to five times as
long over sanitized vector code at -O1.
"""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ...conftest import ROOT

CHECK = "tests/kernels/cpu/check.cpp"
FLAGS = ["-Og", "-g1", "-fno-omit-frame-pointer", "-w"]  # -w: GCC 12 warns of its own AVX-512 headers
# -fsanitize=, further flags, arguments: ThreadSanitizer multiplies the time, and finds what it finds at any size
SANITIZERS = {"address,undefined": (["-fno-sanitize-recover=all"], []), "thread": ([], ["few"])}
OPTIONS = {
    "ASAN_OPTIONS": "redzone=128:detect_leaks=1:malloc_context_size=5",  # wider than any vector
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
}

needs_gcc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("g++") is None, reason="no g++ on Linux: no sanitizers"
)


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, tmp_path_factory):
    """Path of check.cpp's program, in the folder of its object files; and its arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        setup = runpy.run_path("setup.py")
    folder = tmp_path_factory.mktemp("sanitized")
    further, arguments = SANITIZERS[request.param]
    sanitize = [f"-fsanitize={request.param}", *further]

    def compile_one(job):
        source, isa, flags = job
        out = folder / f"{isa}{Path(source).stem}.o"
        gcc("-c", source, "-o", out, *setup["cpu"].extra_compile_args, *flags, *FLAGS, *sanitize)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*reversed(setup["JOBS"]), (CHECK, "", [])]))
    gcc(*objects, *sanitize, "-pthread", "-ldl", "-o", folder / "check")
    return folder / "check", arguments


def gcc(*arguments):
    done = subprocess.run(["g++", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, done.args))}\n{done.stderr}"


def run(*command):
    return subprocess.run(
        command, env=os.environ | OPTIONS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )


@needs_gcc
def test_kernels(program):
    path, arguments = program
    done = run(path, *arguments)
    if "unexpected memory mapping" in done.stdout:  # ThreadSanitizer, where addresses are too random for it
        done = run("setarch", "-R", path, *arguments)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "all right\n"


@needs_gcc
def test_instruction_sets_share_no_functions(program):
    """Were a function weak in two of these objects, the linker might keep the one that an older processor cannot run.

    -Og inlines less than -O3, so what could be shared shows here first.
    """
    objects = sorted(program[0].parent.glob("*kernels.o"))
    assert objects
    for path in objects:
        symbols = subprocess.run(
            ["nm", "--demangle", "--extern-only", "--defined-only", path], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        names = {name for _, _, name in (line.split(maxsplit=2) for line in symbols)}
        names = {name for name in names if not name.startswith(("DW.ref.", "__odr_asan."))}  # data, of the compiler
        assert names == {f"fusedmdn::kernels_{path.name.removesuffix('kernels.o')}"}


def test_loading_the_extension_keeps_denormals():
    """A library linked with -ffast-math would flush them to zero in the whole process."""
    spec = importlib.util.find_spec("fusedmdn._cpu")
    if spec is None:
        pytest.skip("the extension fusedmdn._cpu was not built")
    code = "import ctypes, sys, numpy as np; ctypes.CDLL(sys.argv[1]); print(np.float32(1e-40) * np.float32(1) > 0)"
    done = subprocess.run([sys.executable, "-c", code, spec.origin], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
