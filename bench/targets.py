"""What was asked of the CPU kernels, as data: bounds on ratios to peers and on figures of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODEL = "B"
THREADS = 1


@dataclass(frozen=True)
class AtLeast:
    """A peer takes at least `bound` times as long as ours, in the cell of that work whose setup has these values."""

    work: str
    setup: dict[str, Any]
    ours: str
    peer: str
    bound: float
    aim: float | None = None


@dataclass(frozen=True)
class AtMost:
    """Our own figure is at most `bound`: of its cell's unit, or of the machine's limit where the cell has readers."""

    work: str
    setup: dict[str, Any]
    ours: str
    bound: float


SAMPLING: dict[int, dict[str, tuple[float, float]]] = {  # batch: peer: with float32, with bfloat16 weights
    1: {
        "nn.LSTM loop": (12, 25),
        "nn.LSTMCell loop": (3, 7),
        "TorchScript loop": (2.2, 4.5),
        "JAX scan": (1.1, 2.2),
        "ONNX Runtime": (1.15, 3),
    },
    8: {"nn.LSTM loop": (4.5, 10), "JAX scan": (1.2, 2.4), "ONNX Runtime": (1.2, 2.4)},
    64: {"nn.LSTM loop": (1.7, 3.3), "JAX scan": (1.3, 2.5), "ONNX Runtime": (1.1, 2.2)},
    512: {"nn.LSTM loop": (1.1, 2), "JAX scan": (1.0, 2), "ONNX Runtime": (1.0, 2)},
}

TARGETS: list[AtLeast | AtMost] = [
    *(
        AtLeast("sampling", {"batch": batch}, ours, peer, bound)
        for batch, peers in SAMPLING.items()
        for peer, bounds in peers.items()
        for ours, bound in zip(("ours float32", "ours bfloat16"), bounds, strict=True)
    ),
    AtLeast("loss", {"rows": 19_200}, "ours", "eager", 6),
    AtLeast("loss", {"rows": 19_200}, "ours", "torch.compile", 3.5),
    AtMost("loss memory", {"rows": 19_200}, "ours", 1.05),
    AtLeast("train", {"lengths": "equal"}, "ours", "nn.LSTM + eager loss", 1.0, aim=1.15),
    AtLeast("train", {"lengths": "ragged"}, "ours", "nn.LSTM packed", 10),
    AtLeast("train", {"lengths": "ragged"}, "ours", "nn.LSTM padded", 1.2),
    AtLeast("train", {"variant": "clipped"}, "ours", "written-out cell loop, hooks", 2),
    AtLeast("train", {"variant": "peepholes"}, "ours", "written-out cell loop, peepholes", 2),
    AtMost("limit", {"weights": "float32"}, "ours float32", 1.15),
    AtMost("limit", {"weights": "bfloat16"}, "ours bfloat16", 1.15),
]
