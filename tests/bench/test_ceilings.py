"""Ceilings: the best of what was measured, caches defeated, memory that does not suffice, a GPU's settings."""

import contextlib
import json
import time
import types

import pytest
import torch
from fusedmdn.ops import peak

from bench import ceilings
from fusedmdn import ops

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Sizes and windows that take no time."""
    for name, value in {"LARGE": 256, "WINDOWS": 2, "BUFFER": 1 << 22, "LEAST_BUFFER": 1 << 20}.items():
        monkeypatch.setattr(ceilings, name, value)
    monkeypatch.setattr(ceilings, "last_cache", lambda: 1 << 21)
    monkeypatch.setattr(peak, "WINDOW", 1e-3)


def test_a_run_has_all_rates_and_what_measured_them(small):
    said, before = [], torch.get_num_threads()
    found = json.loads(json.dumps(ceilings.measure(CPU, 1, [20_000, 50_002], said.append)))
    assert found.keys() == {"multiply_adds", "bandwidth", "cache", "reads", "by"}
    rates = found["multiply_adds"]
    assert rates.keys() == {"float32", "bf16"}
    assert rates["bf16"] >= rates["float32"] > 1e9
    assert found["bandwidth"] > 1e8
    assert found["cache"] == 1 << 21
    assert found["reads"].keys() == {"20000", "50002"}
    assert min(found["reads"].values()) > 1e9
    assert found["by"].keys() == {"float32", "bf16", "bandwidth", "cache", "reads 20000", "reads 50002"}
    assert found["by"]["bandwidth"].endswith(f"of {4 << 21} bytes")  # four caches: more than the usual buffer
    assert said[0] == "ceilings, products in float32"
    assert said[-1] == "ceilings, reading 50002 bytes"
    assert torch.get_num_threads() == before


def test_threads_are_those_asked_for(small, monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(ceilings, "_cpu_products", lambda name, threads: seen.append(threads) or {"": 1.0})
    monkeypatch.setattr(ceilings, "readers", lambda size, threads: seen.append(torch.get_num_threads()) or {"": 1.0})
    ceilings.measure(CPU, 2, [64])
    assert seen == [2] * 4
    assert torch.get_num_threads() == before


def test_every_way_is_tried_and_the_fastest_counts(small, monkeypatch):
    found = ceilings.readers(40_000, 1)
    assert {"torch.sum", "numpy.dot"} < found.keys()
    assert len(found) == 3  # and our own
    assert ceilings.fastest({"a": 1.0, "b": 3.0, "c": 2.0}) == (3.0, "b")
    products = ceilings._cpu_products("float32", 1)
    assert list(products) == ["torch.mm of 256x256 matrices", f"multiply-adds in registers, {ops.cpu_isa()}"]
    monkeypatch.setattr(ops, "cpu_isa", lambda: None)
    assert len(ceilings.readers(40_000, 1)) == 2
    assert list(ceilings._cpu_products("float32", 1)) == ["torch.mm of 256x256 matrices"]


def test_matrices_grow_until_a_product_is_long(small, monkeypatch):
    monkeypatch.setattr(ceilings, "LARGE", 2048)
    monkeypatch.setattr(ceilings, "_mm_rate", lambda n, dtype, threads: 1e11 if n < 1024 else 2e10)
    monkeypatch.setattr(ops, "cpu_peak", lambda dtype, threads: None)
    sizes = [f"torch.mm of {n}x{n} matrices" for n in (256, 512, 1024)]
    assert list(ceilings._cpu_products("bf16", 1)) == sizes


def test_a_rate_is_work_by_time():
    def run():
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass

    assert 0.9 * 5000 / 0.002 < ceilings._again(run, 5000, 1, 2) <= 5000 / 0.002


def test_wider_products_do_for_narrower_ones():
    found = ceilings.widened(
        {"float32": {"mm": 10.0}, "tf32": {"mm": 90.0}, "bf16": {"mm": 5.0}, "fp16": {"mm": 200.0}}
    )
    best = {dtype: ceilings.fastest(rates) for dtype, rates in found.items()}
    assert best == {
        "float32": (30.0, "three products for one, mm"),
        "tf32": (90.0, "mm"),
        "bf16": (90.0, "in tf32, mm"),
        "fp16": (200.0, "mm"),
    }
    assert ceilings.widened({"float32": {"mm": 10.0}, "tf32": {"mm": 12.0}})["float32"]["mm"] == 10.0
    on_cpu = ceilings.widened({"float32": {"mm": 10.0}, "bf16": {"mm": 2.0}})
    assert ceilings.fastest(on_cpu["bf16"]) == (10.0, "in float32, mm")


def test_a_smaller_buffer_where_memory_does_not_suffice(small, monkeypatch):
    tried = []

    def readers(size, threads):
        tried.append(size)
        if size > limit:
            raise MemoryError
        return {"torch.sum": float(size)}

    monkeypatch.setattr(ceilings, "readers", readers)
    monkeypatch.setattr(ceilings, "_writers", lambda size, threads: {})
    limit = 1 << 21
    note = f"torch.sum of {1 << 21} bytes, a smaller one than meant: not enough memory"
    assert ceilings._cpu_bandwidth(1, 0) == (1 << 21, note)
    assert tried == [1 << 22, 1 << 21]
    assert ceilings._reading(1 << 22, 1) == (1 << 21, f"torch.sum of {1 << 21} bytes only: not enough memory")
    limit, tried[:] = 1 << 30, []
    monkeypatch.setattr(ceilings, "free_memory", lambda: 4 << 20)
    assert ceilings._cpu_bandwidth(1, 0)[0] == 1 << 20
    assert tried == [1 << 20]
    assert ceilings._reading(64, 1) == (64, "torch.sum")
    limit = 0
    for measure in (lambda: ceilings._cpu_bandwidth(1, 0), lambda: ceilings._reading(1 << 22, 1)):
        with pytest.raises(MemoryError):
            measure()


def test_a_smaller_size_where_a_gpus_memory_does_not_suffice():
    def found(size):
        if size > 1000:
            raise torch.OutOfMemoryError
        return {"mm": float(size)}

    assert ceilings._smaller(4096, 512, found) == {"mm": 512.0}
    with pytest.raises(torch.OutOfMemoryError):
        ceilings._smaller(4096, 1024, found)


def test_the_last_cache_is_all_of_them_together(tmp_path):
    def add(cpu, index, kind, level, size, shared):
        where = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        where.mkdir(parents=True)
        for name, value in {"type": kind, "level": level, "size": size, "shared_cpu_list": shared}.items():
            (where / name).write_text(f"{value}\n")

    assert ceilings.last_cache(tmp_path) is None
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        add(cpu, 0, "Data", 1, "32K", cpu)
        add(cpu, 1, "Instruction", 4, "64K", cpu)  # an odd one, which must not be taken for the last
        add(cpu, 2, "Unified", 3, "32768K", shared)
    assert ceilings.last_cache(tmp_path) == 2 * 32768 * 1024


def test_free_memory_is_some_or_not_told():
    free = ceilings.free_memory()
    assert free is None or 1 << 20 < free < 1 << 50


def test_a_gpus_products_run_under_their_own_setting(small, monkeypatch):
    """On CPU tensors, the clock replaced: three TF32 products beat the one in float32."""
    matmul, under = torch.backends.cuda.matmul, []

    def shortest(run):
        run()
        under.append(matmul.fp32_precision)
        return 0.01 if matmul.fp32_precision == "ieee" and len(under) <= 4 else 0.001

    monkeypatch.setattr(ceilings, "_shortest", shortest)
    monkeypatch.setattr(ceilings, "GPU_MATRIX", 64)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 26, 1 << 30))
    properties = types.SimpleNamespace(L2_cache_size=1 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    before = matmul.fp32_precision
    found = json.loads(json.dumps(ceilings._of_gpu(CPU, lambda line: None)))
    assert under[:4] == ["ieee", "tf32", "ieee", "ieee"]
    assert matmul.fp32_precision == before
    tf32 = 64**3 / 0.001
    assert found["multiply_adds"] == {"float32": tf32 / 3, "tf32": tf32, "bf16": tf32, "fp16": tf32}
    assert found["by"]["float32"] == "three products for one, torch.mm of 64x64 matrices"
    assert found["cache"] == 1 << 20
    assert found["reads"] == {}
    size = 1 << 24  # a quarter of the free memory is as much; half of it is read and half written
    assert found["bandwidth"] == size / 0.001
    assert found["by"]["bandwidth"] == f"copying half of {size} bytes"


@pytest.mark.parametrize(
    ("device", "threads", "sizes", "message"),
    [
        ("cpu", 0, [], "threads must be >= 1, got 0"),
        ("cpu", 1, [64, 3], "read_sizes must be >= 4 bytes, got 3"),
        ("meta", 1, [], "device must be cpu or cuda, got meta"),
    ],
)
def test_bad_input(device, threads, sizes, message):
    with pytest.raises(ValueError, match=message):
        ceilings.measure(torch.device(device), threads, sizes)
