"""Floors: the least time that a cell can take on the machine whose ceilings were measured, whoever does it.

A floor is the larger of what the products need, multiply-adds / rate, and what bytes need that have to move. In none of
them: exponentials and other elementwise work, states, gates and raw outputs that an implementation keeps, steps that
wait for one another, launches, calls, barriers. Those are why a contender lies above its floor; none may lie below.

Bytes count against the memory's bandwidth only as far as the last cache cannot hold them. A cell is repeated, so what
one call leaves in a cache of C bytes the next need not fetch, nor need that be written back: bytes - C go through the
memory. (On a GPU, whose L2 is emptied before every run, this floor is lower than it need be.) What every pass has to
read, wherever it lies, counts against the rate of reading just so many bytes again and again, where that was measured:
the weights at each step of sampling, raw outputs and targets of the loss.

"time", in seconds, "multiply_adds" and "bytes", all that come and go at the least, are of a whole call, for sampling of
a step. A floor is as true as its ceilings: rates that the best of many short windows reached, at another moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusedmdn.ops import cost, least

from fusedmdn import FusedLSTMMDN

SIZES = {"float32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # bytes of an element, by what the products are done in
WEIGHTS = 4  # of a weight in training, where all dtypes but float32 and tf32 are autocast
ROW = 3  # columns of a target

Ceilings = Mapping[str, Any]


def network_of(model: FusedLSTMMDN) -> cost.Network:
    """The model as it is counted."""
    L, each = model.num_layers, model.num_layers if model.skip else 1
    return cost.Network(L, model.hidden_size, model.head.out_features, model.input_size, each, each)


def weight_bytes(model: FusedLSTMMDN, dtype: str) -> int:
    """Bytes of weights that a step of sampling reads: of which `ceilings.measure` is to take the rate."""
    return least.weights(network_of(model)) * _size(dtype)


def loss_bytes(rows: int, columns: int, dtype: str) -> int:
    """Bytes that the loss reads, raw outputs and targets: another size for `ceilings.measure`."""
    return least.least_loss(rows, columns, ROW, _size(dtype)).read


def training(
    model: FusedLSTMMDN, rows: int, dtype: str, ceilings: Ceilings, sequences: int = 0
) -> dict[str, Any] | None:
    """A forward and a backward pass over so many rows that count; None where no rate of dtype was measured.

    `sequences` start from a zero state, so that their first step has no recurrent product.
    """
    rate = _rate(dtype, ceilings)
    if rate is None:
        return None
    count = least.least_training(network_of(model), rows, sequences, WEIGHTS)
    bounds = {"products": count.multiply_adds / rate, "memory": _beyond_cache(count.bytes, ceilings)}
    return _floor(bounds, count.multiply_adds, count.bytes)


def sampling(
    model: FusedLSTMMDN, B: int, steps: int, dtype: str, ceilings: Ceilings, device_type: str
) -> dict[str, Any] | None:
    """A step of a call that draws `steps` rows of B sequences from a zero state; None where dtype has no rate.

    On the CPU every step but the first reads all weights, "weights", at the rate of reading so many bytes again and
    again: weights read in another order every time might be found in an inner cache a little more often. On a GPU the
    weights count once a call: a persistent kernel keeps them on chip.

    Raises:
        ValueError: fewer than one sequence or step.
    """
    for name, value in (("B", B), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    rate = _rate(dtype, ceilings)
    if rate is None:
        return None
    count = least.least_sampling(network_of(model), B, steps, _size(dtype))
    bounds = {
        "products": count.multiply_adds / rate / steps,
        "memory": _beyond_cache(count.bytes, ceilings) / steps,
    }
    moved = count.bytes // steps
    if device_type == "cpu":
        bounds["weights"] = _again(count.weights, ceilings) * (steps - 1) / steps
        moved = count.weights + count.written // steps
    return _floor(bounds, count.multiply_adds // steps, moved)


def loss(rows: int, columns: int, dtype: str, ceilings: Ceilings) -> dict[str, Any] | None:
    """The loss and its gradient, raw outputs of `columns` in dtype; None where nothing bounds it.

    It has no matrix products, so no rate of multiply-adds is asked for: it is bound by memory, or by nothing that was
    measured, where all of it fits the cache and no rate of reading its inputs is known.
    """
    count = least.least_loss(rows, columns, ROW, _size(dtype))
    seconds = max(_beyond_cache(count.bytes, ceilings), _again(count.read, ceilings))
    return _floor({"memory": seconds}, 0, count.bytes) if seconds else None


def _size(dtype: str) -> int:
    if dtype not in SIZES:
        raise ValueError(f"dtype must be one of {', '.join(SIZES)}, got {dtype!r}")
    return SIZES[dtype]


def _rate(dtype: str, ceilings: Ceilings) -> float | None:
    _size(dtype)
    rate: float | None = ceilings.get("multiply_adds", {}).get(dtype)
    return rate


def _beyond_cache(moved: int, ceilings: Ceilings) -> float:
    """Seconds of what the last cache cannot hold; 0 where its size is not known, nor the bandwidth."""
    cache, bandwidth = ceilings.get("cache"), ceilings.get("bandwidth")
    return max(moved - cache, 0) / bandwidth if cache is not None and bandwidth else 0.0


def _again(size: int, ceilings: Ceilings) -> float:
    """Seconds of reading so many bytes as often as before; 0 where that was not measured."""
    rate = ceilings.get("reads", {}).get(str(size))
    return size / rate if rate else 0.0


def _floor(bounds: dict[str, float], multiply_adds: int, moved: int) -> dict[str, Any]:
    bound = max(bounds, key=bounds.__getitem__)
    return {"time": bounds[bound], "bound": bound, "multiply_adds": multiply_adds, "bytes": moved}
