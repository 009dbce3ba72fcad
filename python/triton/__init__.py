"""The operators on the Triton kernels: arguments checked and laid out as kernels/triton wants them, plans chosen.

float32, bfloat16 and float16. No value of a tensor is looked at, nothing waits for the device, and memory comes from
torch's allocator alone, so a call can be captured in a CUDA graph once its kernels are compiled. The exception is
packed rows, whose places are computed from their lengths on the host.
"""

from .loss import mdn_nll, mdn_nll_backward
from .recurrence import lstm, lstm_backward, lstm_gates, lstm_layer
from .sampler import generate
from .training import lstm_mdn_nll, lstm_mdn_nll_backward

__all__ = [
    "generate",
    "lstm",
    "lstm_backward",
    "lstm_gates",
    "lstm_layer",
    "lstm_mdn_nll",
    "lstm_mdn_nll_backward",
    "mdn_nll",
    "mdn_nll_backward",
]
