"""Run a kernel: rewrite its source, lend `triton.language` to numpy for as long as it takes, and give it back.

A `@triton.jit` function is Python source that the compiler reads. To execute it, a few things must be different from
plain Python (see `_Rewriter`), and the functions of `triton.language` must compute instead of emitting code. Triton's
interpreter does that when the environment variable TRITON_INTERPRET is set, which turns compilation off for the whole
process. Here the language is patched only inside `run`, so that interpreting and compiling can alternate.
"""

import ast
import inspect
import itertools
import linecache
import textwrap
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as triton_interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import JITFunction

from . import numerics, operators, reductions
from .builder import Builder, Launch, numpy_type
from .errors import ProgramError, Race, SimulationError
from .memory import Memory
from .races import RaceDetector
from .schedule import Schedule

_builder = Builder()
_semantic = TritonSemantic(_builder)
_lock = threading.RLock()
_MISSING = object()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, tl.tensor)


# What rewritten source calls. The names cannot be written in a kernel.


def _assign(value: Any) -> Any:
    """What `x = value` gives x: a number becomes a tensor, unless x is annotated `tl.constexpr`."""
    if type(value) is tl.tensor:
        return value
    if type(value) is tuple:
        return tuple(_assign(item) for item in value)
    return _semantic.to_tensor(value, False)


def _truth(value: Any) -> bool:
    """A condition. The interpreter takes every block of values for true."""
    if not _is_tensor(value):
        return bool(value)
    if value.handle.data.size != 1:
        raise TypeError("the condition is a block of values, not a scalar")
    return bool(value.handle.data.reshape(-1)[0])


def _both(left: Any, right: Callable[[], Any]) -> Any:
    if _is_tensor(left):
        return _semantic.logical_and(left, _assign(right()))
    return left and right()


def _either(left: Any, right: Callable[[], Any]) -> Any:
    if _is_tensor(left):
        return _semantic.logical_or(left, _assign(right()))
    return left or right()


def _negation(value: Any) -> Any:
    return _semantic.not_(value) if _is_tensor(value) else not value


def _range(start: Any, end: Any = None, step: Any = None, **_: Any):
    """A loop's counter is a tensor, so that it overflows like one and `counter.to(tl.int64)` works."""
    start, end = (0, start) if end is None else (start, end)
    wide = any(_is_tensor(bound) and bound.dtype.primitive_bitwidth == 64 for bound in (start, end, step))
    for value in range(int(start), int(end), 1 if step is None else int(step)):
        yield _wide(value) if wide else _semantic.to_tensor(value)


def _wide(value: int) -> tl.tensor:
    return tl.tensor(_builder.get_int64(value), tl.int64)


def _extreme(name: str, choose: Callable[..., Any]) -> Callable[..., Any]:
    """Python's `min` and `max`, which the compiler turns into the elementwise ones if an operand is a tensor."""

    def extreme(*values: Any) -> Any:
        if not any(_is_tensor(value) for value in values):
            return choose(*values)
        result = values[0]
        for value in values[1:]:
            result = getattr(tl, name)(result, value)
        return result

    return extreme


_HELPERS = {
    "__assign": _assign,
    "__truth": _truth,
    "__both": _both,
    "__either": _either,
    "__negation": _negation,
    "range": _range,
    "min": _extreme("minimum", min),
    "max": _extreme("maximum", max),
}


class _Rewriter(ast.NodeTransformer):
    """Python source with the compiler's meaning for assignments, conditions and logical operators."""

    @staticmethod
    def _call(name: str, *arguments: ast.expr) -> ast.Call:
        return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=list(arguments), keywords=[])

    @staticmethod
    def _later(expression: ast.expr) -> ast.Lambda:
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        return ast.Lambda(args=nothing, body=expression)

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        if len(node.targets) > 1:
            raise SyntaxError("Triton does not compile multiple assignment (a = b = value)")
        node.value = self._call("__assign", node.value)
        return node

    def generic_visit(self, node: Any) -> Any:
        super().generic_visit(node)
        if isinstance(node, (ast.If, ast.While, ast.IfExp)):
            node.test = self._call("__truth", node.test)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        if node.value is not None and not _is_constexpr(node.annotation):
            node.value = self._call("__assign", node.value)
        return node

    def visit_For(self, node: ast.For) -> ast.For:
        if isinstance(node.iter, ast.Call) and ast.unparse(node.iter.func).endswith("static_range"):
            for inner in ast.walk(node):
                if isinstance(inner, ast.AnnAssign) and _is_constexpr(inner.annotation):
                    name = ast.unparse(inner.target)
                    raise SyntaxError(f"Triton does not compile a second assignment to the constexpr {name} (unrolled)")
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        name = "__both" if isinstance(node.op, ast.And) else "__either"
        result = node.values[-1]
        for value in reversed(node.values[:-1]):
            result = self._call(name, value, self._later(result))
        return result

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return self._call("__negation", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) == 1:
            return node
        operands = [node.left, *node.comparators]
        pairs = [
            ast.Compare(left=left, ops=[operator], comparators=[right])
            for left, operator, right in zip(operands, node.ops, operands[1:], strict=False)
        ]
        result: ast.expr = pairs[-1]
        for pair in reversed(pairs[:-1]):
            result = self._call("__both", pair, self._later(result))
        return result


def _is_constexpr(annotation: ast.expr) -> bool:
    return ast.unparse(annotation).split(".")[-1] == "constexpr"


@dataclass
class _Rewritten:
    """An executable kernel or device function."""

    function: Callable[..., Any]
    source: str


_rewritten: dict[int, tuple[JITFunction, _Rewritten]] = {}
_code_of_kernels: set[Any] = set()  # for `_line`: code that the user wrote


def _rewrite(kernel: JITFunction) -> _Rewritten:
    """The executable form of a kernel, made once per source (tests change `kernel.src` to plant faults)."""
    known = _rewritten.get(id(kernel))
    if known is not None and known[1].source == kernel.src:
        return known[1]
    function = kernel.fn
    tree = ast.parse(textwrap.dedent(kernel.src))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    ast.increment_lineno(tree, _first_line(kernel) - 1)
    definition = _Rewriter().visit(definition)
    # The helpers, and what the function takes from an enclosing one, are the parameters of a function around it: so
    # nothing is added to the globals of the kernel's module. Global constexpr values enter unwrapped.
    given = {name: helper for name, helper in _HELPERS.items() if name not in function.__globals__}
    given.update(zip(function.__code__.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=True))
    for name in {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}:
        value = given.get(name, function.__globals__.get(name))
        if isinstance(value, tl.constexpr):
            given[name] = value
        elif id(value) in _libdevice_stubs:
            given[name] = _libdevice_stubs[id(value)]
    given = {name: _plain(value) for name, value in given.items()}
    around = ast.parse(f"def __around({', '.join(given)}):\n    return {function.__name__}").body[0]
    assert isinstance(around, ast.FunctionDef)
    around.body.insert(0, definition)
    module = ast.fix_missing_locations(ast.Module(body=[around], type_ignores=[]))
    scope: dict[str, Any] = {}
    exec(compile(module, inspect.getfile(function), "exec"), function.__globals__, scope)
    result = scope["__around"](**given)
    if not function.__module__.startswith("triton."):
        _code_of_kernels.add(result.__code__)
    _rewritten[id(kernel)] = kernel, _Rewritten(result, kernel.src)
    return _rewritten[id(kernel)][1]


def _first_line(kernel: JITFunction) -> int:
    """The line of `def` in the file: the source starts there, `raw_src` with the decorators."""
    for offset, line in enumerate(kernel.raw_src):
        if line.lstrip().startswith("def "):
            return kernel.starting_line_number + offset
    return kernel.starting_line_number


def _plain(value: Any) -> Any:
    """A compile-time value without its wrappers."""
    if isinstance(value, tl.constexpr):
        return _plain(value.value)
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    return value


def _call(kernel: JITFunction, *arguments: Any, **keywords: Any) -> Any:
    """One `@triton.jit` function calls another."""
    return _rewrite(kernel).function(*arguments, **keywords)


# The patches of triton.language


class _Recorder:
    """Stands in for Triton's patch scope and only notes what is to be set."""

    def __init__(self) -> None:
        self.changes: dict[tuple[int, str], tuple[Any, str, Any]] = {}

    def set_attr(self, target: Any, name: str, value: Any) -> None:
        self.changes[id(target), name] = target, name, value


def _computing(builtin: Callable[..., Any]) -> Callable[..., Any]:
    inner = getattr(builtin, "__wrapped__", builtin)  # without the check that there is a `_semantic`

    def computing(*arguments: Any, _semantic: Any = _semantic, **keywords: Any) -> Any:
        return inner(*arguments, _semantic=_semantic, **keywords)

    return computing


def _elementwise(name: str, function: Callable[..., np.ndarray]) -> Callable[..., tl.tensor]:
    def elementwise(*arguments: Any, _semantic: Any = None) -> tl.tensor:
        tensors = list(np.broadcast_arrays(*(_assign(argument).handle.data for argument in arguments)))
        kinds = {_assign(argument).dtype for argument in arguments}
        kind = kinds.pop()
        if kinds or kind not in (tl.float32, tl.float64):
            raise TypeError(f"libdevice.{name} takes float32 or float64 tensors of one type, not {[kind, *kinds]}")
        values = np.asarray(function(*tensors)).astype(tensors[0].dtype, copy=False)
        shape = max((_assign(argument).shape for argument in arguments), key=len)
        return operators.make(values, kind, values.shape if shape else None)

    return elementwise


def _missing(name: str) -> Callable[..., Any]:
    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"libdevice.{name} is not in the simulator")

    return missing


def _integer(self: tl.tensor) -> int:
    if self.handle.data.size != 1:
        raise TypeError("a block of values is not an integer")
    return int(self.handle.data.reshape(-1)[0])


def _collect() -> tuple[list[tuple[Any, str, Any]], dict[int, Callable[..., Any]]]:
    """Every attribute to be set during a run, and replacements for libdevice functions imported by name."""
    recorder = _Recorder()
    for package in (tl.core, tl, tl.math, tl.tensor, tl.core.tensor_descriptor_base):
        for name, member in inspect.getmembers(package):
            if tl.core.is_builtin(member):
                recorder.set_attr(package, name, _computing(member))
    for package in (tl, tl.core):
        triton_interpreter._patch_lang_tensor(package.tensor, recorder)
        triton_interpreter._patch_lang_core(package, recorder)
        recorder.set_attr(package, "range", _range)
    for target in (tl, tl.core, tl.tensor):
        recorder.set_attr(target, "reduce", reductions.reduce)
        recorder.set_attr(target, "associative_scan", reductions.associative_scan)
    for name, method in operators.short_cuts(_computing).items():
        recorder.set_attr(tl.tensor, name, method)
    recorder.set_attr(tl.block_type, "__init__", operators.initialise_block)
    recorder.set_attr(tl.core, "_unwrap_if_constexpr", operators.unwrap)
    recorder.set_attr(triton_interpreter, "_get_np_dtype", numpy_type)
    recorder.set_attr(tl.tensor, "__index__", _integer)
    # Inside Triton `if other` asks whether there is one; the interpreter makes that whether it is not 0.
    recorder.set_attr(tl.tensor, "__bool__", lambda self: True)
    recorder.set_attr(JITFunction, "__call__", _call)
    stubs = {}
    for library in (libdevice, cuda_libdevice):
        for name, member in vars(library).items():
            if inspect.isfunction(member) and member.__module__ == library.__name__:
                function = numerics.LIBDEVICE.get(name)
                stubs[id(member)] = _missing(name) if function is None else _elementwise(name, function)
                recorder.set_attr(library, name, stubs[id(member)])
    return list(recorder.changes.values()), stubs


_patches, _libdevice_stubs = _collect()


class _Patched:
    """`triton.language` computes inside this context. Nested uses do nothing."""

    depth = 0

    def __enter__(self) -> None:
        _lock.acquire()
        _Patched.depth += 1
        if _Patched.depth == 1:
            _Patched.saved = [(target, name, vars(target).get(name, _MISSING)) for target, name, _ in _patches]
            for target, name, value in _patches:
                setattr(target, name, value)

    def __exit__(self, *_: Any) -> None:
        try:
            _Patched.depth -= 1
            if _Patched.depth == 0:
                for target, name, value in _Patched.saved:
                    if value is _MISSING:
                        delattr(target, name)
                    else:
                        setattr(target, name, value)
        finally:
            _lock.release()


# Running


def _argument(value: Any, memory: Memory, name: str) -> Any:
    """A runtime argument as the kernel sees it: pointers, and tensors of one element for numbers."""
    if isinstance(value, torch.Tensor):
        kind = _POINTERS[value.dtype]
        return tl.tensor(TensorHandle(np.array([memory.pointer(name)], np.uint64), kind), kind)
    if isinstance(value, (bool, int)):
        return _semantic.to_tensor(value)
    if isinstance(value, float):
        return tl.tensor(_builder.get_fp32(value), tl.float32)
    if type(value) is tuple:
        return tuple(_argument(item, memory, f"{name}[{k}]") for k, item in enumerate(value))
    if value is None or isinstance(value, (tl.dtype, JITFunction)):
        return value
    raise TypeError(f"argument {name!r}: a kernel cannot take a {type(value).__name__}")


_TYPES = {
    torch.bool: tl.int1,
    torch.uint8: tl.uint8,
    torch.int8: tl.int8,
    torch.int16: tl.int16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
    torch.uint16: tl.uint16,
    torch.uint32: tl.uint32,
    torch.uint64: tl.uint64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
_POINTERS = {dtype: tl.pointer_type(kind) for dtype, kind in _TYPES.items()}


def _tensors(name: str, value: Any):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif type(value) is tuple:
        for k, item in enumerate(value):
            yield from _tensors(f"{name}[{k}]", item)


def _bind(kernel: JITFunction, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments in the order of the parameters, completed by the defaults."""
    unknown = set(arguments) - {parameter.name for parameter in kernel.params}
    if unknown:
        raise TypeError(f"{kernel.__name__} has no parameter {', '.join(sorted(unknown))}")
    bound = {}
    for parameter in kernel.params:
        if parameter.name in arguments:
            bound[parameter.name] = _plain(arguments[parameter.name])
        elif parameter.has_default:
            bound[parameter.name] = _plain(parameter.default)
        else:
            raise TypeError(f"{kernel.__name__} needs an argument for {parameter.name}")
    return bound


def run(
    kernel: JITFunction,
    grid: Any,
    arguments: dict[str, Any],
    *,
    seed: int = 0,
    policy: str = "random",
    race: bool = True,
    limit: int = 2_000_000,
) -> dict[str, int]:
    """Run a kernel on CPU tensors, all programs of the grid concurrently, and say what it did.

    Args:
        kernel: a `@triton.jit` function.
        grid: one to three sizes, or a function of the arguments that returns them.
        arguments: a value for every parameter without a default, compile-time ones included; no launch options.
        seed: chooses the interleaving.
        policy: who goes next at each access to memory: "random", "priority" or "serial" (see `schedule`).
        race: whether to look for races.
        limit: accesses to memory after which the launch counts as hung.
    """
    if not isinstance(kernel, JITFunction):
        raise TypeError(f"the simulator runs @triton.jit functions, not a {type(kernel).__name__}")
    sizes = tuple(int(size) for size in (grid(arguments) if callable(grid) else grid))
    x, y, z = sizes + (1,) * (3 - len(sizes))
    if min(x, y, z) < 1:
        raise ValueError(f"a grid of {sizes} has no programs")
    bound = _bind(kernel, arguments)
    constant = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    tensors = dict(itertools.chain.from_iterable(_tensors(name, value) for name, value in bound.items()))
    launch = Launch(
        kernel.__name__,
        (x, y, z),
        Memory(tensors),
        Schedule(x * y * z, seed, policy, limit),
        RaceDetector(x * y * z) if race else None,
    )
    with _Patched(), np.errstate(all="ignore"):
        outer, _builder.launch = _builder.launch, launch
        try:
            function = _rewrite(kernel).function
            values = {k: v if k in constant else _argument(v, launch.memory, k) for k, v in bound.items()}
            launch.schedule.run(lambda: _program(launch, function, values))
        finally:
            _builder.launch = outer
    return launch.statistics()


def _program(launch: Launch, function: Callable[..., Any], values: dict[str, Any]) -> None:
    """One program, whose errors say where they come from."""
    try:
        function(**values)
    except SimulationError as error:
        place = f"{launch.kernel}, program {_ids(launch, launch.schedule.current)}"
        text, *other = error.args
        if isinstance(error, Race) and other:
            text = text.format(f"program {_ids(launch, other[0])}")
        raise type(error)(f"{place}: {text}{_line(error)}") from None
    except Exception as error:
        place = f"{launch.kernel}, program {_ids(launch, launch.schedule.current)}"
        raise ProgramError(f"{place}: {type(error).__name__}: {error}{_line(error)}") from error


def _ids(launch: Launch, program: int) -> str:
    """A program's ids, as many as the grid has axes that matter."""
    ids = launch.place(program)
    return str(ids[0]) if launch.grid[1:] == (1, 1) else str(ids)


def _line(error: BaseException) -> str:
    """Where in the kernel's own source an error comes from."""
    frames = [frame for frame in traceback.walk_tb(error.__traceback__) if frame[0].f_code in _code_of_kernels]
    if not frames:
        return ""
    frame, line = frames[-1]
    file = frame.f_code.co_filename
    return f"\n  {file}:{line}: {linecache.getline(file, line).strip()}"


@dataclass
class Simulator:
    """The launcher's hook with settings: to be called as hook(kernel, grid, arguments, options)."""

    seed: int = 0
    policy: str = "random"
    race: bool = True
    limit: int = 2_000_000
    statistics: list[tuple[str, dict[str, int]]] = field(default_factory=list)

    def __call__(
        self, kernel: JITFunction, grid: Any, arguments: dict[str, Any], options: Any = None
    ) -> dict[str, int]:
        result = run(kernel, grid, arguments, seed=self.seed, policy=self.policy, race=self.race, limit=self.limit)
        self.statistics.append((kernel.__name__, result))
        return result


def simulator(kernel: JITFunction, grid: Any, arguments: dict[str, Any], options: Any = None) -> dict[str, int]:
    """The launcher's hook with the default settings. Launch options (warps, stages) mean nothing here."""
    return run(kernel, grid, arguments)
