"""The bridge to the C++ extension: finds it, loads it once, mirrors the structs of kernels/cpu/face.h.

`library()` gives None where the extension cannot be loaded; `problem()` then says why.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

NO_MEMORY = 2  # FUSEDMDN_NO_MEMORY of face.h

_I32, _I64, _U64, _F32, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float, ctypes.c_void_p


def _fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class Lstm(ctypes.Structure):
    """fusedmdn_lstm."""

    _fields_ = _fields(
        (_I64, "T B H"),
        (_I32, "bf16 threads packed unused"),
        (_POINTER, "xw weight_hh h0 c0 peephole lengths h h_T c_T gates cells"),
    )


class LstmBackward(ctypes.Structure):
    """fusedmdn_lstm_backward."""

    _fields_ = _fields(
        (_I64, "T B H"),
        (_I32, "bf16 threads"),
        (_F32, "clip"),
        (_I32, "packed"),
        (_POINTER, "grad_h"),
        (_I64 * 2, "grad_h_strides"),
        (_POINTER, "grad_h_T grad_c_T weight_hh c0 peephole lengths gates cells dxw dh0 dc0 dpeephole"),
    )


class Mdn(ctypes.Structure):
    """fusedmdn_mdn."""

    _fields_ = _fields(
        (_I64, "T B M"),
        (_I32, "bf16 categorical sigmoid_means threads"),
        (_F32, "clip"),
        (_I32, "unused"),
        (_POINTER, "raw"),
        (_I64 * 2, "raw_strides"),
        (_POINTER, "target lengths grad nll draw dtarget"),
    )


class Network(ctypes.Structure):
    """fusedmdn_network."""

    _fields_ = _fields(
        (_I64, "L H M"), (_I32, "categorical sigmoid_means skip peephole bf16 threads"), (_POINTER, "weights")
    )


class Generate(ctypes.Structure):
    """fusedmdn_generate."""

    _fields_ = _fields(
        (_I64, "B steps prime_steps"),
        (_U64, "seed first_index"),
        (_I32, "threads unused"),
        (_POINTER, "h c row drawn done bias temperature prime prime_lengths"),
        (_POINTER, "points lengths h_out c_out row_out drawn_out done_out stop"),
    )


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "fusedmdn_isa": (ctypes.c_char_p, [_I32]),
    "fusedmdn_isa_in_use": (ctypes.c_char_p, []),
    "fusedmdn_use_isa": (_I32, [ctypes.c_char_p]),
    "fusedmdn_sizeof": (_I64, [_I32]),
    "fusedmdn_run_lstm": (_I32, [ctypes.POINTER(Lstm)]),
    "fusedmdn_run_lstm_backward": (_I32, [ctypes.POINTER(LstmBackward)]),
    "fusedmdn_run_mdn_nll": (_I32, [ctypes.POINTER(Mdn)]),
    "fusedmdn_run_mdn_nll_backward": (_I32, [ctypes.POINTER(Mdn)]),
    "fusedmdn_pack": (_POINTER, [ctypes.POINTER(Network)]),
    "fusedmdn_release": (None, [_POINTER]),
    "fusedmdn_run_generate": (_I32, [_POINTER, ctypes.POINTER(Generate)]),
    "fusedmdn_peak": (_I64, [_I32, _I32, _I64, ctypes.POINTER(_F32)]),
    "fusedmdn_read": (None, [_POINTER, _I64, _I32, _I64, ctypes.POINTER(_F32)]),
    "fusedmdn_allocate": (_POINTER, [_I64]),
    "fusedmdn_free": (None, [_POINTER]),
    "fusedmdn_checksum": (_U64, [_POINTER, _POINTER, _I32, _I32]),
    "fusedmdn_philox_fill": (ctypes.c_int, [_U64, _U64, _I64, _POINTER, _I64, ctypes.c_int, _POINTER]),
    "fusedmdn_philox_block": (None, [_POINTER, _POINTER, _POINTER]),
}


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    spec = importlib.util.find_spec("fusedmdn._cpu")
    if spec is None or spec.origin is None:
        return None, "the extension fusedmdn._cpu was not built (no C++17 compiler when the package was installed?)"
    try:
        lib = ctypes.CDLL(spec.origin)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, f"{spec.origin} cannot be used: {error}"
    for k, struct in enumerate((Lstm, LstmBackward, Mdn, Network, Generate)):
        if lib.fusedmdn_sizeof(k) != ctypes.sizeof(struct):
            return None, f"{spec.origin} cannot be used: it was built from other sources ({struct.__name__} differs)"
    wanted = os.environ.get("FUSEDMDN_CPU_ISA")
    if wanted and lib.fusedmdn_use_isa(wanted.encode()):
        return None, f"FUSEDMDN_CPU_ISA={wanted}: this processor and build have {', '.join(_supported(lib))}"
    return lib, None


def library() -> ctypes.CDLL | None:
    """The loaded extension, or None."""
    return _load()[0]


def problem() -> str | None:
    """Why there is no extension, or None where there is one."""
    return _load()[1]


def _supported(lib: ctypes.CDLL) -> list[str]:
    names: list[str] = []
    while name := lib.fusedmdn_isa(len(names)):
        names.append(name.decode())
    return names


def isas() -> list[str]:
    """The instruction sets that this processor and this build have, best first; none without the extension."""
    lib = library()
    return [] if lib is None else _supported(lib)


def isa() -> str | None:
    """The instruction set in use, or None without the extension."""
    lib = library()
    return None if lib is None else lib.fusedmdn_isa_in_use().decode()


@contextlib.contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run the kernels of another instruction set, in the whole process; for tests and comparisons.

    Raises ValueError if this processor or build does not have it.
    """
    lib, before = library(), isa()
    if lib is None or before is None or lib.fusedmdn_use_isa(name.encode()):
        raise ValueError(f"instruction set {name!r}: this processor and build have {', '.join(isas()) or 'none'}")
    try:
        yield
    finally:
        lib.fusedmdn_use_isa(before.encode())
