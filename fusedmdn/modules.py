"""Weights to and from other modules: exact copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .ops import checks

if TYPE_CHECKING:
    from .module import FusedLSTMMDN


def from_modules(cls: type[FusedLSTMMDN], lstm: nn.LSTM, head: nn.Linear, options: dict[str, Any]) -> FusedLSTMMDN:
    """See `FusedLSTMMDN.from_modules`."""
    if lstm.bidirectional or lstm.proj_size or not lstm.bias:
        raise ValueError(
            f"nn.LSTM with bidirectional={lstm.bidirectional}, proj_size={lstm.proj_size}, bias={lstm.bias}: "
            "only one direction, no projection, and biases are supported"
        )
    if head.bias is None or head.in_features != lstm.hidden_size:
        raise ValueError(f"head: expected nn.Linear({lstm.hidden_size}, P + 6M) with a bias, got {head}")
    if (head.weight.dtype, head.weight.device) != (lstm.weight_hh_l0.dtype, lstm.weight_hh_l0.device):
        raise ValueError(
            f"lstm and head: expected one dtype and device, got {lstm.weight_hh_l0.dtype} on "
            f"{lstm.weight_hh_l0.device} and {head.weight.dtype} on {head.weight.device}"
        )
    pen = {logits: name for name, logits in checks.PEN_LOGITS.items()}.get(head.out_features % 6)
    if pen is None or head.out_features < 7:
        raise ValueError(f"head: expected 1 + 6M or 3 + 6M output features, got {head.out_features}")
    module = cls(
        lstm.input_size,
        lstm.hidden_size,
        lstm.num_layers,
        head.out_features // 6,
        pen=pen,
        batch_first=lstm.batch_first,
        dropout=lstm.dropout,
        device=head.weight.device,
        dtype=head.weight.dtype,
        **options,
    )
    module.load_state_dict({**lstm.state_dict(), **{f"head.{k}": v for k, v in head.state_dict().items()}})
    return module.train(lstm.training)


def to_modules(model: FusedLSTMMDN) -> tuple[nn.LSTM, nn.Linear]:
    """See `FusedLSTMMDN.to_modules`."""
    if model.skip or model.peephole:
        raise ValueError(f"nn.LSTM has neither skip={model.skip} nor peephole={model.peephole}")
    like: dict[str, Any] = {"device": model.head.weight.device, "dtype": model.head.weight.dtype}
    lstm = nn.LSTM(
        model.input_size,
        model.hidden_size,
        model.num_layers,
        batch_first=model.batch_first,
        dropout=model.dropout,
        **like,
    )
    head = nn.Linear(model.head.in_features, model.head.out_features, **like)
    weights = model.state_dict()
    head.load_state_dict({k: weights.pop(f"head.{k}") for k in ("weight", "bias")})
    lstm.load_state_dict(weights)
    return lstm.train(model.training), head
