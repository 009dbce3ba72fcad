"""Which plan of the recurrence is fastest on this GPU: measured, and kept where `ops.tuned` reads it.

A plan counts only if its results are right and the device takes its launch. What is timed is the operator as it is
called in training (forward keeps what backward needs), launches from Python included; no lengths, no peepholes.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import files
from .ops import forced, launch, plans, reference, tuned
from .ops import triton as kernels

DIRECTIONS = tuned.KNOWN["direction"]
CHECKED_STEPS = 4
WARM_UP = 3  # runs of every plan
ROUNDINGS = 4  # a result may be off beyond twice the reference's own error
KEY = ("direction", "H", "precision", "B")

Timer = Callable[[Callable[[], object]], float]
Entry = dict[str, Any]


class Precision(NamedTuple):
    """Its name in the file, the tensors' dtype, and whether torch's setting allows tf32 in their products."""

    stored: str
    dtype: torch.dtype
    tf32: bool

    @property
    def rounding(self) -> float:
        """Relative error of a rounded operand."""
        return 2.0**-11 if self.tf32 else torch.finfo(self.dtype).eps / 2


PRECISIONS = {
    "bf16": Precision("bfloat16", torch.bfloat16, False),
    "fp16": Precision("float16", torch.float16, False),
    "tf32": Precision("tf32", torch.float32, True),
    "float32": Precision("tf32x3", torch.float32, False),
}


class TuneError(RuntimeError):
    """Nothing can be measured here."""


class Size(NamedTuple):
    """What one plan is chosen for: "forward" or "backward", H hidden units, a name of PRECISIONS, B sequences."""

    direction: str
    H: int
    precision: str
    B: int

    def __str__(self) -> str:
        return f"{self.direction}, H={self.H}, {self.precision}, B={self.B}"


class Result(NamedTuple):
    """Of a size: median seconds a step of every plan that counts, why others do not, the choice without measuring."""

    size: Size
    static: plans.Plan
    medians: dict[plans.Plan, float]
    left_out: dict[plans.Plan, str]

    @property
    def best(self) -> plans.Plan:
        """The fastest plan; raises ValueError if none counts."""
        return min(self.medians, key=self.medians.__getitem__)


def sizes(hidden: Iterable[int], batch: Iterable[int], precisions: Iterable[str]) -> list[Size]:
    """Every combination once.

    Raises ValueError for a precision that is not in PRECISIONS.
    """
    wrong = [name for name in precisions if name not in PRECISIONS]
    if wrong:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {wrong[0]!r}")
    every = product(hidden, precisions, DIRECTIONS, batch)
    return list(dict.fromkeys(Size(direction, H, precision, B) for H, precision, direction, B in every))


def title(plan: plans.Plan) -> str:
    """A plan in words: its name, rows and units."""
    name, rows, units = plans.identity(plan)
    return f"{name} {rows}x{units}" if rows else name


def candidates(size: Size, device: plans.Device) -> list[plans.Plan]:
    """Every plan that fits the device."""
    _, dtype, tf32 = PRECISIONS[size.precision]
    precision = plans.precision_of(dtype, tf32)
    fitting = plans.persistent_plans(size.direction, size.H, size.B, dtype.itemsize, precision, device)
    return [*fitting, plans.stepwise_plan(size.H)]


def static_choice(size: Size, device: plans.Device) -> plans.Plan:
    """The plan that runs where nothing was measured."""
    _, dtype, tf32 = PRECISIONS[size.precision]
    return plans.choose(size.direction, size.H, size.B, dtype, device, tf32=tf32)


def gpu_name(device: torch.device) -> str:
    """The name of the GPU.

    Raises TuneError if the device is none, or Triton is missing or too old.
    """
    if device.type != "cuda":
        raise TuneError(f"plans are measured on a GPU, not on {str(device)!r}; --device is cuda, or cuda:1, …")
    problem = launch.problem()
    if problem:
        raise TuneError(problem)
    return torch.cuda.get_device_name(device)


def cuda_timer(device: torch.device) -> Timer:
    """Seconds from the start of a call to the end of its last kernel, by CUDA events."""

    def seconds(run: Callable[[], object]) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000

    return seconds


def tune(
    wanted: Iterable[Size],
    device: torch.device,
    name: str,
    path: Path,
    *,
    steps: int = 100,
    rounds: int = 20,
    timer: Timer | None = None,
) -> Iterator[Result]:
    """Measure size after size on `device`, called `name`; each is in the file at `path` when its result comes out.

    What the file knew of other sizes is kept. A size of which no plan counts is not written.

    Raises:
        PlansError: the file is damaged or another device's (before anything is measured).
        TuneError: the device failed.
        OSError: the file cannot be written.
    """
    read(path, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for size in wanted:
        result = measure(size, device, steps=steps, rounds=rounds, timer=timer)
        if result.medians:
            store(path, name, entry(result, steps, rounds))
        yield result


def measure(
    size: Size, device: torch.device, *, steps: int = 100, rounds: int = 20, timer: Timer | None = None
) -> Result:
    """Check every plan of a size, then time those that are right, one after another, `rounds` times.

    A run has `steps` steps; `timer` gives its seconds (default: CUDA events).

    Raises:
        TuneError: a plan left the device unusable.
    """
    timer = timer or cuda_timer(device)
    properties = launch.device_of(torch.empty(0, device=device))
    result = Result(size, static_choice(size, properties), {}, {})
    every = candidates(size, properties)
    with _float32_products(PRECISIONS[size.precision].tf32):
        try:
            check = _check_of(size, min(steps, CHECKED_STEPS), device)
            run = partial(_operator(kernels, size.direction), *_arguments(size, steps, device))
        except torch.OutOfMemoryError as error:
            result.left_out.update(dict.fromkeys(every, _reason(error)))
            return result
        right = []
        for plan in every:
            try:
                with forced.plan(plan):
                    check()
                    for _ in range(WARM_UP):
                        timer(run)
                right.append(plan)
            except Exception as error:
                result.left_out[plan] = _reason(error)
                if not _usable(device):
                    raise TuneError(f"{size}: the device failed in plan {title(plan)}: {_reason(error)}") from error
        seconds: dict[plans.Plan, list[float]] = {plan: [] for plan in right}
        for k in range(rounds * len(right)):
            turn, place = divmod(k, len(right))
            plan = right[(turn + place) % len(right)]  # every plan follows every other
            with forced.plan(plan):
                seconds[plan].append(timer(run))
    result.medians.update({plan: median(times) / steps for plan, times in seconds.items()})
    return result


@contextlib.contextmanager
def _float32_products(tf32: bool) -> Iterator[None]:
    """Inside, torch's setting of float32 matrix products is this."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _reason(error: Exception) -> str:
    plain = isinstance(error, (ArithmeticError, launch.LaunchRefusedError))
    return str(error) if plain else f"{type(error).__name__}: {error}"


def _usable(device: torch.device) -> bool:
    """Whether the device still computes: after a fault in a kernel, no call of the process succeeds."""
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except RuntimeError:
        return False


def _operator(backend: ModuleType, direction: str) -> Callable[..., tuple[Tensor, ...]]:
    return backend.lstm if direction == "forward" else backend.lstm_backward


def _arguments(size: Size, T: int, device: torch.device) -> list[Any]:
    """Of the operator, T steps, always the same."""
    generator = torch.Generator(device).manual_seed(0)
    H, B, dtype = size.H, size.B, PRECISIONS[size.precision].dtype

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    weight, c0 = (normal(4 * H, H) / math.sqrt(H)).to(dtype), normal(B, H)
    forward: list[Any] = [normal(T, B, 4 * H).to(dtype), weight, normal(B, H).to(dtype), c0, None, None, None, True]
    if size.direction == "forward":
        return forward
    gates, cells = reference.lstm(*forward)[3:]
    return [normal(T, B, H).to(dtype), normal(B, H), normal(B, H), weight, c0, None, None, gates, cells, None]


def _check_of(size: Size, T: int, device: torch.device) -> Callable[[], None]:
    """A check of the plan in force, which raises ArithmeticError if it is wrong.

    Right: no further from float64 than twice the reference in the same dtype, and a few roundings.
    """
    arguments = _arguments(size, T, device)
    exactly = [v.double() if isinstance(v, Tensor) else v for v in arguments]
    judge = _operator(reference, size.direction)
    same, exact = judge(*arguments), judge(*exactly)
    slack = ROUNDINGS * PRECISIONS[size.precision].rounding + 64 * 2.0**-24

    def check() -> None:
        for got, rounded, right in zip(_operator(kernels, size.direction)(*arguments), same, exact, strict=True):
            if right.numel():
                bound = float(2 * (rounded - right).abs().max() + slack * right.abs().max())
                error = float((got - right).abs().max())
                if not error <= bound:
                    raise ArithmeticError(f"wrong: {error:.3g} off the reference in float64, {bound:.3g} at most")

    return check


def entry(result: Result, steps: int, rounds: int) -> Entry:
    """What the file says of a size: the fastest plan, and the median microseconds a step of every plan that counts."""
    size = result.size
    name, rows, units = plans.identity(result.best)
    return {
        "direction": size.direction,
        "H": size.H,
        "precision": PRECISIONS[size.precision].stored,
        "B": size.B,
        "plan": name,
        "rows": rows,
        "units": units,
        "microseconds": {title(plan): round(1e6 * seconds, 3) for plan, seconds in result.medians.items()},
        "left_out": {title(plan): reason for plan, reason in result.left_out.items()},
        "steps": steps,
        "rounds": rounds,
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def store(path: Path, name: str, new: Entry) -> None:
    """Put a size into the file, in place of what was measured of it before; this process uses it at once.

    Raises PlansError, as `read`, and OSError.
    """
    import triton

    others = [old for old in read(path, name) if any(old[field] != new[field] for field in KEY)]
    table = {"device": name, "triton": triton.__version__, "plans": [*others, new]}
    files.write(path, json.dumps(table, indent=1) + "\n")
    tuned.load.cache_clear()


def read(path: Path, name: str) -> list[Entry]:
    """What the file says, nothing if there is none.

    Raises PlansError if it is damaged, or of another device than `name` or another version of Triton.
    """
    import triton

    try:
        table = tuned.entries(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise tuned.PlansError(f"{path} cannot be read: {error}") from error
    except tuned.PlansError as error:
        raise tuned.PlansError(f"{error}; delete it to measure anew") from error
    found, version = table.get("device"), table.get("triton")
    if not isinstance(found, str) or not isinstance(version, str):
        raise tuned.PlansError(f"{path} is damaged (it names no device and Triton); delete it to measure anew")
    if (found, version) != (name, triton.__version__):
        raise tuned.PlansError(
            f"{path} was measured on {found} with Triton {version}, this is {name} with Triton {triton.__version__}; "
            "delete it to measure anew"
        )
    entries: list[Entry] = table["plans"]
    return entries
