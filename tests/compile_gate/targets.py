"""The GPUs that kernels are compiled for, and what one block may use there."""

from typing import NamedTuple

KIB = 1024


class Target(NamedTuple):
    """What Triton calls a GPUTarget, and the most shared memory that one block can opt in to (LDS on AMD), in bytes."""

    backend: str
    arch: int | str
    warp_size: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * KIB),
    "sm_86": Target("cuda", 86, 32, 99 * KIB),
    "sm_89": Target("cuda", 89, 32, 99 * KIB),
    "sm_90": Target("cuda", 90, 32, 227 * KIB),
    "sm_100": Target("cuda", 100, 32, 227 * KIB),
    "sm_120": Target("cuda", 120, 32, 99 * KIB),
    "gfx942": Target("hip", "gfx942", 64, 64 * KIB),
}
NVIDIA = tuple(name for name, target in TARGETS.items() if target.backend == "cuda")
