"""Arguments of the operators, and the accuracy rule applied to a backend's results on them."""

import contextlib
import math

import torch
from fusedmdn.ops import reference

from ..accuracy import assert_accurate
from .test_mdn_nll import rows


def double(value):
    if isinstance(value, (list, tuple)):
        return [double(v) for v in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def poisoned():
    """Memory that torch hands out uninitialised holds NaN, so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check(module, names, operator, arguments_of, repeats=1, rounded=contextlib.nullcontext):
    """The accuracy rule for an operator of a backend; tiny sizes are repeated: the reference's error is luck there.

    The reference that the error is compared with runs inside `rounded()`.
    """
    results = {name: ([], [], []) for name in names}
    for _ in range(repeats):
        arguments = arguments_of()
        with poisoned():
            got = getattr(module, operator)(*arguments)
        with rounded():
            same = getattr(reference, operator)(*arguments)
        exact = getattr(reference, operator)(*double(arguments))
        for k, outputs in enumerate((got, same, exact)):
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for name, value in zip(names, outputs, strict=True):
                results[name][k].append(value.flatten())
    for name, values in results.items():
        assert_accurate(f"{operator} {name}", *map(torch.cat, values))


def repeats_for(*sizes):
    return max(1, 600 // max(1, math.prod(sizes)))


def lstm_arguments(T, B, H, dtype, peephole, ragged, clip, packed=False):
    lengths = torch.randint(0, T + 1, (B,)) if ragged or packed else None
    if packed:
        lengths = lengths.sort(descending=True).values
    xw = torch.randn(*((int(lengths.sum()),) if packed else (T, B)), 4 * H).to(dtype)
    weight = (torch.randn(4 * H, H) / math.sqrt(H)).to(dtype)
    p = torch.randn(3, H) if peephole else None
    return [xw, weight, torch.randn(B, H).to(dtype), torch.randn(B, H), p, lengths, clip, True]


def backward_arguments(forward):
    """Of lstm_backward, from what the reference's forward saves at the same dtype."""
    _, weight, _, c0, p, lengths, clip, _ = forward
    h, h_T, c_T, gates, cells = reference.lstm(*forward)
    grads = [torch.randn(v.shape).to(v.dtype) for v in (h, h_T.float(), c_T)]
    return [*grads, weight, c0, p, lengths, gates, cells, clip]


LSTM_OUTPUTS = ["h", "h_T", "c_T", "gates", "cells"]
LSTM_GRADIENTS = ["xw", "h0", "c0", "peephole"]


def mdn_arguments(T, B, M, P, pen, dtype, ragged, means, clip=None):
    raw = torch.randn(T, B, P + 6 * M).to(dtype)
    lengths = torch.randint(0, T + 1, (B,)) if ragged else None
    return [raw, rows(pen, T, B, dtype=torch.float32), lengths, pen, M, means, clip]
