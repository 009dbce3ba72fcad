"""What one step must at least move and multiply, plan by plan: the one place that counts it.

The planner ranks plans by `cycles`, the pages and the benchmark print `floor`. A floor is arithmetic on a datasheet's
figures, never an expected time. The latencies below only rank plans; they are fitted to an H100's measured times
(bench/results/plans-nvidia-h100-80gb-hbm3.json, `python -m bench.gpu.plan_times`): what the choices lose by them there
tests/bench/test_plan_times.py holds. For the recurrence `fusedmdn tune` puts measurements in their place.
"""

from __future__ import annotations

from typing import NamedTuple

BARRIER = 1500  # cycles from the last program's arrival to the first load after it: 0.83 to 0.99 us on an H100
TILE = 2500  # cycles of a tile's step that neither bytes nor multiply-adds count: latencies one after another
NARROW = 0.3  # of TILE, more where a program has fewer units and sequences than threads
WAVE = 500  # cycles of a tile's step, more where all layers are one launch
ACHIEVED = 0.5  # of the matrix units' rate, by the instructions of one warp
LAUNCH = 18000  # cycles, assumed: a kernel launched from Python, some 10 us; a captured graph needs less
NODE = 3000  # cycles, assumed: a kernel of a captured graph, from the end of the one before
PORT = 64  # bytes a cycle between L2 and one multiprocessor
L2 = 24  # the same where all of them read at once (5.5 TB/s on an H100)
# multiply-adds a cycle of one multiprocessor's matrix units, dense, sums in float32, by target and bits of an element
# (datasheets of A100, RTX 3090, RTX 4090, H100, B200, RTX 5090)
MULTIPLY_ADDS = {
    "sm_80": {16: 1024, 32: 512},
    "sm_86": {16: 256, 32: 128},
    "sm_89": {16: 256, 32: 128},
    "sm_90": {16: 2048, 32: 1024},
    "sm_100": {16: 4096, 32: 2048},
    "sm_120": {16: 256, 32: 128},
}
FLOAT32 = 128  # the same in full float32, which has no matrix unit


class Datasheet(NamedTuple):
    """A GPU by its datasheet: dense multiply-adds (two operations each) and bytes of memory per second."""

    name: str
    target: str
    processors: int
    multiply_adds: dict[str, float]  # by "bf16", "tf32", "float32"
    bandwidth: float

    @property
    def clock(self) -> float:
        """Cycles per second that its rate in bfloat16 implies."""
        return self.multiply_adds["bf16"] / (self.processors * MULTIPLY_ADDS[self.target][16])


H100 = Datasheet(
    "H100 SXM5 80 GB", "sm_90", 132, {"bf16": 989.4e12 / 2, "tf32": 494.7e12 / 2, "float32": 66.9e12 / 2}, 3.35e12
)


class Step(NamedTuple):
    """One step of one layer for the whole batch.

    memory: bytes that a step reads or writes once and for all (inputs, outputs, what backward needs). exchange: bytes
    that the multiprocessors read of what others wrote or, step by step, of the weights, out of L2. multiply_adds:
    padding included. barriers and launches of a step; share: of the multiprocessors, that work.
    """

    memory: int
    exchange: int
    multiply_adds: int
    barriers: int
    launches: int
    share: float

    def floor(self, gpu: Datasheet, precision: str) -> float:
        """Seconds below which this step cannot get by this plan, were each byte to come from memory.

        The larger of memory / bandwidth, and multiply_adds / (rate of the multiprocessors that take part).
        """
        return max(self.memory / gpu.bandwidth, self.multiply_adds / (gpu.multiply_adds[precision] * self.share))


class Network(NamedTuple):
    """What samples: L layers of H units, `inputs` of which read the row's I columns, and a head of D outputs.

    The head reads `heads` layers: with skips all, else the last.
    """

    L: int
    H: int
    D: int
    I: int
    inputs: int
    heads: int


class Tiles(NamedTuple):
    """How a step of sampling is cut: `rows` sequences, K elements of a row (H, padded).

    `layer` tiles of `units` hidden units, `head` tiles of `columns` outputs; what is padded is multiplied too.
    """

    rows: int
    K: int
    units: int
    layer: int
    columns: int
    head: int


class Sampling(NamedTuple):
    """One step of sampling for the whole batch, as the kernels load and multiply, state of their own left out.

    weights: bytes of weights that are not on chip; exchange: bytes of h and of the head's outputs, by whomever they
    were written. multiply_adds: of the matrix products, padding included; needed: without. The rest as in `Step`.
    """

    weights: int
    exchange: int
    multiply_adds: int
    needed: int
    barriers: int
    launches: int
    share: float

    def loads(self, gpu: Datasheet) -> float:
        """Seconds that the multiprocessors' ports need at the least, were no load answered by an L1."""
        return (self.weights + self.exchange) / (PORT * gpu.clock * gpu.processors * self.share)

    def products(self, gpu: Datasheet, precision: str) -> float:
        """Seconds that the matrix units need at the least."""
        return self.multiply_adds / (gpu.multiply_adds[precision] * self.share)


def sampling(name: str, network: Network, B: int, size: int, tiles: Tiles, share: float) -> Sampling:
    """A step of the plan of that name, elements of `size` bytes; biases of the layers are with the row's weights."""
    L, H, D, I, inputs, heads = network
    matrices, blocks, resident = 2 * L - 1, -(-B // tiles.rows), name == "resident"
    N, DP = tiles.layer * 4 * tiles.units, tiles.head * tiles.columns
    padded = tiles.K * (matrices * N + heads * DP)
    streamed = heads * H * D if resident else padded
    h, raw = H * size * (matrices * tiles.layer + heads * tiles.head), 4 * D * (tiles.head if resident else 1)
    return Sampling(
        weights=blocks * (streamed * size + (inputs * I + L) * N * 4),
        exchange=B * (h + raw),
        multiply_adds=blocks * tiles.rows * padded,
        needed=B * H * (matrices * 4 * H + heads * D),
        barriers=L + 1 if resident else 0,
        launches=L + 2 if name == "graph" else 0,
        share=share,
    )


class Waves(NamedTuple):
    """How a step of training is cut where all layers are one launch (kernels/triton/lstm_mdn_nll.py).

    Tiles have `rows` sequences; every layer has `layer` programs. Of each row of h (forward) or dz (backward) such a
    program reads K elements and multiplies `padded` by N columns, and `beside` more: of the input, or of the gradient
    of raw, of which it reads `raw`. Forward `head` programs own `columns` outputs each; backward there are none.
    """

    rows: int
    layer: int
    K: int
    padded: int
    N: int
    raw: int
    beside: int
    head: int
    columns: int


class Training(NamedTuple):
    """One step of training, one way, for the whole batch, or a part of it; what comes after the loop is left out.

    memory, exchange and share as in `Step`. multiply_adds: of the matrix products, padding included; needed: without.
    barriers and launches are those of all T steps.
    """

    memory: int
    exchange: int
    multiply_adds: int
    needed: int
    barriers: int
    launches: int
    share: float

    def moves(self, gpu: Datasheet) -> float:
        """Seconds that the memory needs at the least, were each byte to come from there."""
        return self.memory / gpu.bandwidth

    def products(self, gpu: Datasheet, precision: str) -> float:
        """Seconds that the matrix units need at the least."""
        return self.multiply_adds / (gpu.multiply_adds[precision] * self.share)


def program(L: int, waves: Waves, size: int) -> tuple[int, int]:
    """Of a layer's busiest program and a tile: bytes that it reads of what others made, and its multiply-adds."""
    matrices = 2 if L > 1 else 1
    read, multiplied = matrices * waves.K + waves.raw, matrices * waves.padded + waves.beside
    return waves.rows * read * size, waves.rows * multiplied * waves.N


def training(direction: str, network: Network, T: int, B: int, size: int, waves: Waves, share: float) -> Training:
    """A step of the fused plan, elements of `size` bytes; targets, as many as inputs, and cell states are float32.

    memory: forward input and target read, h, gates, cells, raw and nll written; backward gates, two cell states, raw,
    target and the gradient of nll read, dz and draw written.
    """
    L, H, D, I, inputs, heads = network
    rows, forward = -(-B // waves.rows) * waves.rows, direction == "forward"
    kept = L * H * (5 * size + 4) + (I + D) * size if forward else L * H * (8 * size + 8) + (D + waves.raw) * size
    read = waves.layer * ((2 * L - 1) * waves.K + heads * waves.raw) + waves.head * heads * waves.K
    of_layer = program(L, waves, size)[1] // waves.rows
    return Training(
        memory=B * (kept + 4 * I + 4),
        exchange=B * (read * size + (4 * D if forward else 0)),
        multiply_adds=rows * (L * waves.layer * of_layer + waves.head * heads * waves.padded * waves.columns),
        needed=B * (4 * H * ((2 * L - 1) * H + (inputs * I if forward else 0)) + heads * H * D),
        barriers=T + L + (0 if forward else 1),
        launches=1,
        share=share,
    )


def recurrences(step: Step, L: int, H: int, T: int, B: int) -> Training:
    """A step of L layers one after another."""
    return Training(
        memory=L * step.memory,
        exchange=L * step.exchange,
        multiply_adds=L * step.multiply_adds,
        needed=L * B * 4 * H * H,
        barriers=L * step.barriers * T,
        launches=L * (step.launches * T or 1),
        share=step.share,
    )


def over_time(direction: str, network: Network, B: int, size: int) -> Training:
    """A step's part of what lies between the layers where they are not fused: products of all steps, and the loss.

    Every product reads its rows and writes its result once, a sum of several likewise: a layer's input and below it h
    forward, backward the gradient of h from dz above and from that of raw. A product for each layer, one for the head.
    """
    L, H, D, I, inputs, heads = network
    loss = 2 * D * size + 4 * I + 4
    if direction == "forward":
        moved = (L * 4 * H + inputs * I + (L - 1) * H + heads * H) * size
        products = 4 * H * (inputs * I + (L - 1) * H) + heads * H * D
    else:
        moved = (L * H + (L - 1) * 4 * H + heads * D) * size
        products = (L - 1) * 4 * H * H + heads * H * D
    return Training(
        memory=B * (moved + loss),
        exchange=0,
        multiply_adds=B * products,
        needed=B * products,
        barriers=0,
        launches=L + 2 if direction == "forward" else L + 1,
        share=1.0,
    )


def memory(direction: str, H: int, B: int, size: int, save: bool = True) -> int:
    """Bytes of a step in memory, elements of `size` bytes; the cell state is float32.

    forward: xw read, h written and, for backward, gates and cells. backward: the gradient of h, gates and two cell
    states read, the gradient of xw written.
    """
    if direction == "forward":
        return B * H * (4 * size + size + (4 * size + 4 if save else 0))
    return B * H * (size + 4 * size + 2 * 4 + 4 * size)


def rate(target: str, size: int, precision: str) -> float:
    """Multiply-adds a cycle of one multiprocessor that the planner counts on, elements of `size` bytes."""
    dense = MULTIPLY_ADDS.get(target, {}).get(8 * size)
    return ACHIEVED * dense / (3 if precision == "tf32x3" else 1) if dense else FLOAT32


def cycles(step: Step, work: float, tiles: int) -> float:
    """A step's cycles for the planner: `work` of a tile, of which a multiprocessor has several.

    A tile's barrier passes while the others are worked on.
    """
    if step.launches:
        return step.launches * LAUNCH + work
    return max(tiles * (TILE + work), step.barriers * BARRIER + TILE + work)
