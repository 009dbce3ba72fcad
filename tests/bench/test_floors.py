"""Floors from counts and rates, and one held against the clock."""

import time

import pytest
import torch
from fusedmdn.ops import least

from bench import floors, models
from fusedmdn import ops

FAST, SLOW = 1e15, 1e3  # rates that do not, or that do, decide


@pytest.fixture
def model():
    return models.build("B", 16)


def ceilings(products=FAST, bandwidth=FAST, cache=0, reads=None):
    return {
        "multiply_adds": {"float32": products, "bf16": 2 * products},
        "bandwidth": bandwidth,
        "cache": cache,
        "reads": reads or {},
    }


def test_training_is_bound_by_products_or_memory(model):
    count = least.least_training(floors.network_of(model), 60, 5)
    floor = floors.training(model, 60, "float32", ceilings(SLOW), 5)
    assert floor == {
        "time": count.multiply_adds / SLOW, "bound": "products",
        "multiply_adds": count.multiply_adds, "bytes": count.bytes,
    }  # fmt: skip
    assert floors.training(model, 60, "bf16", ceilings(SLOW), 5)["time"] == floor["time"] / 2
    memory = floors.training(model, 60, "float32", ceilings(bandwidth=SLOW), 5)
    assert (memory["time"], memory["bound"]) == (count.bytes / SLOW, "memory")
    autocast = floors.training(model, 60, "bf16", ceilings(bandwidth=SLOW), 5)
    assert autocast["bytes"] == count.bytes  # the weights are float32


def test_only_what_the_cache_cannot_hold_comes_from_memory(model):
    count = least.least_training(floors.network_of(model), 60, 5)
    for cache, wanted in ((count.bytes - 1, 1 / SLOW), (count.bytes, 0), (2 * count.bytes, 0), (None, 0)):
        floor = floors.training(model, 60, "float32", ceilings(bandwidth=SLOW, cache=cache), 5)
        assert floor["time"] == max(wanted, count.multiply_adds / FAST)


def test_a_step_of_sampling_reads_the_weights_on_the_cpu(model):
    size = floors.weight_bytes(model, "bf16")
    assert size == 2 * least.weights(floors.network_of(model))
    given = ceilings(reads={str(size): SLOW, "4": FAST})
    floor = floors.sampling(model, 1, 4, "bf16", given, "cpu")
    assert (floor["time"], floor["bound"]) == (size / SLOW * 3 / 4, "weights")  # the first step has zeros to multiply
    assert floor["bytes"] == size + 3 * 4
    on_gpu = floors.sampling(model, 1, 4, "bf16", given, "cuda")
    assert on_gpu["bound"] != "weights"
    assert on_gpu["bytes"] == (size + 4 * 3 * 4) // 4
    assert floors.sampling(model, 1, 4, "float32", given, "cpu")["bound"] != "weights"  # that size was not measured


def test_a_step_of_sampling_multiplies(model):
    count = least.least_sampling(floors.network_of(model), 64, 4, 4)
    floor = floors.sampling(model, 64, 4, "float32", ceilings(SLOW), "cpu")
    assert (floor["time"], floor["bound"]) == (count.multiply_adds / SLOW / 4, "products")
    assert floor["multiply_adds"] == count.multiply_adds // 4
    memory = floors.sampling(model, 64, 4, "float32", ceilings(bandwidth=SLOW, cache=10), "cuda")
    assert (memory["time"], memory["bound"]) == ((count.bytes - 10) / SLOW / 4, "memory")


def test_a_dtype_whose_rate_is_missing_has_no_floor(model):
    assert floors.training(model, 60, "fp16", ceilings()) is None
    assert floors.sampling(model, 1, 4, "tf32", ceilings(), "cuda") is None


def test_loss():
    count = least.least_loss(50, 121, 3, 4)
    size = floors.loss_bytes(50, 121, "float32")
    assert size == count.read
    beyond = floors.loss(50, 121, "float32", ceilings(bandwidth=SLOW, cache=100))
    assert beyond == {"time": (count.bytes - 100) / SLOW, "bound": "memory", "multiply_adds": 0, "bytes": count.bytes}
    inside = floors.loss(50, 121, "float32", ceilings(cache=10**6, reads={str(size): SLOW}))
    assert inside["time"] == size / SLOW
    assert floors.loss(50, 121, "float32", ceilings(cache=10**6)) is None
    assert floors.loss(50, 121, "fp16", ceilings(bandwidth=SLOW))["bytes"] == least.least_loss(50, 121, 3, 2).bytes


def test_bad_input(model):
    with pytest.raises(ValueError, match="dtype must be one of float32, tf32, bf16, fp16, got 'float16'"):
        floors.training(model, 60, "float16", ceilings())
    with pytest.raises(ValueError, match="B must be >= 1, got 0"):
        floors.sampling(model, 0, 4, "float32", ceilings(), "cpu")
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        floors.sampling(model, 1, 0, "float32", ceilings(), "cpu")


@pytest.mark.parametrize(("batch", "bound"), [(1, "weights"), (48, "products")])
def test_our_sampler_does_not_fall_through_the_floor(batch, bound):
    """Of processor time, on one thread; and the floor is near enough to mean something."""
    model, steps = models.build("D"), 60
    size = floors.weight_bytes(model, "float32")
    given = ceilings(ops.cpu_peak(torch.float32), reads={str(size): ops.cpu_reading(size)})
    floor = floors.sampling(model, batch, steps, "float32", given, "cpu")
    assert floor["bound"] == bound
    times = []
    for _ in range(5):
        start = time.thread_time()
        model.generate(batch, steps, seed=0)
        times.append((time.thread_time() - start) / steps)
    assert floor["time"] < min(times) < 6 * floor["time"]
