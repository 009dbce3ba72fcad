"""Plans that are forced here and now, one for each family of kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class PlanError(RuntimeError):
    """A plan is forced that does not fit."""


FAMILY = {
    **dict.fromkeys(("persistent", "stepwise"), "lstm"),
    **dict.fromkeys(("fused", "composed"), "lstm_mdn_nll"),
    **dict.fromkeys(("resident", "rows", "graph"), "generate"),
}

# Of the process: autograd runs CUDA backward passes on threads of its own. A list of one element for each block that
# is open, which takes out its own, in whatever order blocks of several threads end.
_forced: dict[str, list[list[Any]]] = {family: [] for family in FAMILY.values()}


def plan_of(family: str) -> Any:
    """The name or the plan that is forced for "lstm", "lstm_mdn_nll" or "generate", or None."""
    last = _forced[family][-1:]  # at once: another thread may leave its block
    return last[0][0] if last else None


@contextlib.contextmanager
def plan(wanted: Any) -> Iterator[None]:
    """Force a plan inside, in the whole process.

    Of the recurrence "persistent" or "stepwise", which says nothing of a loss that is fused; of the whole network's
    loss "fused" or "composed"; of sampling "resident", "rows" or "graph"; or one very plan, as it is
    (`plans.Persistent`, `training_plans.Fused`, …). A call that the named one does not fit raises PlanError.
    """
    name = getattr(wanted, "name", wanted)
    if name not in FAMILY:
        names = ", ".join(map(repr, FAMILY))
        raise ValueError(f"plan must be one of {names}, got {wanted!r}")
    entries, entry = _forced[FAMILY[name]], [wanted]
    entries.append(entry)
    try:
        yield
    finally:
        entries[:] = [other for other in entries if other is not entry]
