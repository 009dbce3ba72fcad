"""What a work must at least multiply and move, whatever plan or library does it: what the benchmark's floors count.

L layers of H units and a head of D outputs, as `cost.Network` names them: `inputs` layers read the row's I columns,
`heads` layers are read by the head. One multiply-add is two operations. Elementwise work, exponentials and whatever an
implementation keeps for itself (states, gates, raw outputs: it might compute them again) are in none of the counts.
"""

from __future__ import annotations

from typing import NamedTuple

from .cost import Network


class Least(NamedTuple):
    """What no implementation can do without.

    multiply_adds: of the matrix products. read and written: bytes that are there before and that are left behind, each
    once. weights: those of `read` that are weights.
    """

    multiply_adds: int
    read: int
    written: int
    weights: int

    @property
    def bytes(self) -> int:
        """All that comes and goes."""
        return self.read + self.written


def weights(network: Network) -> int:
    """Elements: 4H (inputs I + (2L - 1) H) + heads H D of matrices, and 4HL + D biases.

    A layer's two biases are one, their sum, and peepholes are left out: the least that a network has.
    """
    L, H, D, I, inputs, heads = network
    return 4 * H * (inputs * I + (2 * L - 1) * H) + heads * H * D + 4 * H * L + D


def least_training(network: Network, rows: int, sequences: int = 0, size: int = 4) -> Least:
    """A forward and a backward pass over so many rows of all sequences together, elements of `size` bytes.

    With S sequences that start from a zero state, whose first step has nothing to multiply by weight_hh:

        forward                     rows (4H (inputs I + (L - 1) H) + heads H D) + (rows - S) 4HHL
        gradients of the weights    the same
        gradients of inputs         rows ((L - 1) 4HH + heads H D) + (rows - S) 4HHL, of h; none of the rows x

    Read: weights, rows and targets (I columns each); written: gradients of the weights. S = 0 where a state is given,
    and its gradient wanted.

    Raises:
        ValueError: fewer rows than sequences.
    """
    if not 0 <= sequences <= rows:
        raise ValueError(f"rows must be >= sequences >= 0, got {rows} rows and {sequences} sequences")
    L, H, D, I, inputs, heads = network
    recurrent = (rows - sequences) * 4 * H * H * L
    of_h = rows * ((L - 1) * 4 * H * H + heads * H * D) + recurrent
    of_x = rows * 4 * H * inputs * I
    parameters = weights(network) * size
    return Least(2 * (of_h + of_x) + of_h, parameters + 2 * rows * I * size, parameters, parameters)


def least_sampling(network: Network, B: int, steps: int, size: int) -> Least:
    """One call that draws `steps` rows of B sequences from a zero state and a zero row, weights of `size` bytes.

    Multiply-adds: B (steps (4H (inputs I + (2L - 1) H) + heads H D) - 4H (inputs I + L H)), since the first step
    multiplies zeros by weight_hh and by the row's weights. Read: the weights, once a call; where they stay in no
    core's own memory, a step has to read them again. Written: the rows, float32.
    """
    L, H, D, I, inputs, heads = network
    step = 4 * H * (inputs * I + (2 * L - 1) * H) + heads * H * D
    idle = 4 * H * (inputs * I + L * H)
    parameters = weights(network) * size
    return Least(B * (steps * step - idle if steps else 0), parameters, steps * B * I * 4, parameters)


def least_loss(rows: int, D: int, I: int, size: int) -> Least:
    """The mixture's loss and the gradient of its raw outputs, forward and backward together.

    Read: rows (D size + 4I), raw outputs of `size` bytes and float32 targets; written: rows D size, the gradient. The
    losses themselves need not be: what is asked for is a mean.
    """
    return Least(0, rows * (D * size + 4 * I), rows * D * size, 0)
