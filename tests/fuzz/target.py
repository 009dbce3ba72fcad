"""What is fuzzed: a loader, and files to begin with."""

import warnings
from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    """`load` takes bytes; a ValueError's message must hold `named`, if that is not empty.

    If it is `plain`, what comes after that is one line of less than 400 characters, and a terminal can show it.
    """

    load: Callable[[bytes], object]
    seeds: list[bytes]
    named: str = ""
    plain: bool = False

    def check(self, data: bytes) -> None:
        """Raise whatever a loader must not raise."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.load(data)
        except ValueError as error:
            assert str(error), f"{type(error).__name__} gives no reason"
            assert self.named in str(error), f"does not name {self.named}: {error}"
            if self.plain:
                said = str(error).partition(self.named)[2]
                assert said.isprintable(), f"is no plain line: {error!r}"
                assert len(said) < 400, f"is no plain line: {error!r}"
