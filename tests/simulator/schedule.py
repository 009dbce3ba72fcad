"""All programs of a grid at once: one greenlet each, switched before every access to memory.

A switch costs about a microsecond, a hundredth of an interpreted operation, so every interleaving of memory accesses
can be had. Who goes next is decided by the policy:

- random: any live program, every time;
- priority: the one with the highest priority, as long as it does not poll (then it becomes the lowest) and but for a
  rare demotion, so that some programs run far ahead of others;
- serial: one program until it polls or ends, then the next: the least interleaving that gets through.
"""

import contextvars
import random
from collections.abc import Callable

import greenlet

from .errors import Deadlock

POLICIES = ("random", "priority", "serial")
# A program that polled this often without any memory changing counts as stuck. One poll is not enough: it may have
# succeeded, and the program may poll again for something else before it writes.
STUCK = 40
DEMOTION = 0.02


class Schedule:
    def __init__(self, programs: int, seed: int, policy: str, limit: int):
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, not {policy!r}")
        self.policy, self.limit = policy, limit
        self.random = random.Random(seed)
        self.current = 0
        self.live = list(range(programs))
        self.polls = [0] * programs  # since memory last changed
        self.priority = [self.random.random() for _ in range(programs)]
        self.lowest = 0.0
        self.steps = self.switches = self.total_polls = 0
        self.threads: list[greenlet.greenlet] = []

    def run(self, body: Callable[[], None]) -> None:
        """Run `body` once for every program, `current` being its number, until all have ended or one has raised."""
        if len(self.live) == 1:
            body()
            return
        here = greenlet.getcurrent()

        def begun() -> None:
            here.switch()  # all begin here: one begun by another would be deeper in Python's recursion than that one
            body()

        for _ in self.live:
            thread = greenlet.greenlet(begun)
            thread.gr_context = contextvars.copy_context()  # numpy's error state lives there
            self.threads.append(thread)
            thread.switch()
        try:
            self.current = self._next(polling=False)
            while True:
                # A program switches to the next one itself (`pause`); only one that has ended comes back here.
                self.threads[self.current].switch()
                self.live.remove(self.current)
                if not self.live:
                    break
                self.changed()
                self.current = self._next(polling=False)
                self.switches += 1
        finally:
            for thread in self.threads:
                if thread:
                    thread.throw()

    def pause(self, polling: bool = False) -> None:
        """Called by a program before it touches memory: perhaps let others go first."""
        self.steps += 1
        if self.steps > self.limit:
            raise Deadlock(f"no end after {self.limit} memory accesses: a loop that never gets what it waits for?")
        if polling:
            self.total_polls += 1
            self.polls[self.current] += 1
            if self.polls[self.current] > STUCK and all(self.polls[program] > STUCK for program in self.live):
                raise Deadlock(f"all live programs poll and no memory changes; live: {self.live}")
        if len(self.live) == 1:
            return
        following = self._next(polling)
        if following != self.current:
            self.current = following
            self.switches += 1
            self.threads[following].switch()

    def changed(self) -> None:
        """Memory changed: whatever a program polls for may now be there."""
        self.polls = [0] * len(self.polls)

    def _next(self, polling: bool) -> int:
        if self.policy == "random":
            return self.live[int(self.random.random() * len(self.live))]
        if self.policy == "serial":
            if self.current in self.live and not polling:
                return self.current
            later = [program for program in self.live if program > self.current]
            return later[0] if later else self.live[0]
        if polling or self.random.random() < DEMOTION:
            self.lowest -= 1
            self.priority[self.current] = self.lowest
        return max(self.live, key=self.priority.__getitem__)
