"""Graves's RMSProp, which no library has: centred, with momentum, and epsilon inside the root."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class GravesRMSprop(Optimizer):
    """RMSProp as trained with in Graves 2013 (equations 38-45).

        n = decay n + (1 - decay) g^2        m = decay m + (1 - decay) g
        step = momentum step - lr g / sqrt(n - m^2 + eps)        w = w + step

    Args:
        params: parameters or groups of them.
        lr: 1e-4 in the paper.
        decay: 0.95.
        momentum: 0.9.
        eps: 1e-4, inside the root (torch.optim.RMSprop adds it outside).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        decay: float = 0.95,
        momentum: float = 0.9,
        eps: float = 1e-4,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        for name, value in (("decay", decay), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        super().__init__(params, {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            decay = group["decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update({name: torch.zeros_like(p) for name in ("square", "mean", "update")})
                n, m, update = state["square"], state["mean"], state["update"]
                n.mul_(decay).addcmul_(p.grad, p.grad, value=1 - decay)
                m.mul_(decay).add_(p.grad, alpha=1 - decay)
                # n - m^2 is a variance; rounding may leave it a hair below zero
                root = (n - m * m).clamp_(min=0).add_(group["eps"]).sqrt_()
                update.mul_(group["momentum"]).addcdiv_(p.grad, root, value=-group["lr"])
                p.add_(update)
        return loss
