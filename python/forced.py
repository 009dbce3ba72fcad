"""Plans that are forced here and now, one for each family of kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

FAMILY = {"persistent": "lstm", "stepwise": "lstm", "resident": "generate", "rows": "generate", "graph": "generate"}

_forced: dict[str, Any] = {}  # of the process: autograd runs CUDA backward passes on threads of its own


def plan_of(family: str) -> Any:
    """The name or the plan that is forced for "lstm" or "generate", or None."""
    return _forced.get(family)


@contextlib.contextmanager
def plan(wanted: Any) -> Iterator[None]:
    """Force a plan inside: of the recurrence "persistent" or "stepwise", of sampling "resident", "rows" or "graph".

    Or one very plan, as it is (`plans.Persistent`, `sampling_plans.Rows`, …). A call that the named one does not fit
    raises RuntimeError.
    """
    name = getattr(wanted, "name", wanted)
    if name not in FAMILY:
        names = ", ".join(map(repr, FAMILY))
        raise ValueError(f"plan must be one of {names}, got {wanted!r}")
    family = FAMILY[name]
    before = _forced.get(family)
    _forced[family] = wanted
    try:
        yield
    finally:
        _forced[family] = before
