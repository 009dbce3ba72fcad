"""The operators: `lstm` and `mdn_nll`, `lstm_mdn_nll` and `generate` of whole networks; the random stream.

`torch.ops.fusedmdn` has the same operators without checks or defaults; `reference` is what each must equal.
"""

from . import reference, stream
from ._backend import FallbackWarning, backend, report
from ._cpu import isa as cpu_isa
from .chunked import generate_chunked
from .forced import plan
from .functional import GenerateState, generate, lstm, lstm_layer, lstm_mdn_nll, mdn_nll, runs_on_cpu_kernels
from .peak import cpu_peak, cpu_reading
from .stream import normals, uniforms

__all__ = [
    "FallbackWarning",
    "GenerateState",
    "backend",
    "cpu_isa",
    "cpu_peak",
    "cpu_reading",
    "generate",
    "generate_chunked",
    "lstm",
    "lstm_layer",
    "lstm_mdn_nll",
    "mdn_nll",
    "normals",
    "plan",
    "reference",
    "report",
    "runs_on_cpu_kernels",
    "stream",
    "uniforms",
]
