"""PyTorch's own peers are right, and the checks see one that is not."""

import pytest
import torch

from bench.models import CONFIGS, CellStack, LSTMStack, build
from bench.peers import torch_losses, torch_sampling, torch_training
from bench.problems import Answer, Problem, deviation, problem, reference, strokes
from bench.samplers import check_draws, exact_raw, largest, our_error
from bench.works import loss, train

HIDDEN = 12
SAMPLERS = [torch_sampling.lstm_loop, torch_sampling.cell_loop, torch_sampling.Scripted]


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.mark.parametrize("make", SAMPLERS, ids=lambda make: make.__name__)
def test_samplers(make, name):
    model = build(name, HIDDEN)
    sampler = make(model)
    assert largest(sampler.raw(strokes(5, 3)), exact_raw(model, strokes(5, 3))) < 1e-5
    check_draws(sampler, model, 4000)
    rows = sampler.sample(3, 5)
    assert rows.shape == (5, 3, 3)
    assert rows.isfinite().all()
    assert set(rows[..., 2].unique().tolist()) <= {0.0, 1.0}


def test_our_sampler(name):
    assert our_error(build(name, HIDDEN), None, 3, 20) < 1e-4


def test_same_weights_every_time_and_in_every_peer(name):
    model, again = build(name, HIDDEN), build(name, HIDDEN)
    for other in (dict(again.named_parameters()), LSTMStack(model).named(), CellStack(model).named()):
        assert other.keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(p, other[n]) for n, p in model.named_parameters())


def test_wrong_weights_are_seen():
    model = build("B", HIDDEN)
    sampler = torch_sampling.lstm_loop(model)
    with torch.no_grad():
        sampler.network.net.head.bias[5] += 0.01
    x = strokes(5, 3)
    assert largest(sampler.raw(x), exact_raw(model, x)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("part", ["dx", "rho", "eos"])
def test_wrong_draws_are_seen(part):
    model = build("C", HIDDEN)

    class Wrong(torch_sampling.Loop):
        def draw(self, raw):
            raw = raw.clone()
            M = model.num_mixtures
            first, count = {"dx": (1 + M, 1), "rho": (1 + 5 * M, M), "eos": (0, 1)}[part]
            raw[:, first : first + count] += 0.5
            return super().draw(raw)

    with pytest.raises(ValueError, match="wrong draws: mean of"):
        check_draws(Wrong(torch_sampling.LSTMStep(model)), model, 20_000)


@pytest.mark.parametrize("make", [loss.our_mean, torch_losses.eager_mean, torch_losses.naive_mean])
def test_losses(make):
    raw, target = loss.arguments(6, 4)
    exact = loss.forward_and_gradient(loss.our_mean(loss.M), raw.double(), target.double())
    assert deviation(loss.forward_and_gradient(make(loss.M), raw, target), exact) < 1e-4
    wrong = loss.forward_and_gradient(make(loss.M), raw, target.flip(0))
    assert deviation(wrong, exact) > 1e-2


@pytest.mark.parametrize(
    ("make", "options", "ragged"),
    [
        (torch_training.LSTMTrainer, {}, False),
        (torch_training.PaddedTrainer, {}, True),
        (torch_training.PackedTrainer, {}, True),
        (torch_training.CellTrainer, {}, False),
        (torch_training.WrittenCellTrainer, {}, False),
        (torch_training.WrittenCellTrainer, {"peephole": True}, False),
        (torch_training.WrittenCellTrainer, {"clip_gates": train.BITING}, False),
        (train.OurTrainer, {"clip_gates": train.BITING}, True),
    ],
)
def test_trainers(make, options, ragged):
    model, given = build("B", HIDDEN, **options), problem(*train.SMALL, ragged=ragged)
    trainer = make(model)
    for _ in range(2):  # a second step starts from cleared gradients
        assert deviation(trainer.answer(given), reference(model, given)) < 1e-4


def test_the_biting_bound_bites():
    given = problem(*train.SMALL)
    for hidden in (HIDDEN, None):
        plain, clipped = (reference(build("B", hidden, **o), given) for o in ({}, {"clip_gates": train.BITING}))
        assert deviation(clipped, plain) > 0.1


def test_a_ragged_problem():
    T, B = 12, 8
    given = problem(T, B, ragged=True)
    assert T // 3 <= int(given.lengths.min()) < int(given.lengths.max()) <= T
    assert given.rows == int(given.lengths.sum())
    assert not given.x[int(given.lengths[0]) :, 0].any()


def test_deviations():
    exact = Answer(2.0, {"w": torch.tensor([1.0, -4.0])})
    assert deviation(Answer(2.0, {"w": torch.tensor([1.0, -3.0])}), exact) == 0.25
    assert deviation(Answer(3.0, exact.gradients), exact) == 0.5
    assert deviation(Answer(float("nan"), exact.gradients), exact) == float("inf")
    with pytest.raises(ValueError, match=r"gradients differ in \['v', 'w'\]"):
        deviation(Answer(2.0, {"v": torch.zeros(2)}), exact)


def test_the_written_out_cell_refuses_both():
    with pytest.raises(ValueError, match="peepholes or clips, not both"):
        torch_training.WrittenCellTrainer(build("B", HIDDEN, peephole=True, clip_gates=1.0))


def test_lengths_default_to_all():
    assert Problem(torch.zeros(3, 2, 3), torch.zeros(3, 2, 3)).rows == 6
