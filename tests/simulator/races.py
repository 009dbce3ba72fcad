"""A happens-before race detector with one vector clock per program.

Program p's clock holds, for every program q, up to which of q's epochs p has synchronised. A release stores the clock
with the address it was made on and starts a new epoch; an acquire of that address takes the stored clock over. Each
element remembers the epoch of its last write and of every program's last read. An access is a race if an earlier
conflicting one lies in an epoch that the accessing program has not synchronised with. That is a statement about every
schedule with the same synchronisation, not only about the one that ran: a missing release is found even if the values
happened to be right.

A program's own lanes are ordered (the compiler places barriers inside a program), with one exception: two lanes of one
store that go to one element.
"""

import numpy as np

from .errors import Race
from .memory import Access, Region


class Shadow:
    """What the detector knows about the elements of one region.

    An element is `granule` bytes: the size of the smallest access so far, since arguments of different types may share
    a storage.
    """

    def __init__(self, size: int, granule: int, programs: int):
        self.granule, self.programs = granule, programs
        count = -(-size // granule)
        self.writer = np.zeros(count, np.int16)
        self.written = np.zeros(count, np.int32)  # the writer's epoch; 0 = before the launch
        # One row per program, made when first needed: epochs of plain reads, of atomic writes, of atomic reads.
        self.read: np.ndarray | None = None
        self.updated: np.ndarray | None = None
        self.polled: np.ndarray | None = None

    def refine(self, granule: int) -> None:
        times = self.granule // granule
        self.granule = granule
        for name in ("writer", "written", "read", "updated", "polled"):
            old = getattr(self, name)
            if old is not None:
                setattr(self, name, np.repeat(old, times, axis=-1))

    def rows(self, name: str) -> np.ndarray:
        if getattr(self, name) is None:
            setattr(self, name, np.zeros((self.programs, self.written.size), np.int32))
        return getattr(self, name)


class RaceDetector:
    """The clocks of one launch. `me` is always the number of the program that acts."""

    def __init__(self, programs: int):
        self.programs = programs
        self.clock = np.eye(programs, dtype=np.int32)
        self.released: dict[tuple[int, int], np.ndarray] = {}
        self.shadows: dict[Region, Shadow] = {}

    def load(self, me: int, access: Access) -> None:
        shadow, elements = self._elements(access)
        self._check_written(me, shadow, elements, access, "reads a value that {} may still be writing")
        self._check_rows(me, shadow.updated, elements, access, "reads a value that {} may still be updating atomically")
        shadow.rows("read")[me, elements] = self.clock[me, me]

    def store(self, me: int, access: Access) -> None:
        index = access.index
        if index.size > 1 and not (index[1:] > index[:-1]).all():
            ordered = np.sort(index)
            twice = ordered[1:] == ordered[:-1]
            if twice.any():
                element = int(ordered[1:][twice][0])
                raise Race(f"two lanes of one store write {access.region.name}[{element}]")
        shadow, elements = self._elements(access)
        self._check_written(me, shadow, elements, access, "writes an element that {} may also be writing")
        self._check_rows(me, shadow.read, elements, access, "writes over a value that {} may still read")
        self._check_rows(me, shadow.updated, elements, access, "writes an element that {} may also update atomically")
        self._check_rows(me, shadow.polled, elements, access, "writes, not atomically, an element that {} may poll")
        shadow.writer[elements] = me
        shadow.written[elements] = self.clock[me, me]

    def atomic(self, me: int, access: Access, changed: bool) -> None:
        """An atomic access: `changed` if it wrote. Atomics do not race with each other."""
        shadow, elements = self._elements(access)
        self._check_written(me, shadow, elements, access, "accesses atomically an element that {} may be writing")
        if changed:
            self._check_rows(me, shadow.read, elements, access, "updates atomically a value that {} may still read")
        shadow.rows("updated" if changed else "polled")[me, elements] = self.clock[me, me]

    def synchronise(self, me: int, access: Access, acquire: bool, release: bool) -> None:
        """Order this program after the releases it observes, and later acquires after it."""
        if not (acquire or release):
            return
        mine = self.clock[me]
        for element in access.index.tolist():
            place = (access.region.address, element * access.itemsize)
            if acquire and place in self.released:
                np.maximum(mine, self.released[place], out=mine)
            if release:
                earlier = self.released.get(place)
                self.released[place] = mine.copy() if earlier is None else np.maximum(mine, earlier)
        if release:
            mine[me] += 1

    def _elements(self, access: Access) -> tuple[Shadow, np.ndarray]:
        shadow = self.shadows.get(access.region)
        if shadow is None:
            shadow = self.shadows[access.region] = Shadow(access.region.data.size, access.itemsize, self.programs)
        if access.itemsize < shadow.granule:
            shadow.refine(access.itemsize)
        if access.itemsize == shadow.granule:
            return shadow, access.index
        times = access.itemsize // shadow.granule
        return shadow, (access.index[:, None] * times + np.arange(times)).reshape(-1)

    def _check_written(self, me: int, shadow: Shadow, elements: np.ndarray, access: Access, text: str) -> None:
        writers = shadow.writer[elements]
        bad = shadow.written[elements] > self.clock[me][writers]
        if bad.any():
            lane = int(bad.argmax())
            self._fail(text, int(writers[lane]), int(elements[lane]), shadow, access)

    def _check_rows(self, me: int, rows: np.ndarray | None, elements: np.ndarray, access: Access, text: str) -> None:
        if rows is None:
            return
        bad = rows[:, elements] > self.clock[me][:, None]
        if bad.any():
            other, lane = np.argwhere(bad)[0]
            self._fail(text, int(other), int(elements[lane]), self.shadows[access.region], access)

    def _fail(self, text: str, other: int, element: int, shadow: Shadow, access: Access) -> None:
        element = element * shadow.granule // access.itemsize
        raise Race(f"{text} at {access.region.name}[{element}]", other)
