"""Cooperative launches that a device refuses: something else runs in their place, and says so once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from .. import forced
from .._backend import FallbackWarning
from ..launch import LaunchRefusedError

_refused: set[tuple[Any, ...]] = set()


def or_else(family: str, key: tuple[Any, ...], run: Callable[[], Any], instead: Callable[[], Any], what: str) -> Any:
    """`run()`; if it is refused, `instead()` from then on for this key, and one warning that says `what` happens.

    A plan that is forced is not replaced: LaunchRefusedError goes to the caller.
    """
    is_forced = forced.plan_of(family) is not None
    if key in _refused and not is_forced:
        return instead()
    try:
        return run()
    except LaunchRefusedError as error:
        if is_forced:
            raise
        _refused.add(key)
        warnings.warn(f"{what}: {error}", FallbackWarning, stacklevel=2)
        return instead()
