"""`JobSpec`: all that the bytes of a job depend on, as job.json keeps it. Shard k holds sequences [k R, (k + 1) R)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..ops import forced
from .errors import JobError

FORMAT = "fusedmdn-job-1"
DTYPES = {"float32": None, "bf16": torch.bfloat16}  # what `generate` is asked for
OUTPUTS = ("parquet", "npz", "svg")
PLANS = tuple(name for name, family in forced.FAMILY.items() if family == "generate")
BACKENDS = ("reference", "cpu", "triton")
LARGEST = sys.float_info.max
MOST_SHARDS = 1_000_000  # their names have six digits
MOST = 1 << 62  # sequences, counted and indexed in int64


@dataclass(frozen=True)
class JobSpec:
    """What is to be sampled, by which weights, and where its bits are the same.

    Attributes:
        checkpoint: "path" of the weights' directory (from the job's own), "source" it was copied from, and "sha256"
            that its config.json is sealed with, which covers the weights too.
        sequences: of the whole job.
        shard_size: R, sequences of a shard; the last one may have fewer.
        batch_size: sequences that are drawn at once, cut by their place in the shard.
        max_steps: rows drawn of each, at most.
        seed: of the random stream; sequence i is a function of the weights, the seed, i and these options.
        first_index: index of the first sequence.
        bias: b >= 0.
        temperature: tau > 0.
        precision: of the weights, "float32" or "bf16".
        plan: of a GPU's sampler, "resident", "rows" or "graph"; None for other backends.
        prime: "path", "sha256" and "sequences" of the stroke prefixes (.npz), or None. Sequence i goes on from prefix
            i mod "sequences", and begins with it.
        output: "parquet", "npz" (stroke-3, as `fusedmdn.dataset` reads it) or "svg" (a zip of drawings).
        environment: versions, backend and instruction set or GPU: what else the bits depend on.

    Raises:
        JobError: a value of another type or out of range.
    """

    checkpoint: Mapping[str, Any]
    sequences: int
    shard_size: int
    batch_size: int
    max_steps: int
    seed: int
    first_index: int
    bias: float
    temperature: float
    precision: str
    plan: str | None
    prime: Mapping[str, Any] | None
    output: str
    environment: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, least, most in (
            ("sequences", 1, MOST),
            ("shard_size", 1, 1 << 31),
            ("batch_size", 1, 1 << 31),
            ("max_steps", 1, 1 << 31),
            ("seed", -(1 << 63), (1 << 64) - 1),
            ("first_index", 0, MOST),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise JobError(f"{name}: expected an integer in [{least}, {most}], got {value!r}")
        if self.shards > MOST_SHARDS:
            raise JobError(f"{self.shards} shards: expected at most {MOST_SHARDS}; make shards larger")
        if self.shard_size * self.max_steps >= 1 << 31:
            raise JobError(
                f"shard_size {self.shard_size} of max_steps {self.max_steps}: a shard's points are counted in int32; "
                "make shards smaller"
            )
        for name in ("bias", "temperature"):
            number = getattr(self, name)
            if type(number) not in (int, float) or not 0 <= number <= LARGEST or (name == "temperature" and not number):
                bound = "> 0" if name == "temperature" else ">= 0"
                raise JobError(f"{name}: expected a finite number {bound}, got {number!r}")
            object.__setattr__(self, name, float(number))
        choices: dict[str, tuple[Any, ...]]
        choices = {"precision": tuple(DTYPES), "output": OUTPUTS, "plan": (None, *PLANS)}
        for name, allowed in choices.items():
            chosen = getattr(self, name)
            if not isinstance(chosen, (str, type(None))) or chosen not in allowed:
                raise JobError(f"{name}: expected one of {', '.join(map(str, allowed))}; got {chosen!r}")
        _check_parts("checkpoint", self.checkpoint, {"path": str, "source": str, "sha256": str})
        if self.prime is not None:
            _check_parts("prime", self.prime, {"path": str, "sha256": str, "sequences": int})
            if self.prime["sequences"] < 1:
                raise JobError(f"prime: expected at least one sequence, got {self.prime['sequences']}")
        if not isinstance(self.environment, Mapping) or self.environment.get("backend") not in BACKENDS:
            raise JobError(f"environment: expected an object with backend one of {', '.join(BACKENDS)}")
        if (self.plan is not None) != (self.environment["backend"] == "triton"):
            raise JobError(f"plan: expected one for the backend triton and for no other, got {self.plan!r}")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> JobSpec:
        """From job.json's object.

        Raises:
            JobError: a field is missing, unknown, of another type or out of range.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in document.items() if key not in ("format", "sha256")}
        for problem, names in (("no", fields - given.keys()), ("an unknown", given.keys() - fields)):
            if names:
                raise JobError(f"has {problem} field {', '.join(sorted(names))}")
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """What job.json holds, but for its seal."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.sequences // self.shard_size)

    def sequences_of(self, shard: int) -> range:
        """Indices of a shard's sequences, from `first_index` on."""
        first = shard * self.shard_size
        last = min(first + self.shard_size, self.sequences)
        return range(self.first_index + first, self.first_index + last)

    @property
    def dtype(self) -> torch.dtype | None:
        """What `generate` takes."""
        return DTYPES[self.precision]


def _check_parts(name: str, value: Any, parts: Mapping[str, type]) -> None:
    if not isinstance(value, Mapping) or {key: type(v) for key, v in value.items()} != dict(parts):
        expected = ", ".join(f"{part} ({kind.__name__})" for part, kind in parts.items())
        raise JobError(f"{name}: expected an object of {expected}; got {value!r}")
    if "/" in value["path"] or "\\" in value["path"] or value["path"] in ("", ".", ".."):
        raise JobError(f"{name}: expected a path that is a name in the job's directory, got {value['path']!r}")
