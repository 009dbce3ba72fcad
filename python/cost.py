"""What one step must at least move and multiply, plan by plan: the one place that counts it.

The planner ranks plans by `cycles`, the pages and the benchmark print `floor`. A floor is arithmetic on a datasheet's
figures, never an expected time; the latencies below are assumptions that only rank plans. For the recurrence `fusedmdn
tune` puts measurements in their place.
"""

from __future__ import annotations

from typing import NamedTuple

BARRIER = 1500  # cycles, assumed: from the last program's arrival to the first load after it
TILE = 1500  # cycles, assumed: of a tile's step what neither bytes nor multiply-adds count: latencies one after another
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


def memory(direction: str, H: int, B: int, size: int, save: bool = True) -> int:
    """Bytes of a step in memory, elements of `size` bytes; the cell state is float32.

    forward: xw read, h written and, for backward, gates and cells. backward: the gradient of h, gates and two cell
    states read, the gradient of xw written.
    """
    if direction == "forward":
        return B * H * (4 * size + size + (4 * size + 4 if save else 0))
    return B * H * (size + 4 * size + 2 * 4 + 4 * size)


def cycles(step: Step, work: float, tiles: int) -> float:
    """A step's cycles for the planner: `work` of a tile, of which a multiprocessor has several.

    A tile's barrier passes while the others are worked on.
    """
    if step.launches:
        return step.launches * LAUNCH + work
    return max(tiles * (TILE + work), step.barriers * BARRIER + TILE + work)
