"""Pickled arrays from strangers, read without running anything that the file names.

numpy's constructors, the only ones that a pickled array needs, are stood in for by classes of this module, which keep
what they are given until it is checked; anything else is refused by name. So neither another function nor numpy's own
code ever sees what the file says.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..dataset import array_header
from ..quoting import shown, told

OPCODES = (
    "PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD NONE "
    "NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE LIST EMPTY_LIST "
    "APPEND APPENDS STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8"
)
ADMITTED = frozenset(OPCODES.split())
INSTRUCTIONS = 1 << 20  # that a pickle may always be of; more, if its file has as many bytes
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
ENCODINGS = ("latin1", "latin-1")
NDARRAY = object()  # stands in for numpy.ndarray, which a pickle has no reason to call


def object_array(data: IO[bytes], size: int, most: int) -> list[NDArray[Any]]:
    """The arrays in a .npy file of `size` bytes that holds a one-dimensional array of arrays of numbers.

    A pickle is a program, of at most `most` instructions here: each may take memory of its own.

    Raises:
        ValueError: it is of another kind, is damaged, or names anything that is not part of such an array.
    """
    shape, dtype = array_header(data)
    if dtype != np.dtype(object) or len(shape) != 1:
        raise ValueError(f"{shape} of {dtype}, expected a row of arrays (numpy's object)")
    arrays = unpickled(data.read(size - data.tell()), most)
    if len(arrays) != shape[0]:
        raise ValueError(f"{len(arrays)} arrays, and its header says {shape[0]}")
    return arrays


def instructions(size: int) -> int:
    """So many may be in a file of so many bytes."""
    return max(INSTRUCTIONS, size)


def unpickled(data: bytes, most: int) -> list[NDArray[Any]]:
    """The arrays in a pickled array of arrays; views of what was read."""
    _check(data, most)
    try:
        found = _Unpickler(data).load()
    except ValueError:
        raise
    except Exception as error:  # of what is no pickle, it raises nearly everything
        raise ValueError(f"cannot be read as pickled arrays: {told(error)}") from error
    if not isinstance(found, Array) or not isinstance(found.content, list):
        raise ValueError(f"found {_kind(found)} pickled, expected an array of arrays")
    for item in found.content:
        if not isinstance(item, Array) or not isinstance(item.content, np.ndarray):
            raise ValueError(f"found {_kind(item)} in a pickled array, expected arrays of numbers")
    return [item.content for item in found.content]


def _check(data: bytes, most: int) -> None:
    """Refuse what the unpickler would take to ask for memory, and every instruction that no array needs."""
    file = io.BytesIO(data)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > most:
                raise ValueError(f"pickle is more than {most} instructions")
            if opcode.name not in ADMITTED:
                raise ValueError(f"pickle holds {opcode.name}, which no array of numbers does")
            if opcode.name in MEMO and not 0 <= int(argument or 0) <= count:
                raise ValueError(f"pickle would keep number {argument} after {count} instructions")
    except ValueError as error:
        raise ValueError(f"cannot be read as pickled arrays: {told(error)}") from error
    except Exception as error:
        raise ValueError(f"cannot be read as pickled arrays: {type(error).__name__}") from error
    left = len(data) - file.tell()
    if left:
        raise ValueError(f"cannot be read as pickled arrays: {left} bytes after its end")


def _kind(value: object) -> str:
    return "numbers" if isinstance(value, Array) else type(value).__name__


class Kind:
    """Stands in for numpy.dtype."""

    __slots__ = ("code",)

    def __init__(self, code: str, align: int = 0, copy: int = 1) -> None:
        if not isinstance(code, str) or code[:1] not in "iufbO" or not code[1:].isdecimal() or len(code) > 3:
            raise ValueError(f"pickle holds a dtype {shown(code)}, expected numbers")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, order of bytes, then what structures have), as numpy writes it."""
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError(f"pickle holds a dtype {shown(state)}, expected numbers")
        self.code = order.replace("|", "") + self.code

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy has it."""
        return np.dtype(object) if "O" in self.code else np.dtype(self.code)


class Array:
    """Stands in for an array; content is a list, or an array of numbers. `encoded` makes bytes of what was text."""

    __slots__ = ("content", "encoded")

    def __init__(self, encoded: Callable[[str], bytes]) -> None:
        self.encoded = encoded
        self.content: list[Any] | NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, shape, dtype, whether columns come first, values), as numpy writes it."""
        _, shape, kind, columns_first, values = state
        if not isinstance(kind, Kind) or not isinstance(shape, tuple) or len(shape) > 2:
            raise ValueError(f"pickle holds an array of shape {shown(shape)}, expected one or two dimensions")
        if not all(type(side) is int and 0 <= side <= 1 << 40 for side in shape):
            raise ValueError(f"pickle holds an array of shape {shown(shape)}")
        dtype, size = kind.dtype, math.prod(shape)
        if dtype.hasobject:
            if not isinstance(values, list) or len(values) != size or len(shape) != 1:
                raise ValueError(f"pickle holds an array of objects of shape {shown(shape)}, expected as many in a row")
            self.content = values
            return
        raw = self.encoded(values) if isinstance(values, str) else values  # str as Python 2 pickled it
        if not isinstance(raw, bytes) or len(raw) != size * dtype.itemsize:
            raise ValueError(f"pickle holds an array of {shown(shape)} {dtype} that has not so many bytes")
        self.content = np.frombuffer(raw, dtype).reshape(shape, order="F" if columns_first else "C")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.left = len(data)  # bytes that may be encoded: each of the file's once
        self.admitted = {
            **{(f"{core}.multiarray", "_reconstruct"): self.reconstruct for core in ("numpy.core", "numpy._core")},
            ("numpy", "ndarray"): NDARRAY,
            ("numpy", "dtype"): Kind,
            ("_codecs", "encode"): self.encode,
            ("builtins", "bytes"): bytes_of_nothing,
            ("__builtin__", "bytes"): bytes_of_nothing,
        }

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in; nothing is ever imported."""
        try:
            return self.admitted[module, name]
        except (KeyError, TypeError):
            raise ValueError(f"pickle names {shown(f'{module}.{name}')[1:-1]}, which is no part of an array") from None

    def reconstruct(self, kind: Any, shape: Any, code: Any) -> Array:
        """numpy's, of an array whose state comes after."""
        if kind is not NDARRAY:
            raise ValueError(f"pickle holds an array of kind {shown(kind)}, expected numpy.ndarray")
        return Array(self.encoded)

    def encode(self, text: str, encoding: str) -> bytes:
        """Bytes as protocols before 3 write them."""
        if not isinstance(text, str) or encoding not in ENCODINGS:
            raise ValueError(f"pickle encodes {shown(encoding)}, expected latin1")
        return self.encoded(text)

    def encoded(self, text: str) -> bytes:
        """Bytes of text, which takes memory; a text may be named many times."""
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("pickle would be more bytes than the file has")
        return text.encode("latin1")


def bytes_of_nothing() -> bytes:
    """How protocols before 3 write no bytes at all."""
    return b""
