"""hardmaru's rnn-tutorial (github.com/hardmaru/rnn-tutorial, MIT): the handwriting network in `weights.js`.

lstm_data = '[[rows of output_w], "output_b", [rows of Wxh], [rows of Whh], "bias"]'

Every row is base64 of uint8; a weight is (u - 127) / 127 times its array's scale. Gates i, g, f, o; the cell adds 1 to
f's pre-activation. Output: eos logit (plain sigmoid), then M each of pi, mu_x, mu_y, log sigma_x, log sigma_y, and
atanh rho.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..module import FusedLSTMMDN
from ..strokes import Scale
from . import common
from .common import Array, ForeignFileError, Layer

SCALES = {"output_w": 1.5, "output_b": 2.5, "Wxh": 2.0, "Whh": 0.8, "bias": 1.5}
ROW = 3  # dx, dy, eos
# The file has no scale. The network's samples have means and deviations (0.21, 0.00) and (1.06, 0.91); the lines of
# IAM-OnDB, which it was trained on, (8.2, 0.1) and (41.5, 36.9): a unit of the network is 40 of theirs.
IAM = Scale(std=(40.0, 40.0))


def read(path: Path) -> FusedLSTMMDN:
    """The network, its scale that of IAM-OnDB's raw points.

    Raises:
        ForeignFileError: the file is not such a file, or its parts do not fit together.
    """
    document = common.read_text(path)
    if not isinstance(document, list) or len(document) != len(SCALES):
        raise ForeignFileError(f"{path}: expected a list of {len(SCALES)} parts: {', '.join(SCALES)}")
    parts = dict(zip(SCALES, document, strict=True))
    H = len(parts["Whh"]) if isinstance(parts["Whh"], list) else 0
    if not H:
        raise ForeignFileError(f"{path}: Whh: expected a list of rows, got {type(parts['Whh']).__name__}")
    width = _bytes_of(path, "output_b", parts["output_b"])
    common.mixtures(path, width, 1)
    output_w = _rows(path, "output_w", parts["output_w"], (H, width))
    layer = Layer(
        _rows(path, "Wxh", parts["Wxh"], (ROW, 4 * H)),
        _rows(path, "Whh", parts["Whh"], (H, 4 * H)),
        _row(path, "bias", parts["bias"], 4 * H),
    )
    head = common.linear(output_w, _row(path, "output_b", parts["output_b"], width))
    model = FusedLSTMMDN.from_modules(common.lstm([layer], "igfo", forget=1.0), head)
    model.scale = IAM
    return model


def _bytes_of(path: Path, name: str, text: Any) -> int:
    if not isinstance(text, str):
        raise ForeignFileError(f"{path}: {name}: expected base64, got {type(text).__name__}")
    return len(text) // 4 * 3 - len(text) + len(text.rstrip("="))


def _rows(path: Path, name: str, rows: Any, shape: tuple[int, int]) -> Array:
    if not isinstance(rows, list) or len(rows) != shape[0]:
        found = f"{len(rows)}" if isinstance(rows, list) else type(rows).__name__
        raise ForeignFileError(f"{path}: {name}: expected {shape[0]} rows, got {found}")
    return _dequantized(name, np.stack([common.decode(path, name, row, shape[1:], "u1") for row in rows]))


def _row(path: Path, name: str, text: Any, columns: int) -> Array:
    return _dequantized(name, common.decode(path, name, text, (columns,), "u1"))


def _dequantized(name: str, values: NDArray[Any]) -> Array:
    return common.dequantized(values, 127, SCALES[name] / 127)
