"""The counts that nothing can undercut, against what PyTorch counts of its own plain modules."""

import pytest
import torch
from fusedmdn.ops import cost, least
from torch.utils.flop_counter import FlopCounterMode

from bench import floors, models

T, B, HIDDEN = 5, 3, 8


def network(name):
    model = models.build(name, HIDDEN)
    return model, floors.network_of(model)


def multiply_adds(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def raw_of(stack, steps, batch):
    """Raw outputs of every step, from zeros."""
    h, c = ([torch.zeros(batch, HIDDEN) for _ in range(stack.num_layers)] for _ in range(2))
    outputs = []
    for x in torch.randn(steps, batch, 3):
        raw, h, c = stack(x, h, c)
        outputs.append(raw)
    return torch.stack(outputs)


@pytest.mark.parametrize("name", "ABC")
def test_training_against_plain_modules(name):
    """These multiply the zero state by weight_hh, forward and for its gradient; with skips they give x a gradient."""
    model, of = network(name)
    stack = models.CellStack(model)
    counted = multiply_adds(lambda: raw_of(stack, T, B).sum().backward())
    zeros = 2 * B * of.L * 4 * of.H * of.H
    gradient_of_x = T * B * (of.inputs - 1) * 4 * of.H * of.I
    assert least.least_training(of, T * B, B).multiply_adds == counted - zeros - gradient_of_x


@pytest.mark.parametrize("name", "ABC")
def test_training_from_a_given_state_multiplies_it_too(name):
    _, of = network(name)
    given, zero = (least.least_training(of, T * B, sequences) for sequences in (0, B))
    assert given.multiply_adds - zero.multiply_adds == 3 * B * of.L * 4 * of.H * of.H
    assert given[1:] == zero[1:]


@pytest.mark.parametrize("name", "ABC")
def test_sampling_against_plain_modules(name):
    """These multiply the zero state and the row of zeros in the first step."""
    model, of = network(name)
    stack = models.CellStack(model)
    with torch.no_grad():
        counted = multiply_adds(lambda: raw_of(stack, T, B))
    zeros = B * 4 * of.H * (of.L * of.H + of.inputs * of.I)
    assert least.least_sampling(of, B, T, 4).multiply_adds == counted - zeros
    assert least.least_sampling(of, B, 0, 4)[:3:2] == (0, 0)


@pytest.mark.parametrize("name", "ABC")
def test_weights_are_the_modules_less_one_bias(name):
    model, of = network(name)
    elements = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("bias_hh"))
    assert least.weights(of) == elements
    training = least.least_training(of, T * B, B)
    assert training.weights == training.written == 4 * elements
    assert training.read == 4 * (elements + 2 * T * B * 3)
    sampling = least.least_sampling(of, B, T, 2)
    assert sampling.weights == sampling.read == 2 * elements
    assert sampling.written == T * B * 3 * 4


def test_loss():
    """As the tensors' own sizes: raw and target come, the gradient goes."""
    raw, target = torch.zeros(T, B, 121, dtype=torch.bfloat16), torch.zeros(T, B, 3)
    count = least.least_loss(T * B, 121, 3, 2)
    assert (count.read, count.written) == (raw.nbytes + target.nbytes, raw.nbytes)
    assert count.bytes == 2 * raw.nbytes + target.nbytes
    assert (count.multiply_adds, count.weights) == (0, 0)


def test_more_sequences_than_rows():
    of = cost.Network(1, 8, 7, 3, 1, 1)
    with pytest.raises(ValueError, match="rows must be >= sequences >= 0, got 3 rows and 4 sequences"):
        least.least_training(of, 3, 4)
