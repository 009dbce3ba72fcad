"""What the simulator raises. Every message names the kernel, the program and the line of the kernel."""


class SimulationError(Exception):
    """A kernel went wrong in the simulator."""


class OutOfBounds(SimulationError):
    """A load, store or atomic outside every tensor argument's storage, or not aligned to its element."""


class Race(SimulationError):
    """Two accesses to one element, at least one of them a write, that no acquire/release pair orders."""


class Deadlock(SimulationError):
    """Every live program polls, and no program is left that could change what they poll."""


class ProgramError(SimulationError):
    """A program raised an exception (`__cause__`)."""
