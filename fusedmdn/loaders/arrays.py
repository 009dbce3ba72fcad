"""numpy files that hold sequences as rows: a .npy of one, or of many; and a sketch-rnn .npz (train, valid, test).

Rows are stroke-3 (dx, dy, eos), or (eos, dx, dy) as some sets of IAM-OnDB have them: eos is the column that is 0 or 1
everywhere. Or they are sketch-rnn's stroke-5 (dx, dy, draw, lift, end). Many sequences are a pickled array of arrays,
of which `pickled` reads nothing but the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import dataset
from ..dataset import StrokeFileError, StrokeSet
from ..quoting import shown, told
from ..strokes import Strokes
from . import pickled

DIVISION = {"train": "train", "valid": "validation", "test": "test"}  # of a sketch-rnn .npz


def read_npy(path: Path) -> StrokeSet:
    """One or many sequences of a .npy file; unlabelled.

    Raises:
        StrokeFileError: it is missing or damaged, or its rows are none of strokes.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            _, dtype = dataset.array_header(file)
            file.seek(0)
            if dtype.hasobject:
                arrays = pickled.object_array(file, size, pickled.instructions(size))
            else:
                arrays = [dataset.plain_array(file, size)]
    except Exception as error:  # of what is damaged, numpy raises nearly everything
        raise StrokeFileError(f"{path}: cannot be read as .npy: {told(error)}") from error
    return _stroke_set(path, size, arrays)


def read_sketch_rnn(path: Path) -> StrokeSet:
    """The drawings of a sketch-rnn .npz file, each in the part it comes in; unlabelled.

    Raises:
        StrokeFileError: it is missing or damaged, or its rows are none of strokes.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            take = partial(pickled.object_array, most=pickled.instructions(size))
            members = dataset.read_members(file, path, take, tuple(DIVISION))
    except OSError as error:
        raise StrokeFileError(f"{path}: cannot be read: {told(error)}") from error
    arrays = [array for name in DIVISION for array in members[name]]
    parts = [part for name, part in DIVISION.items() for _ in members[name]]
    return _stroke_set(path, size, arrays, tuple(parts))


def _stroke_set(
    path: Path, size: int, arrays: Sequence[NDArray[Any]], parts: tuple[str, ...] | None = None
) -> StrokeSet:
    """Sequences of rows of one kind; `size` is the file's."""
    columns = arrays[0].shape[-1] if arrays and arrays[0].ndim == 2 else 3
    for i, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != columns or columns not in (3, 5) or array.dtype.kind not in "iufb":
            found = f"{shown(array.shape)} of {told(array.dtype)}"
            raise StrokeFileError(f"{path}: sequence {i} is {found}, expected numbers (N, 3) or (N, 5), all alike")
    dataset.check_growth(path, size, dataset.memory(sum(map(len, arrays)), len(arrays)))  # one may be in it many times
    quantum = 1.0 if arrays and all(array.dtype.kind in "iu" for array in arrays) else 0.0
    order = _order(path, arrays) if columns == 3 else None
    sequences = []
    for i, array in enumerate(arrays):
        try:
            sequences.append(Strokes.from_stroke5(array) if order is None else Strokes(array[:, order]))
        except ValueError as error:
            raise StrokeFileError(f"{path}: sequence {i}: {told(error)}") from error
    return StrokeSet.of(sequences, quantum, parts)


def _order(path: Path, arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Columns that are dx, dy and eos: eos is the last one, or the first one where only that is 0 or 1 everywhere."""
    for order in ([0, 1, 2], [1, 2, 0]):
        if all(((array[:, order[2]] == 0) | (array[:, order[2]] == 1)).all() for array in arrays):
            return order
    ranges = [f"{min(array[:, k].min(initial=0) for array in arrays):g} to "
              f"{max(array[:, k].max(initial=0) for array in arrays):g}" for k in range(3)]  # fmt: skip
    raise StrokeFileError(f"{path}: no column of pen ends (0 or 1), last or first; the columns are {', '.join(ranges)}")
