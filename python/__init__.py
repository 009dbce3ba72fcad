"""The operators: `lstm`, `mdn_nll`, `generate`, and the random stream they share.

`torch.ops.fusedmdn` has the same operators without checks or defaults; `reference` is what each must equal.
"""

from . import reference, stream
from ._backend import FallbackWarning, backend, report
from ._cpu import isa as cpu_isa
from .functional import GenerateState, generate, lstm, mdn_nll, runs_on_cpu_kernels
from .stream import normals, uniforms

__all__ = [
    "FallbackWarning",
    "GenerateState",
    "backend",
    "cpu_isa",
    "generate",
    "lstm",
    "mdn_nll",
    "normals",
    "reference",
    "report",
    "runs_on_cpu_kernels",
    "stream",
    "uniforms",
]
