"""sketch-rnn-js, decoder-only models (`*.gen.json`, `*.gen.js`; Ha and Eck 2017, arXiv 1704.03477).

[{"mode": 2, "scale_factor": s, …}, [dims of the five arrays], ["output_w", "output_b", "Wxh", "Whh", "bias"]]

Every array is base64 of little-endian int16; a weight is i / 32767 times 10. Gates i, g, f, o; the cell adds 1 to f's
pre-activation. Input (dx / s, dy / s, draw, lift, end). Output: logits of draw, lift and end, then M each of pi, mu_x,
mu_y, log sigma_x, log sigma_y, and atanh rho.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..module import FusedLSTMMDN
from ..quoting import shown
from ..strokes import Scale
from . import common
from .common import ForeignFileError, Layer

FACTOR = 10 / 32767
NAMES = ("output_w", "output_b", "Wxh", "Whh", "bias")
DECODER = (2, "gen")  # modes of what draws by itself; with an encoder, the decoder reads its code at every step
ROW, PEN = 5, 3


def read(path: Path) -> FusedLSTMMDN:
    """The network, its scale that of the drawings it was trained on.

    Raises:
        ForeignFileError: the file is not such a file, has an encoder, or its parts do not fit together.
    """
    document = common.read_text(path)
    if not isinstance(document, list) or len(document) != 3 or not isinstance(document[0], dict):
        raise ForeignFileError(f"{path}: expected a list of three: an object that describes the model, sizes, weights")
    info, dims, blobs = document
    if info.get("mode") not in DECODER:
        raise ForeignFileError(
            f"{path}: mode {shown(info.get('mode'))}: only decoder-only models can be read (mode 2, "
            "*.gen.json); others have an encoder"
        )
    H, width = _sizes(path, dims)
    shapes = dict(zip(NAMES, ((H, width), (width,), (ROW, 4 * H), (H, 4 * H), (4 * H,)), strict=True))
    if [list(shape) for shape in shapes.values()] != dims:
        raise ForeignFileError(f"{path}: sizes: expected {[*map(list, shapes.values())]}, got {shown(dims)}")
    if not isinstance(blobs, list) or len(blobs) != len(NAMES):
        raise ForeignFileError(f"{path}: expected {len(NAMES)} arrays: {', '.join(NAMES)}")
    scale = info.get("scale_factor")
    if type(scale) not in (int, float) or not 2**-126 < scale < 2**127:
        raise ForeignFileError(f"{path}: scale_factor: expected a number above zero, got {shown(scale)}")

    arrays = [
        common.dequantized(common.decode(path, name, blob, shapes[name], "<i2"), 0, FACTOR)
        for name, blob in zip(NAMES, blobs, strict=True)
    ]
    output_w, output_b, *layer = arrays
    lstm = common.lstm([Layer(*layer)], "igfo", forget=1.0)
    model = FusedLSTMMDN.from_modules(lstm, common.linear(output_w, output_b))
    model.scale = Scale(std=(float(scale), float(scale)))
    return model


def _sizes(path: Path, dims: Any) -> tuple[int, int]:
    """H and the width of the output, as the first of the sizes has them; whole numbers all, and none absurd."""
    fits = isinstance(dims, list) and len(dims) == len(NAMES) and all(isinstance(d, list) and d for d in dims)
    if not fits or not all(type(size) is int and 0 < size < 1 << 31 for d in dims for size in d):
        raise ForeignFileError(f"{path}: sizes: expected {len(NAMES)} lists of whole numbers above zero")
    if len(dims[0]) != 2:
        raise ForeignFileError(f"{path}: sizes: expected [H, {PEN} + 6M] first, got {shown(dims[0])}")
    H, width = dims[0]
    common.mixtures(path, width, PEN)
    return H, width
