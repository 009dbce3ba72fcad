"""What errors say of files from strangers: one line, printable and short, whatever stands in the file."""

from __future__ import annotations

import reprlib

LONGEST, LINE = 100, 180  # characters of a value, of a reason


class _Short(reprlib.Repr):
    def repr_bytes(self, value: bytes, level: int) -> str:
        """reprlib would take all of them first."""
        return repr(value[: self.maxstring])


SHORT = _Short()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 80, 80


def shown(found: object) -> str:
    """A value as Python writes it, but not all of a long one, nor of what is nested."""
    text = SHORT.repr(found)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def told(reason: object) -> str:
    """What an exception, or a sentence with parts of a file in it, says."""
    text = " ".join(str(reason)[: 4 * LINE].split()) or type(reason).__name__
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= LINE else f"{text[:LINE]}…"
