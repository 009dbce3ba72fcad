"""Short cuts through `triton.language` for what kernels do most, with the same results.

An addition of two blocks costs Triton's interpreter about 50 microseconds, nearly all of it spent on finding out types
that are what they were the last time. Where both operands are float32, or both int32, or one is a pointer and the other
int32, the result's type is known and the values are one numpy call away. Everything else takes the long way; a test
compares the two.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

_templates: dict[tuple[int, tuple[int, ...] | None], tuple[Any, dict[str, Any]]] = {}
_blocks: dict[tuple[int, tuple[int, ...]], tuple[Any, dict[str, Any]]] = {}
_PLAIN = {int, float, bool, str, type(None), tl.tensor, tl.dtype, tl.block_type, tl.pointer_type}
_original_init = tl.tensor.__init__
_original_block_init = tl.block_type.__init__
_original_unwrap = tl.core._unwrap_if_constexpr


def make(values: np.ndarray, kind: tl.dtype, shape: tuple[int, ...] | None) -> tl.tensor:
    """A tensor of a scalar type; `shape` None means a scalar, which the interpreter holds as one element."""
    known = _templates.get((id(kind), shape))
    if known is None:
        type_ = kind if shape is None else tl.block_type(kind, list(shape))
        known = _remember((id(kind), shape), kind, type_)
    result = tl.tensor.__new__(tl.tensor)
    result.__dict__.update(known[1])
    result.handle = TensorHandle(values, kind)
    return result


def initialise_block(self: tl.block_type, element_ty: tl.dtype, shape: Any) -> None:
    """`tl.block_type.__init__`, whose checks and name are the same for the same arguments."""
    sizes = tuple([size if type(size) is int else unwrap(size) for size in shape])
    known = _blocks.get((id(element_ty), sizes))
    if known is None:
        if len(_blocks) > 2000:
            _blocks.clear()
        _original_block_init(self, element_ty, list(sizes))
        _blocks[id(element_ty), sizes] = element_ty, dict(vars(self))
    else:
        self.__dict__.update(known[1])


def unwrap(value: Any) -> Any:
    """`_unwrap_if_constexpr`, which asks four questions about every number."""
    kind = type(value)
    if kind is tl.constexpr:
        return value.value
    if kind in _PLAIN:
        return value
    return [unwrap(item) for item in value] if kind is list else _original_unwrap(value)


def initialise(self: tl.tensor, handle: TensorHandle, type: tl.dtype) -> None:
    """`tl.tensor.__init__`, which derives its attributes from the type, once for each type."""
    if type.is_block():
        kind, key = type.element_ty, (id(type.element_ty), tuple(type.shape))
    else:
        kind, key = type, (id(type), None)
    known = _templates.get(key) or _remember(key, kind, type)
    self.__dict__.update(known[1])
    self.handle = handle


def _remember(key: Any, kind: tl.dtype, type_: tl.dtype) -> tuple[Any, dict[str, Any]]:
    if len(_templates) > 2000:  # casts of pointers make new types all the time
        _templates.clear()
    template = tl.tensor.__new__(tl.tensor)
    _original_init(template, None, type_)
    _templates[key] = kind, vars(template)  # holding `kind` keeps its id from being reused
    return _templates[key]


def _shape(left: tl.tensor, right: Any, values: np.ndarray) -> tuple[int, ...] | None:
    if left.shape or (type(right) is tl.tensor and right.shape):
        return values.shape
    return None


def _float32(value: Any) -> Any:
    """An operand as float32 data, or None if the result might not be float32."""
    if type(value) is tl.tensor:
        return value.handle.data if value.dtype is tl.float32 else None
    return np.float32(value) if type(value) in (int, float) else None


def _int32(value: Any) -> Any:
    if type(value) is tl.tensor:
        return value.handle.data if value.dtype is tl.int32 else None
    return np.int32(value) if type(value) is int and -(2**31) <= value < 2**31 else None


_CONVERSIONS = {id(tl.float32): _float32, id(tl.int32): _int32}


def _arithmetic(name: str, ufunc: np.ufunc, reflected: bool, slow: Callable[..., Any]) -> Callable[..., Any]:
    def operate(self: tl.tensor, other: Any, _semantic: Any = None) -> Any:
        if self.dtype is tl.float32:
            data = _float32(other)
            if data is not None:
                values = ufunc(data, self.handle.data) if reflected else ufunc(self.handle.data, data)
                return make(values, tl.float32, _shape(self, other, values))
        elif self.dtype is tl.int32 and name != "truediv":
            data = _int32(other)
            if data is not None:
                wide = self.handle.data.astype(np.int64)
                wide = ufunc(data, wide) if reflected else ufunc(wide, data)
                values = wide.astype(np.int32)
                if (values != wide).any():  # a compiled kernel would silently wrap around
                    raise OverflowError(f"int32 overflow in {name}")
                return make(values, tl.int32, _shape(self, other, values))
        return slow(self, other)

    return operate


def _offset(self: tl.tensor, other: Any, slow: Callable[..., Any]) -> Any:
    """A pointer plus int32 elements."""
    data = _int32(other)
    if data is None:
        return slow(self, other)
    size = max(1, self.dtype.element_ty.primitive_bitwidth // 8)
    values = (self.handle.data.view(np.int64) + np.multiply(data, size, dtype=np.int64)).view(np.uint64)
    return make(values, self.dtype, _shape(self, other, values))


def _addition(add: Callable[..., Any], slow: Callable[..., Any]) -> Callable[..., Any]:
    """An addition that also takes pointers."""

    def operate(self: tl.tensor, other: Any, _semantic: Any = None) -> Any:
        if type(self.dtype) is tl.pointer_type:
            return _offset(self, other, slow)
        if type(other) is tl.tensor and type(other.dtype) is tl.pointer_type and self.dtype is tl.int32:
            return _offset(other, self, lambda pointer, offset: slow(self, other))
        return add(self, other)

    return operate


def _comparison(ufunc: np.ufunc, slow: Callable[..., Any]) -> Callable[..., Any]:
    def operate(self: tl.tensor, other: Any, _semantic: Any = None) -> Any:
        convert = _CONVERSIONS.get(id(self.dtype))
        data = None if convert is None else convert(other)
        if data is None:
            return slow(self, other)
        values = ufunc(self.handle.data, data)
        return make(values, tl.int1, _shape(self, other, values))

    return operate


def _logic(ufunc: np.ufunc, slow: Callable[..., Any]) -> Callable[..., Any]:
    def operate(self: tl.tensor, other: Any, _semantic: Any = None) -> Any:
        if self.dtype is tl.int1 and type(other) is tl.tensor and other.dtype is tl.int1:
            values = ufunc(self.handle.data, other.handle.data)
            return make(values, tl.int1, _shape(self, other, values))
        return slow(self, other)

    return operate


def short_cuts(computing: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The replacements for the methods of `tl.tensor`; `computing` makes the long way from the original."""
    result: dict[str, Callable[..., Any]] = {}
    for name, ufunc in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("truediv", np.divide)):
        for method, reflected in ((f"__{name}__", False), (f"__r{name}__", True)):
            slow = computing(vars(tl.tensor)[method])
            result[method] = _arithmetic(name, ufunc, reflected, slow)
            if name == "add":
                result[method] = _addition(result[method], slow)
    for name, ufunc in (
        ("lt", np.less),
        ("le", np.less_equal),
        ("gt", np.greater),
        ("ge", np.greater_equal),
        ("eq", np.equal),
        ("ne", np.not_equal),
    ):
        result[f"__{name}__"] = _comparison(ufunc, computing(vars(tl.tensor)[f"__{name}__"]))
    for name, ufunc in (("and", np.bitwise_and), ("or", np.bitwise_or)):
        result[f"__{name}__"] = _logic(ufunc, computing(vars(tl.tensor)[f"__{name}__"]))
    result["__init__"] = initialise
    return result
