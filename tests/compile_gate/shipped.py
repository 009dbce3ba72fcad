"""Every kernel as the package launches it: the launches are recorded, not written down a second time.

For each target, size and dtype the operators run on CPU tensors with a recorder in the simulator's place, once for each
plan that the target is offered. What they hand to the launcher is what is compiled. Only weights are not laid out.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import fusedmdn.ops as ops
import torch
from fusedmdn.ops import launch, plans, sampling_plans, training_plans, triton
from fusedmdn.ops.triton import network, sampler

from .targets import TARGETS
from .variants import Variant

SIZES = (128, 256, 400, 512, 900, 1024)
BARE = 400  # the size at which everything is also compiled without what is optional
MIXTURES = (2, 20, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRECISIONS = {"bf16": ("ieee",), "fp16": ("ieee",), "fp32": ("tf32", "tf32x3")}
# one GPU of each target: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090, MI300X
PROCESSORS = {"sm_80": 108, "sm_86": 82, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170, "gfx942": 304}
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Recorder:
    """Takes the simulator's place: remembers launches by a name, runs nothing."""

    def __init__(self, device: plans.Device) -> None:
        self.device = device
        self.name = ""
        self.variants: dict[str, Variant] = {}

    def __call__(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: launch.Options) -> None:
        module = kernel.fn.__module__
        constants = {p.name for p in kernel.params if p.is_constexpr}
        constants |= {name for name, value in arguments.items() if value is None}
        name = f"{module.rpartition('.')[2]}.{kernel.fn.__name__} {self.name}"
        variant = Variant(
            name=name,
            kernel=f"{module}:{kernel.fn.__name__}",
            signature={k: _type(v) for k, v in arguments.items() if k not in constants},
            constexprs={k: v for k, v in arguments.items() if k in constants},
            options=options,
            wants_mma="PRECISION" in constants,
            unaligned=tuple(p.name for p in kernel.params if p.do_not_specialize_on_alignment),
        )
        if all(replace(known, name=name) != variant for known in self.variants.values()):
            self.variants[name] = variant


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def shipped() -> list[Variant]:
    """All variants, each with the targets that it is offered on."""
    offered: dict[str, list[str]] = {}
    found: dict[str, Variant] = {}
    for target in TARGETS:
        for name, variant in _of_target(target).items():
            assert found.setdefault(name, variant) == variant, f"{name} differs between targets"
            offered.setdefault(name, []).append(target)
    return [replace(found[name], targets=tuple(targets)) for name, targets in offered.items()]


def _of_target(target: str) -> dict[str, Variant]:
    recorder = Recorder(plans.Device(target, PROCESSORS[target], plans.SHARED.get(target, 0) * 1024))
    with mock.patch.object(launch, "simulator", recorder), mock.patch.object(sampler, "laid_out", _hollow):
        for label, dtype in DTYPES.items():
            for H in SIZES:
                _record_recurrence(recorder, label, dtype, H)
                _record_sampling(recorder, label, dtype, H)
                _record_training(recorder, label, dtype, H)
            for M in MIXTURES:
                _record_loss(recorder, label, dtype, M)
    return recorder.variants


def _record_recurrence(recorder: Recorder, label: str, dtype: torch.dtype, H: int) -> None:
    """With everything they can have, peepholes, lengths, all that is saved; and with none of it."""
    rows, state = torch.zeros(1, 1, 4 * H, dtype=dtype), torch.zeros(1, H)
    weight, h, cells = torch.zeros(4 * H, H, dtype=dtype), torch.zeros(1, 1, H, dtype=dtype), torch.zeros(1, 1, H)
    for bare in (False, True):
        if bare and label == "fp16" and H != BARE:  # it compiles as bf16 does
            continue
        peephole = None if bare else torch.zeros(3, H)
        lengths = None if bare else torch.ones(1, dtype=torch.int64)
        shape = f"{label} H{H}" + " bare" * bare
        forward = rows, weight, state.to(dtype), state, peephole, lengths, None, not bare
        backward = h, state, state, weight, state, peephole, lengths, rows, cells, 1.0
        for direction, run, arguments in (
            ("forward", triton.lstm, forward),
            ("backward", triton.lstm_backward, backward),
        ):
            for plan, name in _plans(direction, dtype, H, recorder.device):
                if bare and isinstance(plan, plans.Stepwise) and H != BARE:
                    continue
                recorder.name = f"{shape} {name}"
                with ops.plan(plan):
                    run(*arguments)
        if not bare or H == BARE:
            recorder.name = shape
            triton.lstm_gates(rows, weight, state, state, peephole, lengths, h, cells)


def _plans(direction: str, dtype: torch.dtype, H: int, device: plans.Device) -> Iterator[tuple[plans.Plan, str]]:
    for precision in ("tf32", "tf32x3") if dtype == torch.float32 else ("ieee",):
        for plan in plans.persistent_plans(direction, H, 1, dtype.itemsize, precision, device):
            ahead = "all" if plan.ahead == plans.ALL else plan.ahead
            yield plan, f"{precision} {plan.rows}x{plan.units} width {plan.width} ahead {ahead}"
    yield plans.stepwise_plan(H), "stepwise"


def _record_loss(recorder: Recorder, label: str, dtype: torch.dtype, M: int) -> None:
    for pen, P in (("bernoulli", 1), ("categorical", 3)):
        raw, target, lengths = torch.zeros(1, 1, P + 6 * M, dtype=dtype), torch.zeros(1, 1, P + 2), torch.ones(1).long()
        for bare in (False, True) if M == 20 else (False,):
            recorder.name = f"{label} M{M} {pen}" + " bare" * bare
            options = None if bare else lengths, pen, M, "sigmoid" if bare else "linear", None
            triton.mdn_nll(raw, target, *options)
            triton.mdn_nll_backward(torch.zeros(1, 1), raw, target, *options, not bare)


def _record_sampling(recorder: Recorder, label: str, dtype: torch.dtype, H: int) -> None:
    """All sizes with 20 components, a Bernoulli pen, and everything there can be; one size in other ways too."""
    if label == "fp16" and H != BARE:  # it compiles as bf16 does
        return
    ways = [(20, "bernoulli", False, (1, 2, 3) if H == BARE else (1, 3))]
    if H == BARE and label != "fp16":
        ways += [(20, "bernoulli", True, (3,)), (64, "categorical", False, (3,))]
        ways += [(M, "categorical", False, ()) for M in (2, 20, 128)]
    for M, pen, bare, layers in ways:
        for plan, L, name in _sampling_plans(recorder.device, dtype, H, M, pen, layers):
            recorder.name = f"{label} H{H} M{M} {pen} {name}" + " bare" * bare
            with ops.plan(plan):
                triton.generate(*_sampling_arguments(dtype, L, H, M, pen, bare))


def _sampling_plans(
    device: plans.Device, dtype: torch.dtype, H: int, M: int, pen: str, layers: tuple[int, ...]
) -> Iterator[tuple[sampling_plans.Plan, int, str]]:
    """Each plan with a number of layers, which only matters to the resident one."""
    D, size = (3 if pen == "categorical" else 1) + 6 * M, dtype.itemsize
    for precision in sampling_plans.precisions(dtype, device):
        for L in layers:
            plan = sampling_plans.resident_plan(L, H, D, 1, size, precision, device)
            if plan:
                ahead = "all" if plan.ahead == plans.ALL else plan.ahead
                yield plan, L, f"L{L} {precision} {plan.rows}x{plan.units} width {plan.width} ahead {ahead}"
        for plan in sampling_plans.streaming_plans(H, 1, precision, device):
            yield plan, 2, f"{precision} {plan.rows}x{plan.units} stages {plan.stages}"


def _record_training(recorder: Recorder, label: str, dtype: torch.dtype, H: int) -> None:
    """The fused plans, as `_record_sampling`; one layer and more are different kernels, the head reads all or one."""
    if label == "fp16" and H != BARE:  # it compiles as bf16 does
        return
    ways = [(20, "bernoulli", False, (1, 3))]
    if H == BARE and label != "fp16":
        ways += [(20, "bernoulli", True, (3,)), (64, "categorical", False, (2,))]
    for M, pen, bare, layers in ways:
        D = (3 if pen == "categorical" else 1) + 6 * M
        for direction, L, precision in itertools.product(("forward", "backward"), layers, PRECISIONS[label]):
            for plan in training_plans.fused_plans(direction, L, H, D, 1, dtype.itemsize, precision, recorder.device):
                ahead = "all" if plan.ahead == plans.ALL else plan.ahead
                tiles = f"L{L} {precision} {plan.rows}x{plan.units} width {plan.width} ahead {ahead}"
                recorder.name = f"{label} H{H} M{M} {pen} {tiles}" + " bare" * bare
                with ops.plan(plan):
                    _train(direction, dtype, L, H, M, pen, bare)


def _train(direction: str, dtype: torch.dtype, L: int, H: int, M: int, pen: str, bare: bool) -> None:
    """One direction of one step of one sequence."""
    weights, h, c, row, *_ = _sampling_arguments(dtype, L, H, M, pen, bare)
    lengths, means = None if bare else torch.ones(1, dtype=torch.int64), "sigmoid" if bare else "linear"
    x, h0, target, D = row[None].to(dtype), h.to(dtype), row[None], len(weights[-1])
    options = M, pen, means, not bare, not bare, 1.0, 1.0
    if direction == "forward":
        triton.lstm_mdn_nll(x, target, weights, h0, c, lengths, *options, not bare)
        return
    kept = h0[:, None], torch.zeros(L, 1, 1, 4 * H, dtype=dtype), c[:, None], torch.zeros(1, 1, D, dtype=dtype)
    grads = torch.zeros(1, 1), h, c
    triton.lstm_mdn_nll_backward(*grads, x, target, weights, h0, c, lengths, *kept, *options, False, not bare)


def _sampling_arguments(dtype: torch.dtype, L: int, H: int, M: int, pen: str, bare: bool) -> tuple[Any, ...]:
    I, P = (5, 3) if pen == "categorical" else (3, 1)
    skip = peephole = not bare
    weights: list[torch.Tensor] = []
    for n in range(L):
        below = I if n == 0 else H + I * skip
        shapes = [(4 * H, below), (4 * H, H), (4 * H,), (4 * H,), (3, H)]
        weights += [torch.empty(shape, dtype=dtype) for shape in shapes[: 5 if peephole else 4]]
    weights += [torch.empty(P + 6 * M, H * (L if skip else 1), dtype=dtype), torch.empty(P + 6 * M, dtype=dtype)]
    one, long = torch.ones(1), torch.ones(1, dtype=torch.int64)
    state = torch.zeros(L, 1, H), torch.zeros(L, 1, H), torch.zeros(1, I), long, torch.zeros(1, dtype=torch.bool)
    prime = (None, None) if bare else (torch.zeros(1, 1, I), long)
    means = "sigmoid" if bare else "linear"
    return weights, *state, torch.zeros(2, dtype=torch.int64), 1, one, one, *prime, M, pen, means, skip, peephole


def _hollow(
    weights: list[torch.Tensor], L: int, H: int, I: int, skip: bool, peephole: bool, plan: sampling_plans.Plan
) -> network.Network:
    """Takes the place of `network.laid_out`: the sizes and types, and no weights."""
    w, x = torch.empty(1, dtype=weights[0].dtype), torch.empty(1)
    sizes = network.padded(H, len(weights[-1]), plan)
    return network.Network(w, x, x if peephole else None, w, x, L, H, *sizes)
