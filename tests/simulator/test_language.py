"""The language as the compiler understands it, and a process in which the compiler still works afterwards."""

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction

from . import ProgramError, interpreter, operators, run
from .builder import Builder

ROOT = Path(__file__).parents[2]
TWO = tl.constexpr(2)
CHUNKS = ((0, 16), (16, 8), (24, 4))


# Tuples and compile-time values


@triton.jit
def masked(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < n, other=0.0))


@pytest.mark.parametrize("block", [1, 2])
def test_a_masked_load_of_one_element_gives_what_it_should(block):
    """Triton asks `if other`, which for a tensor of one element must not mean whether that is 0."""
    target = torch.full((4,), math.nan)
    run(masked, (4 // block,), {"source": torch.ones(4), "target": target, "n": 2, "BLOCK": block})
    assert target.tolist() == [1, 1, 0, 0]


@triton.jit
def load_chunks(source, CHUNKS: tl.constexpr):
    """A tuple of blocks, made by concatenation."""
    blocks = (tl.load(source + CHUNKS[0][0] + tl.arange(0, CHUNKS[0][1])),)
    for n in tl.static_range(1, len(CHUNKS)):
        blocks = blocks + (tl.load(source + CHUNKS[n][0] + tl.arange(0, CHUNKS[n][1])),)  # noqa: RUF005
    return blocks


@triton.jit
def store_chunks(target, blocks, factor, CHUNKS: tl.constexpr):
    for n in tl.static_range(len(CHUNKS)):
        start = CHUNKS[n][0]
        tl.store(target + start + tl.arange(0, CHUNKS[n][1]), blocks[n] * factor)


@triton.jit
def tuples(source, target, T, CHUNKS: tl.constexpr):
    blocks = load_chunks(source, CHUNKS=CHUNKS)
    for t in range(T):  # the tuple is loop-invariant
        store_chunks(target + t * 32, blocks, factor=t * TWO, CHUNKS=CHUNKS)


@pytest.mark.parametrize("chunks", [CHUNKS, tl.constexpr(CHUNKS)])
def test_tuples_of_numbers_and_of_blocks(chunks):
    source, target = torch.randn(32), torch.zeros(3, 32)
    run(tuples, (1,), {"source": source, "target": target, "T": 3, "CHUNKS": chunks})
    expected = torch.stack([source * 0, source * 2, source * 4])
    expected[:, 28:] = 0
    assert torch.equal(target, expected)


@triton.jit
def first_larger(values, limit):
    for k in tl.static_range(4):
        value = tl.load(values + k)
        if value > limit:
            return value
    return limit


@triton.jit
def control_flow(values, target, optional, limit, flag, KIND: tl.constexpr, DEFAULT: tl.constexpr = 3):
    tl.static_assert(DEFAULT == 3)
    if tl.program_id(0) == 1:
        return
    result = first_larger(values, limit)
    if optional is None:
        result += 1
    else:
        result += tl.load(optional)
    if flag:
        result *= 2
    result = result if KIND == "plain" else -result
    count = 0
    while count < 5 and not (count == 3 or count == 4):
        count += 1
    result += count
    if 0 < count < 4 or flag:
        result += 100
    tl.store(target, result)
    tl.store(target + 1, min(result, 7.0))
    tl.store(target + 2, max(DEFAULT, 2, TWO))
    tl.store(target + 3, DEFAULT if KIND == "plain" else DEFAULT + 1)


@pytest.mark.parametrize("optional", [None, 10.0])
@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("kind", ["plain", "negative"])
def test_control_flow(optional, flag, kind):
    values, target = torch.tensor([1.0, 2.0, 5.0, 9.0]), torch.zeros(4)
    given = {"values": values, "target": target, "limit": 3.5, "flag": flag, "KIND": kind}
    given["optional"] = None if optional is None else torch.tensor([optional])
    run(control_flow, (2,), given)
    result = (5 + (optional or 1)) * (2 if flag else 1) * (1 if kind == "plain" else -1) + 3 + 100
    assert target.tolist() == [result, min(result, 7), 3, 3 if kind == "plain" else 4]


@triton.jit
def wrong(x, KIND: tl.constexpr):
    block = tl.load(x + tl.arange(0, 4))
    if KIND == "if":
        if block > 0:
            tl.store(x, 1.0)
    elif KIND == "while":
        while block < 0:
            block += 1
    elif KIND == "choice":
        block = 1 if block > 0 else 2
    elif KIND == "static_assert":
        tl.static_assert(KIND == "", "not this")
    elif KIND == "overflow":
        for t in range(70000):
            if t > 65000:
                tl.store(x, t * 40000)
    elif KIND == "integer":
        tl.arange(0, block)
    elif KIND == "range":
        for _ in range(block):
            pass
    elif KIND == "number":
        size = 8
        tl.arange(0, size)
    elif KIND == "shapes":
        block + tl.arange(0, 8)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("if", "block of values"),
        ("while", "block of values"),
        ("choice", "block of values"),
        ("static_assert", "AssertionError: not this"),
        ("overflow", "overflow"),
        ("integer", "arange"),
        ("number", "arange.*constexpr"),
        ("range", "block of values"),
        ("shapes", "ValueError"),
    ],
)
def test_what_the_compiler_would_refuse_is_refused(kind, message):
    with pytest.raises(ProgramError, match=f"^wrong, program 0: .*{message}"):
        run(wrong, (1,), {"x": torch.zeros(4), "KIND": kind})


@triton.jit
def unrolled(x):
    for n in tl.static_range(2):
        size: tl.constexpr = n * 8
        tl.store(x, size)


def test_a_constexpr_is_not_assigned_twice():
    with pytest.raises(ProgramError, match="SyntaxError.*size"):
        run(calling_unrolled, (1,), {"x": torch.zeros(4)})
    with pytest.raises(SyntaxError, match="size"):
        run(unrolled, (1,), {"x": torch.zeros(4)})


@triton.jit
def calling_unrolled(x):
    unrolled(x)


@triton.jit
def logic(x, target):
    a = tl.load(x + tl.arange(0, 8))
    tl.store(target + tl.arange(0, 8), (a > 2 and not (a == 4 or a == 9)) or a == 0)


def test_logical_operators_work_elementwise():
    target = torch.zeros(8, dtype=torch.bool)
    run(logic, (1,), {"x": torch.arange(8.0), "target": target})
    assert target.tolist() == [True, False, False, True, False, True, True, True]


@triton.jit
def wide_offsets(source, target, stride, T):
    for t in range(T):
        offset = t.to(tl.int64) * stride
        tl.store(target + t, offset)
        tl.store(target + T + t, tl.load(source + offset % 8))


def test_offsets_of_64_bits():
    target = torch.zeros(6, dtype=torch.int64)
    run(wide_offsets, (1,), {"source": torch.arange(8), "target": target, "stride": 2**33 + 3, "T": 3})
    assert target.tolist() == [0, 2**33 + 3, 2**34 + 6, 0, 3, 6]


@triton.jit
def grid_shape(target):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    index = (x * tl.num_programs(1) + y) * tl.num_programs(2) + z
    tl.store(target + index, 100 * x + 10 * y + z)


def test_grids_have_up_to_three_axes():
    for grid in ((2,), (2, 3), (2, 3, 4)):
        target = torch.full(grid, -1, dtype=torch.int32)
        run(grid_shape, grid, {"target": target})
        assert target.flatten().tolist() == [sum(i * 10 ** (2 - k) for k, i in enumerate(p)) for p in np.ndindex(grid)]


def closure(amount):
    @triton.jit
    def add_captured(target):
        tl.store(target, tl.load(target) + amount)

    return add_captured


def test_kernels_may_capture_constants():
    target = torch.zeros(1)
    for amount in (1, tl.constexpr(10)):
        run(closure(amount), (1,), {"target": target})
    assert target.item() == 11


@triton.jit
def changing(target):
    tl.store(target, 1.0)


def test_a_changed_source_is_run():
    """As tests do to plant faults."""
    target = torch.zeros(1)
    original = changing.src
    for source, expected in ((original, 1), (original.replace("1.0", "2.0"), 2), (original, 1)):
        changing._unsafe_update_src(source)
        run(changing, (1,), {"target": target})
        assert target.item() == expected


# Short cuts


OPERATORS = ["add", "sub", "mul", "truediv", "lt", "le", "gt", "ge", "eq", "ne", "and", "or"]


def operands():
    """Blocks and scalars of the types that have short cuts and of some that have none, and numbers."""
    generator = np.random.default_rng(0)
    pointer = tl.pointer_type(tl.float32)
    for kind, dtype in (
        (tl.float32, np.float32),
        (tl.int32, np.int32),
        (tl.int1, np.bool_),
        (tl.int64, np.int64),
        (tl.float16, np.float16),
        (tl.uint32, np.uint32),
        (pointer, np.uint64),
    ):
        for shape in ((), (8,), (1,), (4, 8), (4, 1), (1, 8)):
            values = generator.integers(0, 2 if kind is tl.int1 else 50, shape or (1,)).astype(dtype)
            yield tl.tensor(TensorHandle(values, kind), tl.block_type(kind, list(shape)) if shape else kind)
    yield from (0, 3, -2, 2.5, float("nan"), 2**31 - 1, 2**31, 2**40, True)


def outcome(operate, left, right):
    try:
        result = operate(left, right)
    except Exception as error:
        return "overflow" if "overflow" in str(error) else "error"
    if not isinstance(result, tl.tensor):
        return result
    shape = tuple(int(size) for size in result.shape)
    values = result.handle.data
    return str(result.type), str(result.dtype), shape, values.dtype, values.reshape(-1).tobytes()


@pytest.mark.parametrize("name", OPERATORS)
def test_short_cuts_give_what_the_long_way_gives(name):
    with interpreter._Patched(), np.errstate(all="ignore"):
        everything = list(operands())
        for method in {f"__{name}__", f"__r{name}__"} & set(operators.short_cuts(interpreter._computing)):
            long = interpreter._computing(ORIGINALS[method])
            short = getattr(tl.tensor, method)
            taken = 0
            for left in everything:
                for right in everything:
                    if isinstance(left, tl.tensor):
                        expected = outcome(long, left, right)
                        got = outcome(short, left, right)
                        if got == "overflow":  # where the compiled kernel wraps around
                            assert name in ("add", "sub", "mul")
                            assert "int32" in expected[0]
                        else:
                            assert got == expected, (left.type, right)
                        taken += expected != "error"
            assert taken > 50


ORIGINALS = {name: member for name, member in vars(tl.tensor).items() if name.startswith("__")}


# Before and after


def snapshot():
    """Everything that the simulator patches, or could have."""
    names = ["triton.language", "triton.language.core", "triton.language.math", "triton.language.standard"]
    names += ["triton.language.random", "triton.language.semantic", "triton.language.extra.libdevice"]
    names += ["triton.language.extra.cuda.libdevice", "triton.runtime.interpreter", "triton.runtime.jit"]
    things = [importlib.import_module(name) for name in names]
    things += [tl.tensor, tl.dtype, tl.constexpr, tl.core.tensor_descriptor_base, JITFunction]
    things += [InterpreterBuilder, Builder, type(tl.sum)]
    return [dict(vars(thing)) for thing in things] + [set(globals())]


@triton.jit
def everyday(target):
    index = tl.arange(0, 8)
    tl.store(target + index, tl.sum(tl.sigmoid(index[:, None] * 1.0) + tl.cumsum(index, 0)[None, :], 0))


def test_triton_is_left_as_it_was():
    before = snapshot()
    run(everyday, (3,), {"target": torch.zeros(8)}, race=False)
    assert snapshot() == before
    with pytest.raises(ProgramError):
        run(wrong, (2,), {"x": torch.zeros(4), "KIND": "if"})
    with pytest.raises(TypeError):
        run(everyday, (3,), {"target": "nothing"})
    assert snapshot() == before
    with interpreter._Patched():
        assert snapshot() != before
        run(everyday, (3,), {"target": torch.zeros(8)}, race=False)
        assert tl.tensor.__init__ is operators.initialise  # a run inside does not end the patch outside
    assert snapshot() == before


def test_runs_can_be_nested():
    outer, inner = torch.zeros(8), torch.zeros(8)

    def grid(arguments):
        run(everyday, (1,), {"target": inner})
        return (1,)

    run(everyday, grid, {"target": outer})
    assert torch.equal(outer, inner)
    assert outer.ne(0).all()


COMPILING = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tests.simulator import run
from tests.simulator.test_language import everyday, tuples, CHUNKS

def compile(kernel, signature, constants=()):
    signature = {**signature, **{name: "constexpr" for name, _ in constants}}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants})
    return triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]

texts = []
for _ in range(2):
    target = torch.zeros(8)
    run(everyday, (3,), {"target": target}, race=False)
    assert target.ne(0).all()
    texts.append(compile(everyday, {"target": "*fp32"}))
    run(tuples, (1,), {"source": torch.ones(32), "target": torch.zeros(96), "T": 3, "CHUNKS": CHUNKS})
    texts.append(compile(tuples, {"source": "*fp32", "target": "*fp32", "T": "i32"}, [("CHUNKS", CHUNKS)]))
assert texts[:2] == texts[2:]
assert all("st.global" in text for text in texts)
print("compiled", triton.__version__)
"""


def test_running_and_compiling_alternate(tmp_path):
    """In a process of its own, because Triton 3.9's LLVM has been seen to abort."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), *PATHS])}
    assert "TRITON_INTERPRET" not in environment
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"compiled {triton.__version__}" in done.stdout


PATHS = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
