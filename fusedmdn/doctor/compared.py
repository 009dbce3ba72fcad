"""Every operator beside the plain-PyTorch reference, on one device in one dtype: how far its outputs are from float64.

float64 runs on the CPU, whatever the device; what is allowed (`ops.accuracy`) is measured by the reference on the
device itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..ops import _backend, backend, forced, plan, reference, stream
from ..ops.accuracy import Deviation, deviation
from ..ops.launch import LaunchRefusedError
from .specimens import CALLS, SEED, Call, Inputs, Sizes

APART = 0.1  # rows farther than this from each other are another component's
FAMILY = {"lstm": "lstm", "lstm_backward": "lstm", "generate": "generate"}
FAMILY |= dict.fromkeys(("lstm_mdn_nll", "lstm_mdn_nll_backward"), "lstm_mdn_nll")
STREAM = "philox_fill"


def deviations(operator: str, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> dict[str, Deviation]:
    """The worst of every output of an operator.

    Without peepholes, skip connections and lengths, and with them all; by Triton's kernels the latter by every plan
    that fits, each of which is named with the output. Half precisions take only the latter there, since every variant
    is compiled for itself.

    Raises ValueError if an output has another shape or dtype than the reference's.
    """
    if operator == STREAM:
        return _stream(sizes)
    triton = _backend.in_use(operator, device.type, dtype) == "triton"
    plans: list[str | None] = [None]
    if triton and operator in FAMILY:
        plans += [name for name, family in forced.FAMILY.items() if family == FAMILY[operator]]
    found: dict[str, Deviation] = {}
    for full in (True,) if triton and dtype != torch.float32 else (False, True):
        inputs = Inputs(sizes, device, dtype, full)
        call = CALLS[operator](inputs)
        for name in plans if full and dtype == torch.float32 else [None]:
            try:
                with nullcontext() if name is None else plan(name):
                    got = list(_flat(getattr(torch.ops.fusedmdn, operator)(*call.arguments)))
            except (forced.PlanError, LaunchRefusedError):
                if name is None:
                    raise
                continue  # a call that is not forced takes another plan
            compare = _sampled if operator == "generate" else _one_by_one
            for output, value in compare(operator, call, got):
                label = output if name is None else f"{output} by the {name} plan"
                found[label] = max(found.get(label, value), value, key=lambda d: d.share)
    return found


def _flat(outputs: Any) -> Iterator[Tensor]:
    """The tensors of outputs that hold tensors and lists of them."""
    if isinstance(outputs, Tensor):
        yield outputs
        return
    for value in outputs:
        yield from _flat(value)


def _exactly(value: Any) -> Any:
    """Arguments in float64, on the CPU."""
    if isinstance(value, (list, tuple)):
        return [_exactly(v) for v in value]
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()


def _one_by_one(operator: str, call: Call, got: Iterable[Tensor]) -> Iterator[tuple[str, Deviation]]:
    run = getattr(reference, operator)
    same, exact = _flat(run(*call.arguments)), _flat(run(*_exactly(call.arguments)))
    for name, ours, theirs, truth in zip(call.outputs, got, same, exact, strict=True):
        if name in call.free and ours.shape == truth.shape:
            ours, theirs, truth = (torch.where(call.free[name].to(v.device), 0, v) for v in (ours, theirs, truth))
        yield name, _deviation(name, ours, theirs, truth)


def _deviation(name: str, ours: Tensor, theirs: Tensor, truth: Tensor) -> Deviation:
    try:
        return deviation(ours.cpu(), theirs.cpu(), truth)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _sampled(operator: str, call: Call, got: list[Tensor]) -> Iterator[tuple[str, Deviation]]:
    """Every step against the reference's after the same rows.

    Rounding may carry a uniform over the edge between two choices: such rows are counted, not compared. There may be
    one in fifty, one more, and twice the reference's own.
    """
    ours = dict(zip(call.outputs, (v.cpu() for v in got), strict=True))
    given = call.arguments, _exactly(call.arguments)
    with backend("reference"):  # of the random stream, too
        same, exact = (dict(zip(call.outputs, _followed(arguments, got[0]), strict=True)) for arguments in given)
    alike, theirs = (same_choice(v["points"], exact["points"]) for v in (ours, same))
    rows = int(exact["drawn"].sum())
    other = int((~alike).sum())
    yield "choices", Deviation(other, 1 + rows // 50 + 2 * int((~theirs).sum()), rows)
    keep = alike & theirs
    yield "points", _deviation("points", *(v["points"][keep] for v in (ours, same, exact)))
    for name in ("h", "c"):
        yield name, _deviation(name, ours[name], same[name], exact[name])
    for name in ("lengths", "row", "drawn", "done"):
        yield name, _equal(name, ours[name], exact[name].to(ours[name].dtype))


def _followed(arguments: Sequence[Any], points: Tensor) -> list[Tensor]:
    """Outputs of the reference, which in every step reads the row of `points` before it, and ends by it."""
    weights, h, c, row, drawn, done, seed, _, bias, temperature, prime, prime_lengths, *options = arguments
    pen, rows = options[1], []
    for following in points.to(row.device, row.dtype):
        state = h, c, row, drawn, done
        stepped = reference.generate(weights, *state, seed, 1, bias, temperature, prime, prime_lengths, *options)
        rows.append(stepped[0][0])
        row = torch.where(done[:, None], row, following)
        _, _, h, c, _, drawn, _ = stepped
        if pen == "categorical":
            done = done | (row[:, reference.END] > 0.5)
        prime = prime_lengths = None
    return [v.cpu() for v in (torch.stack(rows), drawn - done.long(), h, c, row, drawn, done)]


def same_choice(a: Tensor, b: Tensor) -> Tensor:
    """Rows (..., I) of the same pen and the same component."""
    return (a[..., 2:] == b[..., 2:]).all(-1) & ((a - b)[..., :2].abs().amax(-1) < APART)


def _equal(name: str, ours: Tensor, theirs: Tensor) -> Deviation:
    """Of what must be the same bit for bit."""
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        raise ValueError(f"{name}: {tuple(ours.shape)} {ours.dtype}, expected {tuple(theirs.shape)} {theirs.dtype}")
    if torch.equal(ours, theirs):
        return Deviation(0.0, 0.0, 0.0)
    a, b = ours.double(), theirs.double()
    return Deviation(float((a - b).abs().max()), 0.0, float(b.abs().max()))


def _stream(sizes: Sizes) -> dict[str, Deviation]:
    first = torch.arange(sizes.sequences) * 1000
    arguments = SEED, 1 << 40, sizes.sequences, first, 8 * sizes.steps
    uniforms, normals = (_backend.kernel(STREAM, "cpu")(*arguments, of_normals) for of_normals in (False, True))
    u, n = (stream.philox_fill(*arguments, of_normals) for of_normals in (False, True))
    exact = torch.stack(stream.box_muller(u[..., 2].double(), u[..., 3].double()), -1)
    return {"uniforms": _equal("uniforms", uniforms, u), "normals": _deviation("normals", normals, n, exact)}
