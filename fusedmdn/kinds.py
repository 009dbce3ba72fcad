"""What JSON says, held against the annotations of the constructor that is to take it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

EXACT = 1 << 53  # whole numbers up to here are floats, too


def check_saved(values: dict[str, Any], taker: Callable[..., Any]) -> None:
    """See, before anything is saved, that `check` will take these when they have been JSON; raises as that."""
    check(json.loads(json.dumps(values)), taker)


def check(values: Any, taker: Callable[..., Any]) -> None:
    """See that these are arguments by name, each of the kind that is annotated; a float may be a whole number.

    Raises:
        ValueError: no object, a name that is not known, a value of another kind, or an integer of more than 64 bits.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {values!r}")
    hints = get_type_hints(taker)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{name!r} is not known; expected some of {', '.join(hints)}")
        kinds = get_args(hints[name]) or (hints[name],)
        if type(value) is int and not -1 << 63 <= value < 1 << 64:
            raise ValueError(f"{name}: expected at most 64 bits, got {value}")
        whole = float in kinds and type(value) is int and abs(value) <= EXACT
        if type(value) not in kinds and not whole:
            expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
