"""A barrier among the programs of a cooperative grid, in two halves, so that work can be done in between.

A counter (int32, zero before the launch) only grows: every program adds one when it arrives, and waits until all of
them have arrived as often as it says. `arrive` publishes all that the program has stored before (release), `wait` makes
what others published visible (acquire): the poll is one thread's ld.acquire.gpu, after which the L1 cache holds nothing
stale. The two debug_barriers order the other threads of the program with that one thread.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(counter):
    """Publish what this program has stored, and count it."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, arrivals):
    """Until the counter has reached `arrivals`."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
    tl.debug_barrier()
