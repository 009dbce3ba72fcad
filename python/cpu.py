"""The operators on the C++ kernels: arguments checked and laid out as kernels/cpu/face.h wants them.

float32 and bfloat16. Called through `torch.ops` too, so nothing here trusts its arguments: every tensor's device, dtype
and shape is known before a pointer is taken.
"""

import ctypes
import functools
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _cpu, composed, reference
from .checks import PEN_LOGITS, ROW, check_clip, check_lengths, check_options, check_weights, expect_shape, packed_steps
from .recycled import empty
from .stream import STEP_LIMIT

PACKED_NETWORKS = 4  # kept for the next call, the least recently used dropped first
ALONE = 4e6  # multiply-adds that one thread does before a second is up
LONG = 2e10  # multiply-adds of a call that one may want to interrupt


def _library() -> ctypes.CDLL:
    lib = _cpu.library()
    if lib is None:
        raise RuntimeError(str(_cpu.problem()))
    return lib


def _given(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    """The tensor, contiguous and in this dtype; raises ValueError for another device or shape."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected a CPU tensor, got {tuple(tensor.shape)} on {tensor.device}")
    expect_shape(name, tensor, *shape)
    return tensor.detach().to(dtype).contiguous()


def _rows(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> tuple[Tensor, Any]:
    """As `_given`, but only its last dimension contiguous; and its other two strides."""
    if tensor.device.type != "cpu" or tensor.dtype != dtype or tensor.stride(-1) != 1:
        tensor = _given(name, tensor, dtype, *shape)
    expect_shape(name, tensor, *shape)
    return tensor.detach(), (ctypes.c_int64 * 2)(*(0, *tensor.stride()[:-1])[-2:])


def _same_dtype(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype}, got {tensor.dtype}")
    return _given(name, tensor, dtype, *shape)


def _kernel_dtype(name: str, tensor: Tensor) -> torch.dtype:
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"{name}: the CPU kernels take float32 and bfloat16 on the CPU, "
            f"got {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        )
    return tensor.dtype


def _call(struct: type[ctypes.Structure], function: str, **fields: Any) -> None:
    """Run one of the face's functions; tensors are passed as their pointers."""
    lib = _library()
    plain = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in fields.items()}
    _succeed(getattr(lib, function)(struct(**plain)), function)


def _succeed(status: int, what: str) -> None:
    if status == _cpu.NO_MEMORY:
        raise MemoryError(f"{what}: not enough memory")
    if status:
        raise RuntimeError(f"{what} failed with status {status}")


def _threads(work: float, most: int) -> int:
    """Threads for so many multiply-adds that can be split so many ways."""
    return max(1, min(torch.get_num_threads(), most, int(work / ALONE)))


def lstm(
    xw: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    clip: float | None,
    save: bool,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """kernels/cpu/lstm.h; arguments and results as `reference.lstm`."""
    dtype, f32 = _kernel_dtype("xw", xw), torch.float32
    if xw.dim() not in (2, 3) or xw.shape[-1] % 4:
        raise ValueError(f"xw: expected shape (T, B, 4H), or (rows, 4H) packed, got {tuple(xw.shape)}")
    rows, H = xw.shape[:-1], xw.shape[-1] // 4
    common = _recurrence(xw, weight_hh, c0, peephole, lengths, H)
    B = common["B"]
    if out is None:
        saved = rows if save else (0, *rows[1:])
        out = empty(xw, *rows, H), empty(xw, *saved, 4 * H), empty(xw, *saved, H, dtype=f32)
    h, gates, cells = out
    h_T, c_T = xw.new_empty(B, H), xw.new_empty(B, H, dtype=f32)
    _call(
        _cpu.Lstm,
        "fusedmdn_run_lstm",
        **common,
        xw=_same_dtype("xw", xw, dtype, *rows, 4 * H),
        h0=_given("h0", h0, dtype, B, H),
        h=h,
        h_T=h_T,
        c_T=c_T,
        gates=gates if save else None,
        cells=cells if save else None,
    )
    return h, h_T, c_T, gates, cells


def lstm_backward(
    grad_h: Tensor,
    grad_h_T: Tensor,
    grad_c_T: Tensor,
    weight_hh: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kernels/cpu/lstm.h; arguments and results as `reference.lstm_backward`."""
    dtype, f32 = _kernel_dtype("gates", gates), torch.float32
    if cells.dim() not in (2, 3):
        raise ValueError(f"cells: expected shape (T, B, H), or (rows, H) packed, got {tuple(cells.shape)}")
    rows, H = cells.shape[:-1], cells.shape[-1]
    common = _recurrence(gates, weight_hh, c0, peephole, lengths, H)
    B = common["B"]
    dxw, dh0, dc0 = empty(gates, *rows, 4 * H), cells.new_empty(B, H), cells.new_empty(B, H)
    dpeephole = None if peephole is None else cells.new_empty(B, 3, H)
    grad_h, grad_h_strides = _rows("grad_h", grad_h, dtype, *rows, H)
    _call(
        _cpu.LstmBackward,
        "fusedmdn_run_lstm_backward",
        **common,
        clip=_bound(clip),
        grad_h=grad_h,
        grad_h_strides=grad_h_strides,
        grad_h_T=_given("grad_h_T", grad_h_T, f32, B, H),
        grad_c_T=_given("grad_c_T", grad_c_T, f32, B, H),
        gates=_same_dtype("gates", gates, dtype, *rows, 4 * H),
        cells=_same_dtype("cells", cells, f32, *rows, H),
        dxw=dxw,
        dh0=dh0,
        dc0=dc0,
        dpeephole=dpeephole,
    )
    return dxw, dh0, dc0, cells.new_empty(0) if dpeephole is None else dpeephole.sum(0)


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    bias: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    peephole: Tensor | None,
    lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.lstm_layer`, the recurrence in C++."""
    xw = torch.nn.functional.linear(x, weight_ih, bias)
    h, h_T, c_T, _, cells = lstm(xw, weight_hh, h0, c0, peephole, lengths, clip, True)
    return h, h_T, c_T, cells


lstm_gates = reference.lstm_gates  # one product and elementwise operations over all time: PyTorch's own


def _recurrence(
    rows: Tensor, weight_hh: Tensor, c0: Tensor, peephole: Tensor | None, lengths: Tensor | None, H: int
) -> dict[str, Any]:
    """What both directions are told, for rows (T, B, ·), or packed (rows, ·)."""
    dtype, f32 = rows.dtype, torch.float32
    if rows.dim() == 3:
        T, B = rows.shape[:2]
        lengths = _lengths(lengths, T, B)
    else:
        lengths, T = packed_steps(lengths, len(rows))
        B, lengths = len(lengths), lengths.contiguous()
    return {
        "T": T,
        "B": B,
        "H": H,
        "bf16": dtype == torch.bfloat16,
        "threads": _threads(4.0 * rows.shape[:-1].numel() * H * H, B),
        "packed": rows.dim() == 2,
        "weight_hh": _same_dtype("weight_hh", weight_hh, dtype, 4 * H, H),
        "c0": _given("c0", c0, f32, B, H),
        "peephole": None if peephole is None else _given("peephole", peephole, f32, 3, H),
        "lengths": lengths,
    }


def mdn_nll(
    raw: Tensor,
    target: Tensor,
    lengths: Tensor | None,
    pen: str,
    num_mixtures: int,
    means: str,
    clip: float | None,
) -> Tensor:
    """kernels/cpu/mdn.h; arguments and result as `reference.mdn_nll`."""
    common = _mdn_arguments(raw, target, lengths, pen, num_mixtures, means, clip)
    nll = raw.new_empty(raw.shape[:2], dtype=torch.float32)
    _call(_cpu.Mdn, "fusedmdn_run_mdn_nll", **common, nll=nll)
    return nll


def mdn_nll_backward(
    grad: Tensor,
    raw: Tensor,
    target: Tensor,
    lengths: Tensor | None,
    pen: str,
    num_mixtures: int,
    means: str,
    clip: float | None,
    want_target: bool,
) -> tuple[Tensor, Tensor]:
    """kernels/cpu/mdn.h; arguments and results as `reference.mdn_nll_backward`."""
    common = _mdn_arguments(raw, target, lengths, pen, num_mixtures, means, clip)
    draw = empty(raw, *raw.shape)
    dtarget = torch.empty(target.shape, dtype=torch.float32) if want_target else None
    grad = _given("grad", grad, torch.float32, *raw.shape[:2])
    _call(_cpu.Mdn, "fusedmdn_run_mdn_nll_backward", **common, grad=grad, draw=draw, dtarget=dtarget)
    return draw, target.new_empty(0) if dtarget is None else dtarget.to(target.dtype)


KERNELS = composed.Kernels(lstm, lstm_backward, mdn_nll, mdn_nll_backward)
lstm_mdn_nll = functools.partial(composed.forward, KERNELS)
lstm_mdn_nll_backward = functools.partial(composed.backward, KERNELS)


def _mdn_arguments(
    raw: Tensor, target: Tensor, lengths: Tensor | None, pen: str, M: int, means: str, clip: float | None
) -> dict[str, Any]:
    dtype = _kernel_dtype("raw", raw)
    check_options(pen, means, M)
    P = PEN_LOGITS[pen]
    if raw.dim() != 3:
        raise ValueError(f"raw: expected shape (T, B, {P + 6 * M}), got {tuple(raw.shape)}")
    T, B = raw.shape[:2]
    raw, raw_strides = _rows("raw", raw, dtype, T, B, P + 6 * M)
    return {
        "T": T,
        "B": B,
        "M": M,
        "bf16": dtype == torch.bfloat16,
        "categorical": pen == "categorical",
        "sigmoid_means": means == "sigmoid",
        "threads": _threads(100.0 * T * B * M, T * B),
        "clip": _bound(clip),
        "raw": raw,
        "raw_strides": raw_strides,
        "target": _given("target", target, torch.float32, T, B, ROW[pen]),
        "lengths": _lengths(lengths, T, B),
    }


def _bound(clip: float | None) -> float:
    check_clip(clip)
    return math.inf if clip is None else clip


def _lengths(lengths: Tensor | None, T: int, B: int, name: str = "lengths") -> Tensor | None:
    lengths = check_lengths(lengths, T, B, name)
    return None if lengths is None else _given(name, lengths, torch.int64, B)


class _Packed:
    """A network's weights as the kernels want them; freed with this object."""

    def __init__(self, lib: ctypes.CDLL, network: _cpu.Network) -> None:
        self.handle = lib.fusedmdn_pack(network)
        if not self.handle:
            raise MemoryError("generate: not enough memory for a packed copy of the weights")
        weakref.finalize(self, lib.fusedmdn_release, self.handle)


_packed: OrderedDict[tuple[Any, ...], _Packed] = OrderedDict()
_packed_lock = threading.Lock()


def _pack(weights: Sequence[Tensor], **options: int) -> _Packed:
    """The packed network of these weights: made once for each of their contents.

    Fused optimisers and writes through `.data` change values without a trace, so the contents are looked at.
    """
    lib, count, threads = _library(), len(weights), torch.get_num_threads()
    pointers = (ctypes.c_void_p * count)(*(w.data_ptr() for w in weights))
    sizes = (ctypes.c_int64 * count)(*(w.nbytes for w in weights))
    checksum = lib.fusedmdn_checksum(pointers, sizes, count, threads)
    key = (checksum, _cpu.isa(), *(tuple(w.shape) for w in weights), *options.items())
    with _packed_lock:
        if key in _packed:
            _packed.move_to_end(key)
            return _packed[key]
    made = _Packed(lib, _cpu.Network(**options, threads=threads, weights=ctypes.cast(pointers, ctypes.c_void_p)))
    with _packed_lock:
        _packed[key] = made
        while len(_packed) > PACKED_NETWORKS:
            _packed.popitem(last=False)
    return made


def generate(
    weights: list[Tensor],
    h: Tensor,
    c: Tensor,
    row: Tensor,
    drawn: Tensor,
    done: Tensor,
    seed: Tensor,
    steps: int,
    bias: Tensor,
    temperature: Tensor,
    prime: Tensor | None,
    prime_lengths: Tensor | None,
    num_mixtures: int,
    pen: str,
    means: str,
    skip: bool,
    peephole: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """kernels/cpu/sampler.h; arguments and results as `reference.generate`."""
    dtype, f32, i64 = _kernel_dtype("weights[0]", weights[0]), torch.float32, torch.int64
    check_options(pen, means, num_mixtures)
    check_weights(weights, h, ROW[pen], num_mixtures, pen, skip, peephole)
    (L, B, H), columns, plain = h.shape, ROW[pen], [w.detach().to(dtype).contiguous() for w in weights]
    drawn, done = _given("drawn", drawn, i64, B), _given("done", done, torch.bool, B)
    if B and (int(drawn.min()) < 0 or int(drawn.max()) > STEP_LIMIT - steps):
        raise ValueError(f"drawn: expected values in [0, 2^32 - {steps}], got {int(drawn.min())} to {int(drawn.max())}")
    key, first_index = _given("seed", seed, i64, 2).tolist()
    prime_steps = 0 if prime is None else prime.shape[1]
    inputs = {
        "h": _given("h", h, dtype, L, B, H),
        "c": _given("c", c, f32, L, B, H),
        "row": _given("row", row, f32, B, columns),
        "drawn": drawn,
        "done": done,
        "bias": _given("bias", bias, f32, B),
        "temperature": _given("temperature", temperature, f32, B),
        "prime": None if prime is None else _given("prime", prime, f32, B, prime_steps, columns),
        "prime_lengths": None if prime is None else _lengths(prime_lengths, prime_steps, B, "prime_lengths"),
    }
    packed = _pack(
        plain,
        L=L,
        H=H,
        M=num_mixtures,
        categorical=pen == "categorical",
        sigmoid_means=means == "sigmoid",
        skip=skip,
        peephole=peephole,
        bf16=dtype == torch.bfloat16,
    )
    outputs = {
        "points": torch.zeros(steps, B, columns),
        "lengths": torch.empty(B, dtype=i64),
        "h_out": h.new_empty(L, B, H, dtype=dtype),
        "c_out": h.new_empty(L, B, H, dtype=f32),
        "row_out": torch.empty(B, columns),
        "drawn_out": torch.empty(B, dtype=i64),
        "done_out": torch.empty(B, dtype=torch.bool),
    }
    work = float(steps + prime_steps) * B * sum(w.numel() for w in plain)
    stop, mask = ctypes.c_int32(0), (1 << 64) - 1
    call = _cpu.Generate(
        B=B,
        steps=steps,
        prime_steps=prime_steps,
        seed=key & mask,
        first_index=first_index & mask,
        threads=_threads(work, torch.get_num_threads()),
        stop=ctypes.addressof(stop),
        **{k: None if v is None else v.data_ptr() for k, v in (inputs | outputs).items()},
    )
    run = _library().fusedmdn_run_generate
    status = run(packed.handle, call) if work < LONG else _interruptible(lambda: run(packed.handle, call), stop)
    _succeed(status, "generate")
    points, lengths, new_h, new_c, new_row, new_drawn, new_done = outputs.values()
    return points, lengths, new_h, new_c, new_row, new_drawn, new_done


def _interruptible(run: Callable[[], int], stop: ctypes.c_int32) -> int:
    """Run in another thread, so that this one hears Ctrl-C and can ask the kernels to stop."""
    status: list[int] = []
    worker = threading.Thread(target=lambda: status.append(run()), name="fusedmdn-generate")
    worker.start()
    try:
        worker.join()
    except BaseException:
        stop.value = 1
        worker.join()
        raise
    return status[0]
