"""Runs Triton kernels on CPU tensors, all programs of a grid at once, and finds their races.

    from tests.simulator import Simulator, run

    run(kernel, (4,), {"x": x, "n": 100, "BLOCK": 64}, seed=1, policy="priority")
    hook = Simulator(seed=1)            # callable as hook(kernel, grid, arguments, options), keeps statistics

What it checks: bounds of every access, races between programs, deadlocks, and the values themselves, with the GPU's
rounding of bfloat16, float16 and tf32. What it cannot see: races between the threads of one program (a missing
`tl.debug_barrier`), resources, and whether the compiler accepts the kernel.
"""

from .errors import Deadlock, OutOfBounds, ProgramError, Race, SimulationError
from .interpreter import Simulator, run, simulator

__all__ = ["Deadlock", "OutOfBounds", "ProgramError", "Race", "SimulationError", "Simulator", "run", "simulator"]
