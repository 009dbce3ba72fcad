"""The operators: `lstm`, `mdn_nll`, `generate`, and the random stream they share.

`torch.ops.fusedmdn` has the same operators without checks or defaults; `reference` is what each must equal.
"""

from . import reference, stream
from ._backend import FallbackWarning, backend, report
from ._cpu import isa as cpu_isa
from ._recycled import empty
from .functional import GenerateState, generate, lstm, mdn_nll, runs_packed
from .stream import normals, uniforms

__all__ = [
    "FallbackWarning",
    "GenerateState",
    "backend",
    "cpu_isa",
    "empty",
    "generate",
    "lstm",
    "mdn_nll",
    "normals",
    "reference",
    "report",
    "runs_packed",
    "stream",
    "uniforms",
]
