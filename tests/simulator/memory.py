"""Memory as a kernel sees it: one region per storage, behind addresses that cannot run from one region into another.

A kernel never holds a real pointer. The first byte of region k is at the virtual address (k + 1) * 2^40, so that an
index that is too large or negative lands in a gap, however far off it is, instead of in the next tensor; the region
nearest to the address is the one that was meant. Accesses are then ordinary numpy indexing.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from .errors import OutOfBounds

GAP_BITS = 40
GAP = 1 << GAP_BITS
Lanes = np.ndarray | slice


@dataclass(eq=False)
class Region:
    """The bytes of one storage, or of several that overlap, and the arguments that point into it."""

    address: int  # virtual
    data: np.ndarray  # uint8
    real: int  # address of data
    names: list[str] = field(default_factory=list)
    views: dict[np.dtype, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "/".join(dict.fromkeys(self.names))

    def view(self, dtype: np.dtype) -> np.ndarray:
        if dtype not in self.views:
            whole = self.data.size - self.data.size % dtype.itemsize
            self.views[dtype] = self.data[:whole].view(dtype)
        return self.views[dtype]


@dataclass(eq=False)
class Access:
    """Where the active lanes of one load, store or atomic go, all of them into one region."""

    region: Region
    index: np.ndarray  # in elements of itemsize bytes, one per active lane
    itemsize: int
    lanes: Lanes  # positions of the active lanes in the flattened block


class Memory:
    """All tensor arguments of one launch."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        storages = []
        for name, tensor in tensors.items():
            if tensor.device.type != "cpu":
                raise TypeError(f"argument {name!r} is on {tensor.device}: the simulator takes CPU tensors")
            storage = tensor.untyped_storage()
            storages.append((storage.data_ptr(), storage.nbytes(), storage, name))
        storages.sort(key=lambda entry: entry[0])
        self.regions: list[Region] = []
        self._pointers: dict[str, int] = {}
        owner: dict[str, Region] = {}
        for start, size, storage, name in storages:
            last = self.regions[-1] if self.regions else None
            if last is None or start >= last.real + last.data.size or size == 0:
                data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
                last = Region((len(self.regions) + 1) * GAP, data, start)
                self.regions.append(last)
            elif start + size > last.real + last.data.size:
                raise NotImplementedError(f"the storages of {last.name} and {name} overlap without being one")
            last.names.append(name)
            owner[name] = last
        for name, tensor in tensors.items():
            self._pointers[name] = owner[name].address + (tensor.data_ptr() - owner[name].real if tensor.numel() else 0)

    def pointer(self, name: str) -> int:
        """The virtual address of an argument's first element."""
        return self._pointers[name]

    def locate(self, pointers: np.ndarray, mask: np.ndarray | None, itemsize: int, what: str) -> list[Access]:
        """Turn the addresses of the active lanes into indices, one `Access` for each region they go to."""
        addresses = pointers.reshape(-1).view(np.int64)
        lanes: Lanes = slice(None)
        if mask is not None and not mask.all():
            lanes = np.flatnonzero(np.broadcast_to(mask, pointers.shape))
            addresses = addresses[lanes]
        if addresses.size == 0:
            return []
        number = (int(addresses[0]) >> GAP_BITS) - 1
        if 0 <= number < len(self.regions):
            region = self.regions[number]
            offsets = addresses - region.address
            inside = offsets.min() >= 0 and offsets.max() <= region.data.size - itemsize
            if inside and not np.bitwise_or.reduce(offsets) & (itemsize - 1):
                return [Access(region, offsets >> (itemsize.bit_length() - 1), itemsize, lanes)]
        return self._locate_slowly(addresses, lanes, itemsize, what)

    def _locate_slowly(self, addresses: np.ndarray, lanes: Lanes, itemsize: int, what: str) -> list[Access]:
        """Several regions, or a fault: decide lane by lane which region is meant and whether it is hit."""
        numbers = ((addresses + GAP // 2) >> GAP_BITS) - 1
        positions = np.arange(addresses.size) if isinstance(lanes, slice) else lanes
        accesses = []
        for number in np.unique(numbers):
            chosen = numbers == number
            if not 0 <= number < len(self.regions):
                raise OutOfBounds(f"{what} through a null or foreign pointer ({int(addresses[chosen][0]):#x})")
            region = self.regions[number]
            offsets = addresses[chosen] - region.address
            bad = (offsets < 0) | (offsets > region.data.size - itemsize)
            if bad.any():
                element = int(offsets[bad][0]) // itemsize
                raise OutOfBounds(
                    f"{what} at {region.name}[{element}], whose storage has {region.data.size // itemsize} elements of "
                    f"{itemsize} bytes ({int(bad.sum())} of {addresses.size} lanes)"
                )
            if (offsets % itemsize).any():
                raise OutOfBounds(f"{what} of {itemsize} bytes that is not aligned to them in {region.name}")
            accesses.append(Access(region, offsets // itemsize, itemsize, positions[chosen]))
        return accesses


def gather(accesses: list[Access], dtype: np.dtype, result: np.ndarray) -> None:
    """Read every access's elements into its lanes of the flat array `result`."""
    for access in accesses:
        result[access.lanes] = access.region.view(dtype)[access.index]


def scatter(accesses: list[Access], values: np.ndarray) -> None:
    """Write the lanes of the flat array `values` to every access's elements."""
    for access in accesses:
        access.region.view(values.dtype)[access.index] = values[access.lanes]
