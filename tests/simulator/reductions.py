"""`tl.reduce` and `tl.associative_scan` on numpy arrays.

Triton's interpreter combines element by element, and for sums and extremes hands the raw array to numpy, bfloat16's bit
patterns included. Here whole slices are combined by the kernel's own function, so every type is as right as the
operations in it; only sums and extremes of types that numpy has go to numpy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl

from .operators import make

_NUMPY_SUMS = {
    *(tl.float32, tl.float64, tl.int1, tl.int8, tl.int16, tl.int32, tl.int64),
    *(tl.uint8, tl.uint16, tl.uint32, tl.uint64),
}
_NUMPY_EXTREMES = _NUMPY_SUMS | {tl.float16}
_EXTREMES = {"_elementwise_max": np.fmax, "_elementwise_min": np.fmin}  # which ignore NaN, like the GPU's


def _shortcut(combine: Any, kind: tl.dtype) -> np.ufunc | None:
    if combine is tl.standard._sum_combine and kind in _NUMPY_SUMS:
        return np.add
    for name, ufunc in _EXTREMES.items():
        if combine is getattr(tl.standard, name) and kind in _NUMPY_EXTREMES:
            return ufunc
    return None


def reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False, **_: Any) -> Any:
    """Combine neighbours, then neighbouring results, and so on, as an associative function allows."""
    single = isinstance(input, tl.tensor)
    tensors = (input,) if single else tuple(input)
    axis, keep_dims = _number(axis), _number(keep_dims)
    rank = len(tensors[0].shape)
    arrays = [tensor.handle.data for tensor in tensors]
    if axis is None:
        arrays = [array.reshape(-1) for array in arrays]
    else:
        arrays = [np.moveaxis(array, axis, 0) for array in arrays]
    kinds = [tensor.dtype for tensor in tensors]
    ufunc = _shortcut(combine_fn, kinds[0]) if single else None
    if ufunc is not None:
        arrays = [ufunc.reduce(arrays[0], axis=0, dtype=arrays[0].dtype)[None]]
    while len(arrays[0]) > 1:
        if len(arrays[0]) % 2:
            raise ValueError("an axis to be reduced must have a power of two elements")
        arrays = _combine(combine_fn, kinds, [array[0::2] for array in arrays], [array[1::2] for array in arrays])
    results = [array[0] for array in arrays]
    if keep_dims:
        shape = (1,) * rank if axis is None else None
        results = [np.expand_dims(r, axis) if shape is None else r.reshape(shape) for r in results]
    made = tuple(_tensor(result, kind) for result, kind in zip(results, kinds, strict=True))
    return made[0] if single else made


def associative_scan(input: Any, axis: Any, combine_fn: Any, reverse: Any = False, **_: Any) -> Any:
    """Combine slice by slice along the axis and keep every intermediate result."""
    single = isinstance(input, tl.tensor)
    tensors = (input,) if single else tuple(input)
    axis, reverse = _number(axis), _number(reverse)
    kinds = [tensor.dtype for tensor in tensors]
    arrays = [np.moveaxis(tensor.handle.data, axis, 0) for tensor in tensors]
    if reverse:
        arrays = [array[::-1] for array in arrays]
    ufunc = _shortcut(combine_fn, kinds[0]) if single else None
    if ufunc is not None:
        results = [ufunc.accumulate(arrays[0], axis=0, dtype=arrays[0].dtype)]
    else:
        steps = [[array[:1] for array in arrays]]
        for k in range(1, len(arrays[0])):
            steps.append(_combine(combine_fn, kinds, steps[-1], [array[k : k + 1] for array in arrays]))
        results = [np.concatenate(parts) for parts in zip(*steps, strict=True)]
    if reverse:
        results = [result[::-1] for result in results]
    moved = [np.ascontiguousarray(np.moveaxis(result, 0, axis)) for result in results]
    made = tuple(_tensor(result, kind) for result, kind in zip(moved, kinds, strict=True))
    return made[0] if single else made


def _combine(function: Callable[..., Any], kinds: list[Any], left: list[Any], right: list[Any]) -> list[np.ndarray]:
    operands = [_tensor(array, kind) for side in (left, right) for array, kind in zip(side, kinds, strict=True)]
    result = function(*operands)
    return [part.handle.data for part in (result if isinstance(result, tuple) else (result,))]


def _tensor(array: np.ndarray, kind: tl.dtype) -> tl.tensor:
    return make(array, kind, array.shape) if array.shape else make(array.reshape(1), kind, None)


def _number(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value
