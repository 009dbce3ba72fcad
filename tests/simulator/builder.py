"""The builder behind `tl.*` while the simulator runs: Triton's interpreter's, with memory and numerics replaced.

Triton's language turns every operation into a call of a builder's method. The interpreter's builder computes with numpy
right away; this one corrects what that gets wrong, sends every access to memory through `memory`, `races` and
`schedule`, and refuses any operation on bfloat16 that it does not know to be right, because the base class would
compute with the bit patterns without a word.
"""

from dataclasses import dataclass, field

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

from . import numerics
from .memory import Memory, gather, scatter
from .races import RaceDetector
from .schedule import Schedule

BF16 = tl.bfloat16
FLOATS = (tl.bfloat16, tl.float16, tl.float32, tl.float64)
BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
ACQUIRES = (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
RELEASES = (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)

# What a lane reads that is masked off and has no `other`: undefined on a GPU, so nothing may depend on it.
GARBAGE = {"f": float("nan"), "i": 0x55, "u": 0x55, "b": True}

UPDATES = {
    ir.ATOMIC_OP.ADD: np.add,
    ir.ATOMIC_OP.FADD: np.add,
    ir.ATOMIC_OP.AND: np.bitwise_and,
    ir.ATOMIC_OP.OR: np.bitwise_or,
    ir.ATOMIC_OP.XOR: np.bitwise_xor,
    ir.ATOMIC_OP.XCHG: lambda old, value: value,
    ir.ATOMIC_OP.MAX: np.maximum,
    ir.ATOMIC_OP.UMAX: np.maximum,
    ir.ATOMIC_OP.MIN: np.minimum,
    ir.ATOMIC_OP.UMIN: np.minimum,
}

_TYPES = {
    kind: _get_np_dtype(kind)
    for kind in (
        *(tl.int1, tl.int8, tl.int16, tl.int32, tl.int64, tl.uint8, tl.uint16, tl.uint32, tl.uint64),
        *(tl.float16, tl.bfloat16, tl.float32, tl.float64),
        *(tl.float8e5, tl.float8e5b16, tl.float8e4nv, tl.float8e4b8, tl.float8e4b15),
    )
}


def numpy_type(kind: tl.dtype) -> np.dtype:
    """The numpy type that holds a Triton type (the interpreter's own function builds its table at every call)."""
    scalar = kind.scalar
    return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else _TYPES[scalar]


@dataclass
class Launch:
    """Everything one launch of a kernel owns."""

    kernel: str
    grid: tuple[int, int, int]
    memory: Memory
    schedule: Schedule
    races: RaceDetector | None
    loads: int = 0
    stores: int = 0
    atomics: int = 0
    last_scalar: dict[int, int] = field(default_factory=dict)  # addresses of programs that last loaded a scalar

    def place(self, program: int) -> tuple[int, int, int]:
        """The program ids of a program's number: the last axis runs fastest."""
        _, y, z = self.grid
        return program // (y * z), program // z % y, program % z

    def statistics(self) -> dict[str, int]:
        schedule = self.schedule
        return {
            "loads": self.loads,
            "stores": self.stores,
            "atomics": self.atomics,
            "polls": schedule.total_polls,
            "switches": schedule.switches,
        }


def _data(mask: TensorHandle | None) -> np.ndarray | None:
    return None if mask is None else mask.data  # a handle is false if any of its values is


def widen(handle: TensorHandle) -> np.ndarray:
    """A handle's values as numpy can compute with them: bfloat16 as float32, the rest as they are."""
    return numerics.bfloat16_to_float32(handle.data) if handle.dtype.scalar == BF16 else handle.data


class Builder(InterpreterBuilder):
    launch: Launch | None = None

    # Which program runs

    @property
    def grid_idx(self):
        return self.launch.place(self.launch.schedule.current)

    @property
    def grid_dim(self):
        return self.launch.grid

    # Constants

    def get_bf16(self, value):
        return TensorHandle(numerics.float32_to_bfloat16(np.array([value], np.float32)), BF16)

    # Memory

    def create_load(self, pointers, *rest, **options):
        return self.create_masked_load(pointers, None, None, *rest, **options)

    def create_store(self, pointers, value, *rest, **options):
        return self.create_masked_store(pointers, value, None)

    def create_masked_load(self, pointers, mask, other, *policy, is_volatile=None, **_):
        volatile = bool(policy[-1] if is_volatile is None else is_volatile)
        launch = self.launch
        launch.schedule.pause(polling=self._polls(pointers.data, volatile))
        launch.loads += 1
        element = pointers.get_element_ty()
        dtype = numpy_type(element)
        accesses = launch.memory.locate(pointers.data, _data(mask), dtype.itemsize, "load")
        if launch.races is not None:
            for access in accesses:
                if volatile:
                    launch.races.atomic(launch.schedule.current, access, changed=False)
                else:
                    launch.races.load(launch.schedule.current, access)
        if mask is None:
            result = np.empty(pointers.data.size, dtype)
        elif other is None:
            garbage = 0x7FC0 if element == BF16 else GARBAGE[dtype.kind]
            result = np.full(pointers.data.size, garbage, dtype)
        else:
            result = np.array(np.broadcast_to(other.data, pointers.data.shape), dtype).reshape(-1)
        gather(accesses, dtype, result)
        return TensorHandle(result.reshape(pointers.data.shape), element)

    def create_masked_store(self, pointers, value, mask, *_, **__):
        launch = self.launch
        launch.schedule.pause()
        launch.stores += 1
        launch.last_scalar.pop(launch.schedule.current, None)
        dtype = numpy_type(pointers.get_element_ty())
        accesses = launch.memory.locate(pointers.data, _data(mask), dtype.itemsize, "store")
        if launch.races is not None:
            for access in accesses:
                launch.races.store(launch.schedule.current, access)
        scatter(accesses, np.broadcast_to(value.data, pointers.data.shape).reshape(-1).astype(dtype, copy=False))
        launch.schedule.changed()

    def create_atomic_rmw(self, operation, pointers, value, mask, semantic, scope):
        update = UPDATES[operation]
        if value.dtype.scalar == BF16:
            if operation != ir.ATOMIC_OP.FADD:
                raise NotImplementedError(f"atomic {operation} on bfloat16")
            update = _add_bfloat16
        return self._atomic(update, pointers, mask, value, semantic, scope)

    def create_atomic_cas(self, pointers, expected, value, semantic, scope):
        lanes = np.broadcast_to(expected.data, pointers.data.shape).reshape(-1)

        def update(old, new, where=slice(None)):
            return np.where(old == lanes[where], new, old)

        return self._atomic(update, pointers, None, value, semantic, scope, by_lane=True)

    def create_atomic_load(self, pointers, mask, semantic, scope):
        nothing = TensorHandle(np.zeros(1, numpy_type(pointers.get_element_ty())), pointers.get_element_ty())
        return self._atomic(lambda old, _: old, pointers, mask, nothing, semantic, scope)

    def create_atomic_store(self, pointers, value, mask, semantic, scope):
        self._atomic(lambda _, new: new, pointers, mask, value, semantic, scope)

    def create_atomic_poll(self, pointers, expected, timeout, semantic, scope):
        if timeout is not None:
            raise NotImplementedError("atomic_poll with a timeout: the simulator has no clock")
        while not (self.create_atomic_load(pointers, None, semantic, scope).data == expected.data).all():
            pass
        return TensorHandle(np.ones(pointers.data.shape, np.bool_), tl.int1)

    def _atomic(self, update, pointers, mask, value, semantic, scope, by_lane=False):
        """Read, update and write back; polling is what leaves memory as it was."""
        launch = self.launch
        schedule = launch.schedule
        schedule.pause()
        launch.atomics += 1
        launch.last_scalar.pop(schedule.current, None)
        dtype = value.data.dtype
        accesses = launch.memory.locate(pointers.data, _data(mask), dtype.itemsize, "atomic")
        values = np.broadcast_to(value.data, pointers.data.shape).reshape(-1)
        result = np.zeros(values.size, dtype)
        any_change = False
        for access in accesses:
            view = access.region.view(dtype)
            lanes = np.arange(values.size)[access.lanes]
            changed = False
            if len(set(access.index.tolist())) == access.index.size:
                groups = [(access.index, lanes)]
            else:  # lanes that share an element take turns
                groups = [(access.index[k : k + 1], lanes[k : k + 1]) for k in range(lanes.size)]
            for index, group in groups:
                old = view[index]
                new = update(old, values[group], group) if by_lane else update(old, values[group])
                view[index] = new
                result[group] = old
                changed = changed or new.tobytes() != old.tobytes()
            any_change = any_change or changed
            if launch.races is not None:
                launch.races.atomic(schedule.current, access, changed)
                if scope != ir.MEM_SYNC_SCOPE.CTA:  # which orders nothing between programs
                    launch.races.synchronise(schedule.current, access, semantic in ACQUIRES, semantic in RELEASES)
        if any_change:
            schedule.changed()
        elif accesses:
            schedule.pause(polling=True)
        return TensorHandle(result.reshape(pointers.data.shape), value.dtype.scalar)

    def _polls(self, pointers, volatile):
        """Whether a load looks like waiting: volatile, or the same scalar twice in a row."""
        if pointers.size != 1:
            self.launch.last_scalar.pop(self.launch.schedule.current, None)
            return volatile
        address, program = int(pointers.reshape(-1)[0]), self.launch.schedule.current
        again = self.launch.last_scalar.get(program) == address
        self.launch.last_scalar[program] = address
        return volatile or again

    def create_barrier(self):
        """Nothing: a program's own threads are always in step here. `debug_barrier` is for the PTX lint to check."""

    # Conversions

    def cast_impl(self, source, target):
        from_type, to_type = source.dtype.scalar, target.scalar
        if from_type == to_type:
            return TensorHandle(source.data, to_type)
        if from_type.is_fp8() or to_type.is_fp8():
            raise NotImplementedError(f"conversion of {from_type} to {to_type}")
        values = widen(source)
        if to_type == BF16:
            return TensorHandle(numerics.float32_to_bfloat16(values), BF16)
        return TensorHandle(values.astype(numpy_type(to_type)), to_type)

    def create_fp_to_fp(self, source, target, rounding):
        from_type, to_type = source.dtype.scalar, target.scalar
        if from_type not in FLOATS or to_type not in FLOATS:
            raise NotImplementedError(f"conversion of {from_type} to {to_type}")
        if rounding in (None, ir.ROUNDING_MODE.RTNE):
            return self.cast_impl(source, target)
        if from_type == tl.float32 and to_type == BF16:
            return TensorHandle(numerics.truncate_to_bfloat16(source.data), BF16)
        raise NotImplementedError(f"conversion of {from_type} to {to_type}, {rounding}")

    def create_bitcast(self, source, target):
        to_type = target.scalar
        return TensorHandle(np.ascontiguousarray(source.data).view(numpy_type(to_type)), to_type)

    create_int_to_ptr = create_bitcast
    create_ptr_to_int = create_bitcast

    # Arithmetic

    def binary_op(self, left, right, operation):
        kind = left.dtype.scalar
        if kind == BF16 and operation not in BITWISE:
            result = operation(widen(left), widen(right))
            if result.dtype == np.bool_:
                return TensorHandle(result, tl.int1)
            return TensorHandle(numerics.float32_to_bfloat16(result), BF16)
        if kind.is_fp8():
            raise NotImplementedError(f"arithmetic in {kind}")
        a, b = left.data, right.data
        if a.dtype == np.bool_ and b.dtype == np.bool_ and operation not in BITWISE:
            # A one-bit integer wraps around, where numpy's bool saturates.
            result = operation(a.astype(np.int8), b.astype(np.int8))
            return TensorHandle(result if result.dtype == np.bool_ else (result & 1).astype(np.bool_), tl.int1)
        result = operation(a, b)
        if result.dtype == np.bool_:
            return TensorHandle(result, tl.int1)
        return TensorHandle(result.astype(numpy_type(kind), copy=False), kind)

    def unary_op(self, source, operation):
        if source.dtype.scalar == BF16:
            return TensorHandle(numerics.float32_to_bfloat16(operation(widen(source))), BF16)
        return TensorHandle(operation(source.data).astype(source.data.dtype, copy=False), source.dtype.scalar)

    def create_fneg(self, source):
        return self.unary_op(source, np.negative)

    # The GPU's minimum and maximum return the number if the other operand is NaN; `minimumf` and `maximumf` the NaN.
    def create_minnumf(self, left, right):
        return self.binary_op(left, right, np.fmin)

    def create_maxnumf(self, left, right):
        return self.binary_op(left, right, np.fmax)

    def create_clampf(self, source, low, high, propagate_nan):
        if propagate_nan == ir.PROPAGATE_NAN.NONE:
            return self.binary_op(self.binary_op(source, low, np.fmax), high, np.fmin)
        return self.binary_op(self.binary_op(source, low, np.maximum), high, np.minimum)

    def create_select(self, condition, left, right):
        return TensorHandle(np.where(condition.data, left.data, right.data), right.dtype.scalar)

    def create_fma(self, x, y, z):
        return TensorHandle(numerics.fused_multiply_add(x.data, y.data, z.data), z.dtype.scalar)

    def create_fabs(self, source):
        return self.unary_op(source, np.abs)

    def create_rsqrt(self, source):
        return self.unary_op(source, lambda values: 1 / np.sqrt(values))

    def create_umulhi(self, left, right):
        return TensorHandle(numerics.high_product(left.data, right.data), left.dtype.scalar)

    def create_ashr(self, left, right):
        signed = np.dtype(f"int{left.data.dtype.itemsize * 8}")
        shifted = np.right_shift(left.data.astype(signed), right.data.astype(signed))
        return TensorHandle(shifted.astype(left.data.dtype, copy=False), left.dtype.scalar)

    def create_dot(self, a, b, accumulator, precision, max_imprecise):
        for operand in (a, b):
            if operand.dtype.scalar not in (*FLOATS, tl.int8, tl.uint8):
                raise NotImplementedError(f"dot of {operand.dtype.scalar}")
        kind = accumulator.dtype.scalar
        if not kind.is_floating():
            product = np.matmul(a.data.astype(np.int32), b.data.astype(np.int32))
            return TensorHandle(product + accumulator.data, kind)
        if a.dtype.scalar == tl.float64:
            return TensorHandle(np.matmul(a.data, b.data) + accumulator.data, kind)
        full = a.dtype.scalar == tl.float32 and b.dtype.scalar == tl.float32  # narrower ones lose nothing
        name = getattr(precision, "name", str(precision)).lower() if full else "ieee"
        total = numerics.matmul(
            widen(a).astype(np.float32, copy=False), widen(b).astype(np.float32, copy=False), name
        ) + widen(accumulator)
        if kind == BF16:
            return TensorHandle(numerics.float32_to_bfloat16(total), BF16)
        return TensorHandle(total.astype(numpy_type(kind), copy=False), kind)


def _add_bfloat16(old, value):
    total = numerics.bfloat16_to_float32(old) + numerics.bfloat16_to_float32(value)
    return numerics.float32_to_bfloat16(total)


# Methods that only move bits, or that are right about bfloat16 above.
SAFE = {
    *(
        "addptr",
        "bitcast",
        "broadcast",
        "cat",
        "expand_dims",
        "gather",
        "int_to_ptr",
        "join",
        "make_range",
        "ptr_to_int",
    ),
    *("reshape", "select", "splat", "split", "trans", "unsplat"),
    *("load", "store", "masked_load", "masked_store", "atomic_rmw", "atomic_cas", "atomic_load", "atomic_store"),
    *("atomic_poll", "fp_to_fp", "fneg", "fabs", "minnumf", "maxnumf", "clampf", "rsqrt", "dot"),
}


def _refusing(name, method):
    def checked(self, *arguments, **options):
        if any(isinstance(argument, TensorHandle) and argument.dtype.scalar == BF16 for argument in arguments):
            raise NotImplementedError(f"{name} on bfloat16 is not known to be right in the simulator")
        return method(self, *arguments, **options)

    return checked


def _delegates(method):
    """Whether a method of the base class is written in terms of those that `Builder` corrects."""
    return bool({"binary_op", "unary_op", "cast_impl"} & set(method.__code__.co_names))


for _name in dir(Builder):
    _method = getattr(Builder, _name)
    if _name.startswith("create_") and _name.removeprefix("create_") not in SAFE and not _delegates(_method):
        setattr(Builder, _name, _refusing(_name, _method))
