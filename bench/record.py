"""A run's one file: what it found so far, whole at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusedmdn import files

Json = dict[str, Any]


class Record:
    """The run as JSON; `write` puts it in the place of the file in one moment."""

    def __init__(self, path: Path, environment: Json) -> None:
        self.path = path
        self.run: Json = {"environment": environment, "ceilings": {}, "troubles": {}, "left_out": [], "cells": []}

    def write(self) -> None:
        """Write the file anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write(self.path, json.dumps(self.run, indent=1, allow_nan=False) + "\n")
