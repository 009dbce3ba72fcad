"""Where results are shown."""

from __future__ import annotations

from rich.console import Console

FILE_WIDTH = 150  # of tables that no terminal shows


def console() -> Console:
    """The terminal; wide where there is none that limits it."""
    made = Console()
    if not made.is_terminal:
        made.width = FILE_WIDTH
    return made
