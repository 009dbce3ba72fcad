"""The arithmetic of a GPU on numpy arrays: what Triton's own interpreter leaves out or gets wrong.

bfloat16 has no numpy type. Triton's interpreter stores it as uint16, converts by truncation and multiplies the bit
patterns in `dot`. Here it is widened to float32 (exact), computed there, and rounded back to nearest even, which is the
correctly rounded result for every single operation because float32 has more than twice the mantissa.
"""

import numpy as np
import torch


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round to nearest even; every NaN becomes the canonical one, as in torch and in `cvt.rn.bf16.f32`."""
    values = np.asarray(values, dtype=np.float32, order="C")
    bits = values.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (even + np.uint32(0x7FFF))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def truncate_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round towards zero, which Triton offers as `fp_downcast_rounding="rtz"`."""
    values = np.asarray(values, dtype=np.float32, order="C")
    return np.where(np.isnan(values), np.uint16(0x7FC0), (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16))


def round_to_tf32(values: np.ndarray) -> np.ndarray:
    """`cvt.rna.tf32.f32`: 10 bits of mantissa, ties away from zero. Infinities and NaNs stay what they are."""
    values = np.asarray(values, dtype=np.float32, order="C")
    rounded = ((values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def truncate_to_tf32(values: np.ndarray) -> np.ndarray:
    """What the matrix units make of float32: they ignore the last 13 bits."""
    values = np.asarray(values, dtype=np.float32, order="C")
    return np.where(np.isnan(values), values, (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32))


def matmul(a: np.ndarray, b: np.ndarray, precision: str) -> np.ndarray:
    """The product of two float32 arrays as the tensor cores form it for `input_precision`.

    For "tf32" Triton (3.6 to 3.9, by its PTX) hands over float32 as it is; only for "tf32x3" it rounds.
    """
    if precision == "ieee":
        return np.matmul(a, b)
    if precision == "tf32":
        return np.matmul(truncate_to_tf32(a), truncate_to_tf32(b))
    if precision != "tf32x3":
        raise NotImplementedError(f"the simulator does not know input_precision={precision!r}")
    a_high, b_high = round_to_tf32(a), round_to_tf32(b)
    a_low, b_low = round_to_tf32(a - a_high), round_to_tf32(b - b_high)
    # The small products first, as Triton orders them. Where they are NaN (an infinity minus itself), it drops them.
    small = np.matmul(a_low, b_high) + np.matmul(a_high, b_low)
    return np.where(np.isnan(small), np.float32(0), small) + np.matmul(a_high, b_high)


def fused_multiply_add(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x * y + z rounded once, to the type of z (float16, float32; float64 rounds twice)."""
    if z.dtype == np.float64:
        return x * y + z
    product = np.multiply(x, y, dtype=np.float64)  # exact
    total = product + z
    # Rounding `total` a second time could go the wrong way when the first rounding produced a tie. Rounding to odd
    # first prevents that: an inexact sum whose last bit is even is moved to its odd neighbour on the exact sum's side.
    back = total - product
    error = (product - (total - back)) + (z - back)
    even = (np.asarray(total).view(np.int64) & 1) == 0
    inexact = np.isfinite(total) & (error != 0) & even
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(inexact, odd, total).astype(z.dtype)


def high_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of the product of two integers taken as unsigned ones (Philox needs it)."""
    bits = a.dtype.itemsize * 8
    unsigned = np.dtype(f"uint{bits}")
    a_bits, b_bits = np.ascontiguousarray(a).view(unsigned), np.ascontiguousarray(b).view(unsigned)
    if bits == 64:
        product = np.multiply(a_bits.astype(object), b_bits.astype(object))
        return np.right_shift(product, 64).astype(unsigned).view(a.dtype)
    wide = np.dtype(f"uint{2 * bits}")
    return (a_bits.astype(wide) * b_bits.astype(wide) >> wide.type(bits)).astype(unsigned).view(a.dtype)


def _through_torch(function):
    return lambda *values: function(*(torch.from_numpy(np.array(value)) for value in values)).numpy()


# libdevice's functions on float32 and float64. The approximate ones (`fast_*`) are computed exactly.
LIBDEVICE = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "copysign": np.copysign,
    "cos": np.cos,
    "cosh": np.cosh,
    "cospi": lambda x: np.cos(np.pi * np.asarray(x, np.float64)),
    "div_rn": np.divide,
    "erf": _through_torch(torch.erf),
    "erfc": _through_torch(torch.erfc),
    "erfinv": _through_torch(torch.erfinv),
    "exp": np.exp,
    "exp10": lambda x: np.power(x.dtype.type(10), x),
    "exp2": np.exp2,
    "expm1": np.expm1,
    "fast_cosf": np.cos,
    "fast_dividef": np.divide,
    "fast_exp10f": lambda x: np.power(x.dtype.type(10), x),
    "fast_expf": np.exp,
    "fast_log10f": np.log10,
    "fast_log2f": np.log2,
    "fast_logf": np.log,
    "fast_powf": np.power,
    "fast_sinf": np.sin,
    "fast_tanf": np.tan,
    "fast_tanhf": np.tanh,
    "floor": np.floor,
    "fma": fused_multiply_add,
    "fmod": np.fmod,
    "hypot": np.hypot,
    "lgamma": _through_torch(torch.lgamma),
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "pow": np.power,
    "rcp_rn": lambda x: 1 / x,
    "rint": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rsqrt_rn": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "sinh": np.sinh,
    "sinpi": lambda x: np.sin(np.pi * np.asarray(x, np.float64)),
    "sqrt": np.sqrt,
    "sqrt_rn": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
}
