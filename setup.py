"""Where the packages lie and the one extension module; everything else is in pyproject.toml.

Never imports torch: the extension has a plain C face, so one binary serves every torch.
"""

import os
import sys
from glob import glob

from setuptools import Extension, setup

cpu = Extension(
    "fusedmdn._cpu",
    sources=sorted(glob("kernels/cpu/*.cpp")),
    depends=sorted(glob("kernels/cpu/*.h")),
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"],
    extra_link_args=[] if sys.platform == "darwin" else ["-Wl,-s"],
    py_limited_api=True,
    # Without a compiler the package still installs and runs on the reference; CI makes that an error.
    optional=os.environ.get("FUSEDMDN_REQUIRE_NATIVE") != "1",
)

setup(
    packages=["fusedmdn", "fusedmdn.ops", "fusedmdn.kernels"],
    package_dir={"fusedmdn": "fusedmdn", "fusedmdn.ops": "python", "fusedmdn.kernels": "kernels/triton"},
    ext_modules=[cpu],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
