"""What the readers of foreign files share: bounded reading, strict base64 and JSON, and LSTM gates put in order."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import sealed
from ..quoting import told

LARGEST, LARGEST_TEXT = 1 << 30, 1 << 27  # bytes of a file; the models of text formats have some megabytes
PARTS = 1 << 17  # commas and brackets of a text: all else in it is base64
MARK = b"\xef\xbb\xbf"  # of UTF-8, before the text
COMMENT = re.compile(rb"\s*(?://[^\n]*\n|/\*.*?\*/)", re.DOTALL)
ASSIGNMENT = re.compile(rb"\s*(?:(?:var|let|const)\s+)?[A-Za-z_$][\w$.]*\s*=\s*")

Array = NDArray[np.floating[Any]]


class ForeignFileError(ValueError):
    """A file of weights that cannot be read, or says what this package cannot do; the message names the file."""


class Layer(NamedTuple):
    """An LSTM layer as TensorFlow and Keras lay it out: kernel (I, 4H), recurrent (H, 4H), bias (4H)."""

    kernel: Array
    recurrent: Array
    bias: Array


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The file, if it is not too large and not something else that was saved under its name.

    Raises:
        ForeignFileError: it cannot be read, or is empty, too large, a web page or a pointer of Git LFS.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            data = file.read(size) if size <= most else b""
    except OSError as error:
        raise ForeignFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    if size > most:
        raise ForeignFileError(f"{path}: more than {most} bytes are no model of these formats")
    start = data[:256].removeprefix(MARK).lstrip().lower()
    if not start:
        raise ForeignFileError(f"{path}: is empty")
    if start.startswith(b"<"):
        raise ForeignFileError(f"{path}: is a web page (HTML), not weights; download the raw file")
    if start.startswith(b"version https://git-lfs"):
        raise ForeignFileError(f"{path}: is a pointer of Git LFS, not weights; fetch the file that it points to")
    return data


def beginning(data: bytes) -> int:
    """Where a text begins: after the mark of UTF-8, and comments of JavaScript."""
    at = len(MARK) if data.startswith(MARK) else 0
    while comment := COMMENT.match(data, at):
        at = comment.end()
    return at


def read_text(path: Path) -> Any:
    """The JSON of a .json file, or of a .js file that is one assignment of it; parsed, never run.

    Raises:
        ForeignFileError: it is neither, or has more parts than a model.
    """
    data = read_bytes(path, LARGEST_TEXT)
    data = data[beginning(data) :]
    parts = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if parts > PARTS:
        raise ForeignFileError(f"{path}: {parts} commas and brackets are no model (at most {PARTS})")
    assignment = ASSIGNMENT.match(data)
    if assignment:
        data = data[assignment.end() :].rstrip().removesuffix(b";").rstrip()
        if data.startswith(b"'"):
            data, opened = data.strip(b"'"), data
            if len(opened) != len(data) + 2 or b"'" in data or b"\\" in data:
                raise ForeignFileError(f"{path}: expected one assignment, name = '[…]' or name = […], and nothing else")
    try:
        return sealed.parse(data)
    except ValueError as error:
        raise ForeignFileError(
            f"{path}: is not JSON, nor one assignment of it, name = '[…]' or name = […]: {told(error)}"
        ) from error


def decode(path: Path, name: str, text: Any, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Numbers of that shape from base64; the text's length is looked at first, and only the one spelling is taken.

    Raises:
        ForeignFileError: it is no base64, or of more or fewer bytes.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    expected = 4 * -(-size // 3)
    if not isinstance(text, str) or len(text) != expected:
        found = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise ForeignFileError(f"{path}: {name}: expected {expected} characters of base64 for {shape}, got {found}")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ForeignFileError(f"{path}: {name}: is not base64: {told(error)}") from error
    last = data[(size - 1) // 3 * 3 :]  # where bits may be thrown away
    if len(data) != size or base64.b64encode(last).decode() != text[-4:]:
        raise ForeignFileError(f"{path}: {name}: is not base64 of {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def dequantized(values: NDArray[Any], zero: int, step: float) -> Array:
    """(values - zero) times step, worked out in float64; a matrix, which is large, becomes float32 on the way."""
    kept = np.float32 if values.ndim > 1 else np.float64  # a bias is yet added to: rounded once, after that
    array = np.subtract(values, zero, dtype=kept)
    return np.multiply(array, step, out=array, dtype=np.float64, casting="same_kind")


def mixtures(path: Path, width: int, pen_logits: int) -> int:
    """M of a head of so many outputs.

    Raises:
        ForeignFileError: it is not P + 6M.
    """
    M, rest = divmod(width - pen_logits, 6)
    if M < 1 or rest:
        raise ForeignFileError(f"{path}: expected {pen_logits} + 6M outputs, got {width}")
    return M


def lstm(layers: Sequence[Layer], order: str, forget: float) -> nn.LSTM:
    """An nn.LSTM, float32, of layers whose gates lie in that order ("igfo", say), `forget` added to f's bias."""
    H = len(layers[0].recurrent)
    module = nn.LSTM(len(layers[0].kernel), H, len(layers))
    blocks = [order.index(gate) for gate in "ifgo"]

    def torch_s(array: Array) -> Tensor:
        gates = array.T.reshape(4, H, *array.shape[:-1])[blocks]
        return as_float32(gates.reshape(4 * H, *array.shape[:-1]))

    weights = {}
    for n, layer in enumerate(layers):
        bias = layer.bias.astype(np.float64).reshape(4, H) + forget * np.array([[g == "f"] for g in order])
        weights[f"weight_ih_l{n}"] = torch_s(layer.kernel)
        weights[f"weight_hh_l{n}"] = torch_s(layer.recurrent)
        weights[f"bias_ih_l{n}"] = torch_s(bias.reshape(-1))
        weights[f"bias_hh_l{n}"] = torch.zeros(4 * H)
    module.load_state_dict(weights)
    return module.eval()


def linear(kernel: Array, bias: Array) -> nn.Linear:
    """An nn.Linear, float32, of a kernel (H, D) and a bias (D)."""
    module = nn.Linear(*kernel.shape)
    module.load_state_dict({"weight": as_float32(kernel.T), "bias": as_float32(bias)})
    return module.eval()


def as_float32(array: Array) -> Tensor:
    """A tensor of its own."""
    return torch.from_numpy(array.astype(np.float32, order="C"))
