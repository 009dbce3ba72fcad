"""Where the packages lie and the one extension module; everything else is in pyproject.toml.

Never imports torch: the extension has a plain C face, so one binary serves every torch; and every processor, since the
kernels are compiled once for each instruction set, and chosen when they are loaded.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "kernels/cpu/kernels.cpp"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTION_SETS = {"baseline": []}
if X86:
    INSTRUCTION_SETS |= {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}
SOURCES = sorted(set(glob("kernels/cpu/*.cpp")) - {KERNELS})
# source, folder of its object file, flags
JOBS = [(KERNELS, isa, [f"-DFUSEDMDN_ISA={isa}", *flags]) for isa, flags in INSTRUCTION_SETS.items()]
JOBS += [(source, "", ["-DFUSEDMDN_X86"] if X86 else []) for source in SOURCES]


class BuildExt(build_ext):
    """Compiles the kernels once for each instruction set, and all files side by side."""

    def build_extension(self, ext: Extension) -> None:
        """Fill extra_objects, and link."""

        def compile_one(job: tuple[str, str, list[str]]) -> list[str]:
            source, where, flags = job
            folder = os.path.join(self.build_temp, where)
            return self.compiler.compile([source], folder, extra_postargs=ext.extra_compile_args + flags)

        self.compiler.mkpath(self.build_temp)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects = [path for paths in pool.map(compile_one, JOBS) for path in paths]
        ext.sources = []
        super().build_extension(ext)


cpu = Extension(
    "fusedmdn._cpu",
    sources=SOURCES,
    depends=sorted(glob("kernels/cpu/*")),
    language="c++",
    # -fno-math-errno lets sqrt be one instruction. Nothing of -ffast-math: linked, it would flush denormals to zero in
    # the whole process; compiled, it would lose NaN, and let a sum depend on what else is in a batch.
    extra_compile_args=[
        *("-std=c++17", "-O3", "-g0", "-fvisibility=hidden"),
        *("-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi"),
    ],
    extra_link_args=["-pthread"] if sys.platform == "darwin" else ["-pthread", "-ldl", "-Wl,-s"],
    py_limited_api=True,
    # Without a compiler the package still installs and runs on the reference; CI makes that an error.
    optional=os.environ.get("FUSEDMDN_REQUIRE_NATIVE") != "1",
)

if __name__ == "__main__":  # the tests read how the kernels are compiled
    setup(
        packages=[
            *("fusedmdn", "fusedmdn.cli", "fusedmdn.doctor", "fusedmdn.foreign", "fusedmdn.jobs"),
            *("fusedmdn.loaders", "fusedmdn.render"),
            *("fusedmdn.ops", "fusedmdn.ops.triton", "fusedmdn.kernels"),
        ],
        package_dir={"fusedmdn": "fusedmdn", "fusedmdn.ops": "python", "fusedmdn.kernels": "kernels/triton"},
        ext_modules=[cpu],
        cmdclass={"build_ext": BuildExt},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
