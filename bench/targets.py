"""What was asked of the CPU kernels, as data: bounds on ratios to peers and on figures of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

MODEL = "B"
THREADS = 1


@dataclass(frozen=True)
class AtLeast:
    """A peer takes at least `bound` times as long as ours, in the cell of that work whose setup has these values.

    dtype is ours; the peer's may be another, since a cell times all of its contenders in turn.
    """

    work: str
    setup: dict[str, Any]
    dtype: str
    peer: str
    peer_dtype: str
    bound: float
    aim: float | None = None


@dataclass(frozen=True)
class AtMost:
    """Our own figure is at most `bound` times another.

    of: "floor" for the time over the cell's floor, "raw" for the peak of memory over the bytes of raw in float32.
    """

    work: str
    setup: dict[str, Any]
    dtype: str
    of: Literal["floor", "raw"]
    bound: float


SAMPLING: dict[int, dict[str, tuple[float, float]]] = {  # B: peer in float32: over ours in float32, in bf16
    1: {
        "nn.LSTM loop": (12, 25),
        "nn.LSTMCell loop": (3, 7),
        "TorchScript": (2.2, 4.5),
        "JAX scan": (1.1, 2.2),
        "ONNX Runtime": (1.15, 3),
    },
    8: {"nn.LSTM loop": (4.5, 10), "JAX scan": (1.2, 2.4), "ONNX Runtime": (1.2, 2.4)},
    64: {"nn.LSTM loop": (1.7, 3.3), "JAX scan": (1.3, 2.5), "ONNX Runtime": (1.1, 2.2)},
    512: {"nn.LSTM loop": (1.1, 2), "JAX scan": (1.0, 2), "ONNX Runtime": (1.0, 2)},
}
LOSS = {"rows": 19_200}
STEP = {"T": 300, "B": 32}


def training(lengths: str, peer: str, bound: float, aim: float | None = None) -> AtLeast:
    """A target of a training step in float32."""
    return AtLeast("training", {**STEP, "lengths": lengths}, "float32", peer, "float32", bound, aim)


TARGETS: list[AtLeast | AtMost] = [
    *(
        AtLeast("sampling", {"B": B}, dtype, peer, "float32", bound)
        for B, peers in SAMPLING.items()
        for peer, bounds in peers.items()
        for dtype, bound in zip(("float32", "bf16"), bounds, strict=True)
    ),
    AtLeast("loss", LOSS, "float32", "eager", "float32", 6),
    AtLeast("loss", LOSS, "float32", "torch.compile", "float32", 3.5),
    AtMost("loss", LOSS, "float32", "raw", 1.05),
    training("equal", "nn.LSTM + eager loss", 1.0, aim=1.15),
    training("ragged", "nn.LSTM packed", 10),
    training("ragged", "nn.LSTM padded", 1.2),
    training("equal, clipped", "written-out cell loop", 2),
    training("equal, peepholes", "written-out cell loop", 2),
    AtMost("sampling", {"B": 1}, "float32", "floor", 1.15),
    AtMost("sampling", {"B": 1}, "bf16", "floor", 1.15),
]
