"""Networks from other people's files: `read(path)` gives a `FusedLSTMMDN` of what other software has trained.

One module a format: `rnn_tutorial`, `sketch_rnn`, `keras`. Nothing is unpickled or run, and no header is believed:
sizes are compared with what is there before anything is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..module import FusedLSTMMDN
from . import common, keras, rnn_tutorial, sketch_rnn
from .common import ForeignFileError

__all__ = ["FORMATS", "ForeignFileError", "format_of", "keras", "read", "rnn_tutorial", "sketch_rnn"]

FORMATS: dict[str, Callable[..., FusedLSTMMDN]] = {
    "rnn-tutorial": rnn_tutorial.read,
    "sketch-rnn": sketch_rnn.read,
    "keras": keras.read,
}
KERAS, TEXT = (".h5", ".hdf5", ".keras"), (".js", ".json")
HEAD = 1 << 16  # bytes that tell one text from the other
DESCRIBED = re.compile(rb"[^\[{<]*\[\s*\{")  # sketch-rnn-js: a list that begins with an object; else rnn-tutorial


def format_of(path: str | Path) -> str:
    """Which of `FORMATS` a file is of, by its ending and, if it is text, its beginning.

    Raises:
        ForeignFileError: none has that ending, or it cannot be read.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in KERAS:
        return "keras"
    if ending not in TEXT:
        raise ForeignFileError(f"{path}: expected a file that ends in {', '.join((*TEXT, *KERAS))}")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ForeignFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    return "sketch-rnn" if DESCRIBED.match(head, common.beginning(head)) else "rnn-tutorial"


def read(path: str | Path, format: str = "auto", **options: Any) -> FusedLSTMMDN:
    """The network in a file, float32 on the CPU, in evaluation mode, with its scale.

    Args:
        path: .js or .json of rnn-tutorial or sketch-rnn-js; .h5, .hdf5 or .keras of Keras.
        format: one of `FORMATS`, or "auto".
        options: of that format's reader: keras takes `means`, "sigmoid" (its default) or "linear".

    Raises:
        ForeignFileError: the file cannot be read, or is of a network that this package cannot express.
        ModuleNotFoundError: Keras, and h5py is missing (the extra [convert] brings it).
        ValueError: an unknown format, or an option that it has not.
    """
    path = Path(path)
    format = format_of(path) if format == "auto" else format
    if format not in FORMATS:
        raise ValueError(f"format must be auto or one of {', '.join(FORMATS)}; got {format!r}")
    unknown = set(options) - ({"means"} if format == "keras" else set())
    if unknown:
        raise ValueError(f"{path}: {format} files take no option {', '.join(sorted(unknown))}")
    return FORMATS[format](path, **options).eval()
