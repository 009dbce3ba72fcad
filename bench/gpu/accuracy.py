"""Whether results are as accurate as they should be: the rule that the tests have, by name of each output."""

from __future__ import annotations

from collections.abc import Callable

from fusedmdn.ops import accuracy

from ..problems import relative
from .machine import Outputs


class Wrong(Exception):
    """Results that break the accuracy rule."""


def deviation(run: Callable[[], Outputs], same: Callable[[], Outputs], exact: Callable[[], Outputs]) -> float:
    """The largest relative deviation from the float64 reference.

    Raises:
        Wrong: more than the rule allows, with the reference in the same dtype as its measure.
    """
    got = run()
    for name, value in got.items():
        found = accuracy.deviation(value, same()[name], exact()[name])
        if found.excessive:
            raise Wrong(f"{name}: error {found.error:.3g} is over the bound {found.allowed:.3g}")
    return max(relative(value, exact()[name]) for name, value in got.items())
