"""Results as a run writes them, made up: figures that are easy to calculate with, or a whole realistic run."""

import random
import statistics

from bench.results import percentiles

SAMPLERS = {
    "nn.LSTM loop": 8.0,
    "nn.LSTMCell loop": 4.0,
    "TorchScript": 3.2,
    "torch.compile step": 2.5,
    "JAX scan": 1.15,
    "ONNX Runtime": 1.6,
}
TRAINERS = {
    "nn.LSTM + eager loss": 1.2,
    "nn.LSTM + torch.compile loss": 1.05,
    "torch.compile": 1.4,
    "nn.LSTMCell loop": 3.0,
    "TorchScript": 2.6,
    "JAX": 1.6,
    "ONNX Runtime": 2.2,
}
LOSSES = {"eager": 4.2, "naive eager": 6.5, "torch.compile": 2.4, "JAX": 1.9}


def result(contender, values, dtype="float32", role=None, reason=None, phases=None, **more):
    """A contender's entry; ours by its name, else a peer."""
    low, high = percentiles(values) if values else (None, None)
    return {
        "contender": contender,
        "dtype": dtype,
        "role": role or ("ours" if contender == "ours" else "peer"),
        "repeats": len(values),
        "values": values,
        "median": statistics.median(values) if values else None,
        "minimum": min(values, default=None),
        "percentile_20": low,
        "percentile_80": high,
        "phases": {name: phase(series) for name, series in (phases or {}).items()},
        "peak_memory": 12_000_000 if values else None,
        "error": 1e-6 if values else None,
        "tolerance": 1e-3,
        "reason": reason,
        "plan": None,
        **more,
    }


def phase(values):
    """A phase's entry."""
    low, high = percentiles(values)
    return {"values": values, "median": statistics.median(values), "percentile_20": low, "percentile_80": high}


def cell(work, setup, results, model="B", unit="ms", floors=None):
    """A cell's entry; floors are times by dtype."""
    return {
        "work": work,
        "model": model,
        "setup": setup,
        "unit": unit,
        "load_before": [0.5, 0.0, 0.0],
        "floors": {
            dtype: {"time": time, "bound": "products", "multiply_adds": 10**6, "bytes": 10**6}
            for dtype, time in (floors or {}).items()
        },
        "results": results,
    }


def sampling(B, nn_lstm, jax):
    """A cell of easy figures: ours 210 in float32 and 105 in bf16, on floors of 200 and 50."""
    results = [
        result("ours", [200.0, 220.0, 210.0]),
        result("nn.LSTM loop", nn_lstm),
        result("JAX scan", jax),
        result("ONNX Runtime", [], reason="not installed: No module named 'onnx'"),
        result("ours", [100.0, 110.0, 105.0], "bf16"),
    ]
    return cell("sampling", {"B": B, "steps": 600}, results, unit="us/step", floors={"float32": 200.0, "bf16": 50.0})


def loss():
    """A cell of easy figures: ours 10 ms, peak memory 1.5 times raw."""
    raw = 19_200 * 121 * 4
    results = [
        result("ours", [10.0, 10.0, 10.0], peak_memory=3 * raw // 2),
        result("eager", [50.0, 60.0, 70.0], peak_memory=4 * raw),
    ]
    return cell("loss", {"rows": 19_200, "columns": 121}, results, model=None, floors={"float32": 2.0})


def training():
    """A cell of easy figures, with phases."""
    parts = {"forward": [40.0] * 3, "backward": [60.0] * 3, "optimiser": [7.0] * 3}
    results = [
        result("ours", [100.0] * 3, phases=parts),
        result("nn.LSTM + eager loss", [120.0] * 3, phases=parts),
        result("JAX", [150.0] * 3, phases={"forward + backward": [150.0] * 3}),
    ]
    return cell("training", {"T": 300, "B": 32, "lengths": "equal"}, results, floors={"float32": 80.0})


def run(cells, threads=1, gpu=None, **more):
    """A whole run on a processor, or on a GPU of that name."""
    return {
        "environment": {
            "date": "2026-01-01T00:00:00+00:00", "device": "cuda" if gpu else "cpu", "cpu": "A Processor", "cores": 2,
            "caches": {"L2": "1M"}, "isa": "avx2", "backends": {"lstm": "cpu"}, "os": "Linux", "python": "3.11",
            "versions": {"torch": "2.13", "jax": None}, "revision": "abc+", "threads": threads, "pinned_to": [1],
            "load_before": [0.1, 0.2, 0.3], "options": {"grid": "default", "minutes": 10},
            "gpu": {"name": gpu, "capability": [9, 0], "multiprocessors": 132, "memory": 2**36} if gpu else None,
        },
        "ceilings": {
            "multiply_adds": {"float32": 50e9, "bf16": 100e9}, "bandwidth": 20e9, "reads": {"12400000": 40e9},
            "by": {"bf16": "a square product", "bandwidth": "a copy", "reads 12400000": "numpy.dot"},
        },
        "parts": {}, "troubles": {}, "left_out": [], "cells": cells, **more,
    }  # fmt: skip


def realistic(seed=0, threads=1, dtypes=("float32", "bf16"), gpu=None, repeats=9):
    """A run of all works with scatter, a lost cell here and there, and contenders that were not timed."""
    chance = random.Random(seed)
    cells = [
        *(
            _drawn(chance, "sampling", model, {"B": B, "steps": 600 // B + 20}, SAMPLERS, dtypes, repeats, B**0.75 * 90)
            for model in "ABCD"
            for B in (1, 8, 64, 512)
        ),
        *(
            _drawn(chance, "loss", None, {"rows": rows, "columns": 121}, LOSSES, dtypes, repeats, rows / 900)
            for rows in (600, 19_200)
        ),
        *(
            _drawn(chance, "training", model, {"T": 300, "B": B, "lengths": "equal", "rows": 300 * B}, TRAINERS,
                   dtypes, repeats, B * 25.0)
            for model in "ABCD"
            for B in (1, 32)
        ),
        *(
            _drawn(chance, "training", "B", {"T": 300, "B": 32, "lengths": lengths, "rows": 9600}, names, dtypes,
                   repeats, 800.0)
            for lengths, names in {
                "ragged": {"nn.LSTM padded": 1.5, "nn.LSTM packed": 5.0, "JAX": 1.9},
                "equal, clipped": {"written-out cell loop": 1.7, "nn.LSTMCell loop": 1.3},
                "equal, peepholes": {"written-out cell loop": 1.6, "nn.LSTMCell loop": 1.3},
            }.items()
        ),
    ]  # fmt: skip
    return run(cells, threads, gpu)


def _drawn(chance, work, model, setup, factors, dtypes, repeats, base):
    results, floors = [], {}
    for dtype in dtypes:
        own = base * {"float32": 1.0, "tf32": 0.7}.get(dtype, 0.55) * chance.uniform(0.7, 1.4)
        floors[dtype] = own / chance.uniform(1.1, 6)
        for name, factor in {"ours": 1.0, **factors}.items():
            center = own * (1.0 if name == "ours" else factor * chance.lognormvariate(0, 0.25))
            if name in ("torch.compile step", "ONNX Runtime") and dtype != "float32":
                results.append(result(name, [], dtype, reason=f"has no {dtype} kernel of an LSTM"))
                continue
            values = [center * chance.lognormvariate(0, 0.04) for _ in range(repeats)]
            parts = {"forward": [v * 0.4 for v in values], "backward": [v * 0.6 for v in values]}
            if work == "training":
                results.append(result(name, values, dtype, phases=parts | {"optimiser": [3.0] * repeats}))
            else:
                results.append(result(name, values, dtype))
    return cell(work, setup, results, model, "us/step" if work == "sampling" else "ms", floors)
