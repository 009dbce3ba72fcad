"""Making a job: what is asked for, together with what this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_model
from ..loaders import load as load_strokes
from ..ops import checks, launch, sampling_plans
from ..ops.triton.arguments import tf32_allowed
from .environment import environment_of
from .errors import JobError
from .job import MODEL, PRIME, Job
from .spec import DTYPES, JobSpec

SHARD_SIZE = 5_000
BATCH = 500  # sequences that a CPU draws at once: more are no faster, and who stops a run waits for one batch
BATCH_BYTES = 1 << 28  # of the rows that a GPU draws at once


def create(
    directory: str | Path,
    checkpoint: str | Path,
    sequences: int,
    *,
    seed: int = 0,
    first_index: int = 0,
    shard_size: int = SHARD_SIZE,
    batch_size: int | None = None,
    max_steps: int = 500,
    bias: float = 0.0,
    temperature: float = 1.0,
    precision: str = "float32",
    plan: str | None = None,
    prime: str | Path | None = None,
    output: str = "parquet",
    device: Any = "cpu",
) -> Job:
    """Make a job's directory: the spec, a copy of the weights, and of the prefixes.

    Args:
        directory: to be made.
        checkpoint: a checkpoint or run directory, or "kanji".
        sequences: to be sampled.
        seed: of the random stream.
        first_index: index of the first sequence.
        shard_size: sequences of a shard.
        batch_size: sequences that are drawn at once; by default 500 on a CPU, on a GPU as many as fit 256 MiB.
        max_steps: rows drawn of each sequence, at most.
        bias: b >= 0.
        temperature: tau > 0.
        precision: of the weights, "float32" or "bf16".
        plan: on a GPU, "resident", "rows" or "graph"; by default what is best for a batch there.
        prime: stroke prefixes, as `fusedmdn.load` takes them; sequence i goes on from number i, modulo their count.
        output: "parquet", "npz" or "svg".
        device: where it shall run; its kind goes into the spec.

    Raises:
        JobError: a value out of range, or a plan that does not fit.
        CheckpointError, StrokeFileError: the weights or the prefixes cannot be read.
        FileExistsError: the directory holds something.
    """
    model, device = load_model(checkpoint), torch.device(device)
    prefixes = None if prime is None else load_strokes(prime)
    if prefixes is not None and not len(prefixes):
        raise JobError(f"{prime}: holds no sequences to go on from")
    if precision not in DTYPES:
        raise JobError(f"precision: expected one of {', '.join(DTYPES)}; got {precision!r}")
    if model.input_size != checks.ROW[model.pen]:
        raise JobError(f"{checkpoint}: a network of {model.input_size} inputs cannot be fed its own rows")
    environment = environment_of(device, precision, output)
    if batch_size is None:
        fitting = BATCH_BYTES // max(1, 4 * checks.ROW[model.pen] * max_steps)
        batch_size = max(1, min(shard_size, sequences, fitting if environment["backend"] == "triton" else BATCH))
    if environment["backend"] == "triton" and plan is None:
        plan = _plan(model, batch_size, precision, device)
    spec = JobSpec(
        checkpoint={"path": MODEL, "source": str(checkpoint), "sha256": ""},
        sequences=sequences,
        shard_size=shard_size,
        batch_size=batch_size,
        max_steps=max_steps,
        seed=seed,
        first_index=first_index,
        bias=bias,
        temperature=temperature,
        precision=precision,
        plan=plan,
        prime=None if prefixes is None else {"path": PRIME, "sha256": "", "sequences": len(prefixes)},
        output=output,
        environment=environment,
    )
    return Job.create(directory, spec, model, prefixes)


def _plan(model: Any, batch: int, precision: str, device: torch.device) -> str:
    """The name of the sampler's plan that a GPU takes for such a batch."""
    head = model.head.weight
    like = torch.empty(0, device=device)
    outputs = head.shape[0]
    dtype = DTYPES[precision] or head.dtype
    chosen = sampling_plans.choose(
        model.num_layers, model.hidden_size, outputs, batch, dtype, launch.device_of(like), tf32=tf32_allowed()
    )
    return chosen.name
