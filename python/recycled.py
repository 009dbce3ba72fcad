"""Large CPU arrays on huge pages, whose memory is kept for the next one.

malloc hands blocks of more than 32 MiB back to the system when they are freed, and a fresh page costs more to get and
to zero than to fill: a fifth of a training step went there. What is kept is bounded, and is what a step has just used.
"""

import ctypes
import math
import weakref
from collections import deque

import torch
from torch import Tensor

from . import _cpu

SMALLEST = 1 << 25  # bytes; malloc itself keeps what is smaller
ROUNDED = 1 << 24  # to multiples of this, so that batches of other lengths fit
KEPT = 1 << 30  # bytes that wait for their next use, at most

_free: deque[tuple[int, int]] = deque()  # (bytes, address); its methods are atomic, and finalizers run anywhere


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(*shape, dtype=dtype)`."""
    dtype, count = dtype or like.dtype, math.prod(shape)
    size, lib = count * dtype.itemsize, _cpu.library()
    if size < SMALLEST or like.device.type != "cpu" or lib is None:
        return like.new_empty(*shape, dtype=dtype)
    block = _take(size)
    if block is None:
        rounded = -(-size // ROUNDED) * ROUNDED
        address = lib.fusedmdn_allocate(rounded)
        if not address:
            raise MemoryError(f"not enough memory for {tuple(shape)} of {dtype}")
        block = rounded, address
    memory = (ctypes.c_char * size).from_address(block[1])
    weakref.finalize(memory, _give, lib, block).atexit = False  # the tensor's storage holds `memory`
    storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    strides = like.new_empty(shape, device="meta").stride()
    # set_ makes no view: autograd would copy whatever is written into one
    return like.new_empty(0, dtype=dtype).set_(storage, 0, shape, strides)


def clear() -> None:
    """Give back what is kept."""
    lib = _cpu.library()
    while lib is not None:
        try:
            lib.fusedmdn_free(_free.popleft()[1])
        except IndexError:
            return


def _take(size: int) -> tuple[int, int] | None:
    """The smallest free block that is large enough, and not twice as large."""
    for block in sorted(_free):
        if size <= block[0] <= 2 * size:
            try:
                _free.remove(block)
            except ValueError:  # another thread was faster
                continue
            return block
    return None


def _give(lib: ctypes.CDLL, block: tuple[int, int]) -> None:
    _free.append(block)
    while sum(size for size, _ in list(_free)) > KEPT:
        try:
            lib.fusedmdn_free(_free.popleft()[1])
        except IndexError:
            return
