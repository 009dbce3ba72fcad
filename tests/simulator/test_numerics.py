"""The simulator's arithmetic against torch's, bit by bit where both round correctly."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.language.extra.libdevice import tanh as imported_tanh
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from . import ProgramError, numerics, run
from .builder import SAFE, Builder

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def any_bits(dtype, count=8192, seed=0):
    """Values of uniformly random bits: subnormals, infinities and NaNs among them, and some for sure."""
    integer = BITS[dtype]
    generator = torch.Generator().manual_seed(seed)
    limits = torch.iinfo(integer)
    values = torch.randint(limits.min, limits.max + 1, (count,), generator=generator, dtype=torch.int64)
    values = values.to(integer).view(dtype)
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), torch.finfo(dtype).max, torch.finfo(dtype).tiny]
    values[: len(special)] = torch.tensor(special).to(dtype)
    values[len(special)] = torch.tensor(torch.finfo(dtype).tiny).to(dtype) / 4
    return values


def ordinary(dtype, count=8192, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(got, expected):
    """Equal bit by bit, except that a NaN is a NaN."""
    assert got.dtype == expected.dtype
    assert torch.equal(got.isnan(), expected.isnan())
    number = ~expected.isnan()
    integer = BITS[got.dtype]
    assert torch.equal(got.view(integer)[number], expected.view(integer)[number])


# Conversions


@triton.jit
def convert(source, target, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(target + index, tl.load(source + index).to(target.dtype.element_ty))


def converted(source, dtype):
    target = torch.zeros(source.numel(), dtype=dtype)
    run(convert, (1,), {"source": source, "target": target, "BLOCK": source.numel()})
    return target


def test_every_bfloat16_widens_as_in_torch():
    everything = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    assert_same(converted(everything, torch.float32), everything.float())


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_float32_rounds_as_in_torch(to, seed):
    values = any_bits(torch.float32, 65536, seed)
    assert_same(converted(values, to), values.to(to))
    # Halfway between two neighbours, and one bit to either side.
    grid = ordinary(to, 8192, seed)
    above = (grid.view(torch.int16) + 1).view(to).float()
    middle = ((grid.double() + above.double()) / 2).float()
    for values in (middle, torch.nextafter(middle, above), torch.nextafter(middle, grid.float())):
        assert_same(converted(values, to), values.to(to))


@pytest.mark.parametrize(("source", "to"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
def test_the_half_types_convert_into_each_other(source, to):
    values = any_bits(source)
    assert_same(converted(values, to), values.float().to(to))


def test_integers_and_bfloat16_convert_into_each_other():
    integers = torch.randint(-(2**23), 2**23, (8192,), dtype=torch.int32)
    assert_same(converted(integers, torch.bfloat16), integers.to(torch.bfloat16))
    values = ordinary(torch.bfloat16) * 100
    assert torch.equal(converted(values, torch.int32), values.to(torch.int32))


@triton.jit
def truncate(source, target, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(target + index, tl.cast(tl.load(source + index), tl.bfloat16, fp_downcast_rounding="rtz"))


def test_rounding_towards_zero():
    values = ordinary(torch.float32)
    target = torch.zeros(values.numel(), dtype=torch.bfloat16)
    run(truncate, (1,), {"source": values, "target": target, "BLOCK": values.numel()})
    assert torch.equal(target.float().view(torch.int32), values.view(torch.int32) & -65536)


# Elementwise arithmetic


@triton.jit
def elementwise(x, y, z, target, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    a = tl.load(x + index)
    b = tl.load(y + index)
    c = tl.load(z + index)
    if OPERATION == "add":
        result = a + b
    elif OPERATION == "subtract":
        result = a - b
    elif OPERATION == "multiply":
        result = a * b
    elif OPERATION == "divide":
        result = a / b
    elif OPERATION == "scalar":
        result = 2 * a + 1
    elif OPERATION == "negate":
        result = -a
    elif OPERATION == "absolute":
        result = tl.abs(a)
    elif OPERATION == "maximum":
        result = tl.maximum(a, b)
    elif OPERATION == "minimum":
        result = tl.minimum(a, b)
    elif OPERATION == "clamp":
        result = tl.clamp(a, tl.minimum(b, c), tl.maximum(b, c))
    elif OPERATION == "where":
        result = tl.where(a < b, a, c)
    elif OPERATION == "compare":
        result = ((a <= b) & (b != c) | (a > c)).to(target.dtype.element_ty)
    elif OPERATION == "reshape":
        left, right = tl.split(tl.reshape(a, (BLOCK // 2, 2)))
        result = tl.reshape(tl.join(right, left), (BLOCK,))
    else:
        tl.static_assert(OPERATION == "fma")
        result = tl.fma(a, b, c)
    tl.store(target + index, result.to(target.dtype.element_ty))


def swap_pairs(values):
    return values.view(-1, 2).flip(1).reshape(-1)


def fmax(a, b):
    """The number if the other is NaN (torch's lets signalling NaNs through)."""
    return torch.where(a.isnan(), b, torch.where(b.isnan(), a, torch.maximum(a, b)))


def fmin(a, b):
    return -fmax(-a, -b)


OPERATIONS = {
    "add": lambda a, b, c: a + b,
    "subtract": lambda a, b, c: a - b,
    "multiply": lambda a, b, c: a * b,
    "divide": lambda a, b, c: (a.float() / b.float()).to(a.dtype),
    "scalar": lambda a, b, c: 2 * a + 1,
    "negate": lambda a, b, c: -a,
    "absolute": lambda a, b, c: a.abs(),
    "maximum": lambda a, b, c: fmax(a, b),
    "minimum": lambda a, b, c: fmin(a, b),
    "where": lambda a, b, c: torch.where(a < b, a, c),
    "compare": lambda a, b, c: ((a <= b) & (b != c) | (a > c)).to(a.dtype),
    "reshape": lambda a, b, c: swap_pairs(a),
    "clamp": lambda a, b, c: fmin(fmax(a, fmin(b, c)), fmax(b, c)),
}


def calculated(operation, x, y, z):
    target = torch.zeros_like(x)
    run(elementwise, (1,), {"x": x, "y": y, "z": z, "target": target, "OPERATION": operation, "BLOCK": x.numel()})
    return target


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_arithmetic_equals_torch(operation, dtype):
    for make in (any_bits, ordinary):
        x, y, z = (make(dtype, seed=seed) for seed in range(3))
        got, expected = calculated(operation, x, y, z), OPERATIONS[operation](x, y, z)
        zero = (got == 0) & (expected == 0)  # which of two zeros, a minimum does not say; nor 0 - x in Triton 3.7
        assert_same(torch.where(zero, 0, got), torch.where(zero, 0, expected))


def nearest_float32(value):
    guess = np.float32(float(value))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(candidates, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.int32)) & 1))


def test_fma_rounds_once():
    x, y, z = (ordinary(torch.float32, 2048, seed) for seed in range(3))
    # Products just off a tie of the sum, which rounding to float64 first would turn into the tie.
    x[:1024] = 1 + 2.0**-23 * torch.randint(1, 64, (1024,))
    y[:1024] = 2.0**-24 * (1 + 2.0**-23 * torch.randint(-2, 3, (1024,)))
    z[:1024] = 1 + 2.0**-23 * torch.randint(0, 64, (1024,))
    y[:512] *= 2.0**-30
    z[:512] += 0
    expected = [
        nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))
        for a, b, c in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)
    ]
    assert_same(calculated("fma", x, y, z), torch.from_numpy(np.array(expected)))


def test_fma_needs_its_rounding_to_odd():
    """The product is 2^-24 - 2^-70: the sum is just under a tie, but float64 rounds it to the tie."""
    x, y = np.array([2.0**-12 * (1 + 2.0**-23)], np.float32), np.array([2.0**-12 * (1 - 2.0**-23)], np.float32)
    for sign in (1, -1):
        z = np.array([sign * (1 + 2.0**-23)], np.float32)
        assert (np.float64(x) * y + z).astype(np.float32) != z
        assert numerics.fused_multiply_add(sign * x, y, z) == z


BINARY = [name for name in dir(InterpreterBuilder) if name.startswith(("create_f", "create_m", "create_precise_div"))]


@pytest.mark.parametrize("name", sorted(set(BINARY) | {"create_floor", "create_ceil", "create_exp", "create_sqrt"}))
def test_builder_methods_round_bfloat16_or_refuse_it(name):
    """Whatever works on one or two float32 blocks gives the same on bfloat16 ones, rounded."""
    method = getattr(Builder(), name)
    wide = [ordinary(torch.bfloat16, 512, seed).float() for seed in range(2)]
    if name in ("create_sqrt",):
        wide = [values.abs() for values in wide]
    narrow = [TensorHandle(values.bfloat16().view(torch.int16).numpy().view(np.uint16), tl.bfloat16) for values in wide]
    wide = [TensorHandle(values.numpy(), tl.float32) for values in wide]
    for operands in (slice(0, 1), slice(0, 2)):
        try:
            expected = getattr(Builder(), name)(*wide[operands])
        except Exception:
            continue
        if not isinstance(expected, TensorHandle) or name.startswith("create_fp_"):
            continue
        got = method(*narrow[operands])
        if expected.data.dtype == np.bool_:
            assert (got.data == expected.data).all()
        else:
            assert got.dtype == tl.bfloat16
            assert (got.data == numerics.float32_to_bfloat16(expected.data)).all()


def test_what_is_not_known_to_be_right_on_bfloat16_is_refused():
    handle = TensorHandle(np.zeros(4, np.uint16), tl.bfloat16)
    for name in ("create_erf", "create_fma", "create_histogram", "create_idiv", "create_umulhi", "create_ashr"):
        with pytest.raises(NotImplementedError, match="bfloat16"):
            getattr(Builder(), name)(handle, handle, handle)
    assert not {"erf", "fma", "histogram", "dot_scaled", "print"} & SAFE


def test_float8_is_refused():
    narrow, wide = TensorHandle(np.zeros(4, np.uint8), tl.float8e5), TensorHandle(np.zeros(4, np.float32), tl.float32)
    for operate in (
        lambda: Builder().create_fadd(narrow, narrow),
        lambda: Builder().cast_impl(narrow, tl.float32),
        lambda: Builder().cast_impl(wide, tl.float8e5),
        lambda: Builder().create_dot(narrow, narrow, wide, None, 0),
    ):
        with pytest.raises(NotImplementedError):
            operate()
    x, y = torch.zeros(8, dtype=torch.float32), torch.zeros(8, dtype=torch.uint8)
    with pytest.raises(ProgramError, match="NotImplementedError"):
        run(through_float8, (1,), {"x": x, "y": y})


@triton.jit
def through_float8(x, y):
    index = tl.arange(0, 8)
    tl.store(y + index, tl.load(x + index).to(tl.float8e5).to(tl.uint8, bitcast=True))


# Reductions and scans


@triton.jit
def plus(a, b):
    return a + b


@triton.jit
def reductions(source, target, N: tl.constexpr):
    index = tl.arange(0, N)
    values = tl.load(source + index[:, None] * N + index[None, :])
    kind = target.dtype.element_ty
    tl.store(target + index, tl.max(values, 1).to(kind))
    tl.store(target + N + index, tl.min(values, 0).to(kind))
    tl.store(target + 2 * N + index, tl.sum(values, axis=1).to(kind))
    tl.store(target + 3 * N + index, tl.argmax(values, 0).to(kind))
    tl.store(target + 4 * N + index[:, None] * N + index[None, :], tl.cumsum(values, 1).to(kind))
    tl.store(target + (4 + N) * N + index, tl.reshape(tl.max(values, 1, keep_dims=True), (N,)).to(kind))
    tl.store(target + (5 + N) * N + index, tl.max(values).to(kind) + tl.sum(values).to(kind) + index * 0)
    tl.store(target + (6 + N) * N + index, tl.reduce(values, 0, plus).to(kind))
    reverse = tl.associative_scan(values, 0, plus, reverse=True)
    tl.store(target + (7 + N) * N + index[:, None] * N + index[None, :], reverse.to(kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_reductions_and_scans(dtype):
    N = 16
    values = torch.randint(-8, 9, (N, N), generator=torch.Generator().manual_seed(0)).to(dtype)  # sums are exact
    target = torch.full(((7 + 2 * N), N), float("nan"))
    run(reductions, (1,), {"source": values, "target": target, "N": N})
    wide = values.float()
    expected = [wide.amax(1)[None], wide.amin(0)[None], wide.sum(1)[None], wide.argmax(0)[None].float(), wide.cumsum(1)]
    expected += [wide.amax(1)[None], (wide.max() + wide.sum()).expand(1, N), wide.sum(0)[None]]
    expected.append(wide.flip(0).cumsum(0).flip(0))
    assert torch.equal(target, torch.cat(expected))


@triton.jit
def second(a, b):
    return b


@triton.jit
def pick(a, i, b, j):
    """The larger value and where it was."""
    return tl.where(a >= b, a, b), tl.where(a >= b, i, j)


@triton.jit
def ordered(source, target, N: tl.constexpr):
    index = tl.arange(0, N)
    values = tl.load(source + index)
    tl.store(target, tl.reduce(values, 0, second))
    largest, where = tl.reduce((values, index), 0, pick)
    tl.store(target + 1, largest)
    tl.store(target + 2, where)
    tl.store(target + 3 + index, tl.associative_scan(values, 0, second))
    running, _ = tl.associative_scan((values, index), 0, pick)
    tl.store(target + 3 + N + index, running)


def test_operands_are_combined_in_order():
    source, target = ordinary(torch.float32, 16), torch.zeros(35)
    run(ordered, (1,), {"source": source, "target": target, "N": 16})
    assert target[0] == source[-1]
    assert target[1] == source.max()
    assert target[2] == source.argmax()
    assert torch.equal(target[3:19], source)
    assert torch.equal(target[19:], source.cummax(0).values)


# Products


@triton.jit
def product(a, b, target, S: tl.constexpr, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    if S == 0:
        left = tl.load(a + m[:, None] * K + k[None, :])
        right = tl.load(b + k[:, None] * N + n[None, :])
        tl.store(target + m[:, None] * N + n[None, :], tl.dot(left, right, input_precision=PRECISION))
    else:
        s = tl.arange(0, S)[:, None, None]
        left = tl.load(a + s * M * K + m[None, :, None] * K + k[None, None, :])
        right = tl.load(b + s * K * N + k[None, :, None] * N + n[None, None, :])
        result = tl.dot(left, right, input_precision=PRECISION)
        tl.store(target + s * M * N + m[None, :, None] * N + n[None, None, :], result)


def multiplied(a, b, precision="ieee"):
    target = torch.zeros(*a.shape[:-1], b.shape[-1])
    sizes = {"S": a.shape[0] if a.ndim == 3 else 0, "M": a.shape[-2], "K": a.shape[-1], "N": b.shape[-1]}
    run(product, (1,), {"a": a, "b": b, "target": target, "PRECISION": precision, **sizes})
    return target


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_dot_of_half_types_is_the_float32_product(dtype, batch):
    torch.manual_seed(0)
    a, b = torch.randn(*batch, 16, 64).to(dtype), torch.randn(*batch, 64, 32).to(dtype)
    for precision in ("ieee", "tf32"):  # which says nothing about half types
        torch.testing.assert_close(multiplied(a, b, precision), a.float() @ b.float(), rtol=1e-6, atol=1e-5)


def test_input_precision_sets_the_error_of_float32_dots():
    torch.manual_seed(0)
    a, b = torch.randn(4, 32, 128), torch.randn(4, 128, 32)
    exact = a.double() @ b.double()
    errors = {p: (multiplied(a, b, p) - exact).abs().max().item() for p in ("ieee", "tf32x3", "tf32")}
    assert errors["ieee"] < 2e-5
    assert errors["tf32x3"] < 4e-5
    assert 2e-3 < errors["tf32"] < 4e-2
    cut_a, cut_b = ((v.view(torch.int32) & -8192).view(torch.float32) for v in (a, b))
    assert (multiplied(a, b, "tf32") - cut_a.double() @ cut_b.double()).abs().max() < 2e-5
    with pytest.raises(ProgramError, match="tf32x3"):  # the message lists what there is
        multiplied(a, b, "tf64")


def test_rounding_to_tf32():
    step = 2.0**-10
    cases = {
        1 + step / 2: 1 + step,  # ties go away from zero
        -1 - step / 2: -1 - step,
        1 + step / 2 - 2.0**-23: 1.0,
        1 + step: 1 + step,
        float("inf"): float("inf"),
        float("-inf"): float("-inf"),
        3.4e38: float(np.float32(3.4e38).view(np.uint32) and numerics.round_to_tf32(np.array([3.4e38]))[0]),
    }
    got = numerics.round_to_tf32(np.array(list(cases), np.float32))
    assert got.tolist() == list(cases.values())
    every_nan = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(numerics.round_to_tf32(every_nan)).all()


# Functions


@triton.jit
def functions(source, target, N: tl.constexpr):
    index = tl.arange(0, N)
    x = tl.load(source + index)
    tl.store(target + index, libdevice.tanh(x))
    tl.store(target + N + index, cuda_libdevice.expm1(x))
    tl.store(target + 2 * N + index, imported_tanh(x))
    tl.store(target + 3 * N + index, tl.sigmoid(x))
    tl.store(target + 4 * N + index, tl.exp(x))
    tl.store(target + 5 * N + index, tl.log(tl.abs(x)))
    tl.store(target + 6 * N + index, tl.erf(x))
    tl.store(target + 7 * N + index, libdevice.pow(tl.abs(x), 0.5))
    tl.store(target + 8 * N + index, tl.math.rsqrt(tl.abs(x)))


def test_functions():
    x = ordinary(torch.float32, 256) * 3
    target = torch.zeros(9, 256)
    run(functions, (1,), {"source": x, "target": target, "N": 256})
    x = x.double()
    expected = [x.tanh(), x.expm1(), x.tanh(), x.sigmoid(), x.exp(), x.abs().log(), x.erf(), x.abs().sqrt()]
    expected.append(x.abs().rsqrt())
    torch.testing.assert_close(target.double(), torch.stack(expected), rtol=3e-6, atol=1e-7)


@triton.jit
def other_function(source, NAME: tl.constexpr):
    x = tl.load(source + tl.arange(0, 8))
    if NAME == "missing":
        libdevice.y0(x)
    else:
        libdevice.tanh(x)


def test_libdevice_refuses_what_it_cannot_do():
    with pytest.raises(ProgramError, match="libdevice.y0"):
        run(other_function, (1,), {"source": torch.zeros(8), "NAME": "missing"})
    with pytest.raises(ProgramError, match="libdevice.tanh takes float32"):
        run(other_function, (1,), {"source": torch.zeros(8, dtype=torch.bfloat16), "NAME": "half"})


@triton.jit
def philox(target, seed, c0):
    words = tl.philox(seed, c0, c0, c0, c0)
    for k in tl.static_range(4):
        tl.store(target + k, words[k])


@pytest.mark.parametrize(
    ("seed", "counter", "words"),  # Random123's known answers
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (-1, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox(seed, counter, words):
    target = torch.zeros(4, dtype=torch.int64)
    run(philox, (1,), {"target": target, "seed": torch.tensor(seed).item(), "c0": counter})
    assert [word & 0xFFFFFFFF for word in target.tolist()] == list(words)


def test_high_products():
    generator = np.random.default_rng(0)
    for dtype in (np.uint32, np.int32, np.uint64, np.int64):
        limits, bits = np.iinfo(dtype), np.dtype(dtype).itemsize * 8
        a, b = (generator.integers(limits.min, limits.max, 100, dtype, endpoint=True) for _ in range(2))
        mask = (1 << bits) - 1
        expected = [((int(p) & mask) * (int(q) & mask)) >> bits for p, q in zip(a, b, strict=True)]
        assert [int(value) & mask for value in numerics.high_product(a, b)] == expected
