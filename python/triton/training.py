"""`lstm_mdn_nll`: composed of the kernels of a layer's recurrence and of the loss."""

from __future__ import annotations

import functools

from .. import composed
from .loss import mdn_nll, mdn_nll_backward
from .recurrence import lstm, lstm_backward

KERNELS = composed.Kernels(lstm, lstm_backward, mdn_nll, mdn_nll_backward)

lstm_mdn_nll = functools.partial(composed.forward, KERNELS)
lstm_mdn_nll_backward = functools.partial(composed.backward, KERNELS)
