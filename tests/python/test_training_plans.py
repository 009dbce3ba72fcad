"""The choice of a plan for the whole network's loss: a pure function; what fits, what is forced, what is refused."""

import itertools
import warnings
from unittest import mock

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import launch, plans, reference, training_plans, triton
from fusedmdn.ops.training_plans import Composed, Fused
from fusedmdn.ops.triton import refused

from ..compile_gate import table
from ..compile_gate.shipped import PROCESSORS, SIZES
from ..conftest import Idle, launching, simulated
from ..simulator import Simulator
from .test_lstm_mdn_nll import LENGTHS, Network, both_ways

A100 = plans.Device("sm_80", 108, 163 * 1024)
H100 = plans.Device("sm_90", 132, 227 * 1024)
MI300X = plans.Device("gfx942", 304, 0)
DEVICES = [plans.Device(t, p, plans.SHARED.get(t, 0) * 1024) for t, p in PROCESSORS.items()]
DIRECTIONS = ["forward", "backward"]
D = 121  # outputs: a Bernoulli pen and 20 components


def choose(direction="forward", L=3, H=400, B=16, dtype=torch.bfloat16, device=H100, D=D, **options):
    return training_plans.choose(direction, L, H, D, B, dtype, device, **options)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_chosen(direction):
    """Fused while the batch is small and the weights fit; never on AMD, nor what the kernel does not take."""
    assert choose(direction).name == choose(direction, device=A100).name == "fused"
    assert choose(direction).precision == "ieee"
    assert choose(direction, H=128, dtype=torch.float32).precision == "tf32x3"
    assert choose(direction, H=128, dtype=torch.float32, tf32=True).precision == "tf32"
    assert choose(direction, L=2, D=387).name == choose(direction, inputs=14).name == "fused"  # 64 components
    not_fused = [
        {"device": MI300X},
        {"device": plans.Device("unknown", 999, 1 << 20)},
        {"L": 2, "D": 1 + 6 * 65},
        {"inputs": 15},
        {"L": 4, "H": 128},
        {"B": 4096},  # so much work that products of their own are faster
        {"H": 1024},  # more programs than there are multiprocessors
        {"device": H100._replace(processors=70)},
        {"device": H100._replace(shared=60 * 1024)},
    ]
    for options in not_fused:
        assert choose(direction, **options) == Composed(), options


def test_the_directions_are_chosen_for_themselves():
    """Forward has programs for the head too."""
    device = H100._replace(processors=3 * 25 + 4)
    assert choose("forward", device=device).name == "composed"
    assert choose("backward", device=device).name == "fused"
    assert choose("forward").programs - choose("backward").programs == -(-D // training_plans.COLUMNS)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_forcing(direction):
    with ops.plan("composed"):
        assert choose(direction) == Composed()
    with ops.plan("fused"), ops.plan("stepwise"), ops.plan("rows"):  # of other families: all hold
        assert choose(direction, B=4096).name == "fused"
    for exactly in (Fused(8, 16, 16, 0, "ieee", 99, 3), Composed()):
        with ops.plan(exactly):
            assert choose(direction) is exactly
    message = f"the fused plan does not fit: {direction}, L=3, H=1024, D=121, 3 inputs, torch.float32, tf32x3, .*sm_90"
    with ops.plan("fused"):
        with pytest.raises(RuntimeError, match=message):
            choose(direction, H=1024, dtype=torch.float32)
        with pytest.raises(RuntimeError, match="the fused plan does not fit: .* 15 inputs"):
            choose(direction, inputs=15)
        with pytest.raises(RuntimeError, match="the fused plan does not fit: .*gfx942"):
            choose(direction, device=MI300X)


def every():
    for L, H, outputs, B in itertools.product((1, 2, 3), (1, 20, 128, 400, 512, 900, 2000), (7, D, 387), (1, 40, 1000)):
        for (size, precision), device in itertools.product(((2, "ieee"), (4, "tf32"), (4, "tf32x3")), DEVICES):
            yield L, H, outputs, B, size, precision, device


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nothing_is_launched_that_is_not_co_resident(direction):
    found = 0
    for L, H, outputs, B, size, precision, device in every():
        for plan in training_plans.fused_plans(direction, L, H, outputs, B, size, precision, device):
            found += 1
            assert device.target in plans.SHARED
            assert plan.programs * plan.groups <= device.processors
            layers = plan.programs - (direction == "forward") * -(-outputs // plan.columns) - 1
            assert layers % L == 0
            assert layers // L * plan.units >= H
            assert plan.groups <= -(-B // plan.rows)  # every group has a tile
            assert training_plans.shared_memory(direction, L, H, outputs, plan, size) <= device.shared
    assert found > 1000


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_larger_costs_more_and_fits_less(direction):
    """More units, layers or outputs never have a plan more; the batch decides once, and every sequence costs."""
    sizes = (1, 20, 128, 256, 400, 512, 700, 900, 1024, 2000)
    for L, device in itertools.product((1, 2, 3), (A100, H100)):
        options = {"direction": direction, "L": L, "device": device}

        def fitting(H, outputs=D, options=options, **more):
            given = {"B": 16, "size": 2, "precision": "ieee"} | options | more
            return {plan.units for plan in training_plans.fused_plans(H=H, D=outputs, **given)}

        for H, larger in itertools.pairwise(sizes):
            assert fitting(larger) <= fitting(H)
            assert fitting(H, L=L + 1) <= fitting(H) | {16}  # compiled for more than one layer alone
            assert fitting(H, outputs=387) <= fitting(H)
            assert fitting(H, B=1000) == fitting(H)
        for H in (128, 400):
            chosen = [choose(H=H, B=B, **options).name for B in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)]
            assert chosen == sorted(chosen, reverse=True)  # fused, then composed
            plan = Fused(16, 16, 64, 0, "ieee", 1, 1)
            ranks = [
                training_plans.cycles(plan, direction, L, H, D, B, 2, "ieee", device) for B in (1, 16, 17, 64, 999)
            ]
            assert ranks[0] < ranks[1] < ranks[2] < ranks[3] < ranks[4]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_compiler_takes_no_more_shared_memory_than_the_planner_counts(direction):
    """Nor much less."""
    rows, checked = table.read(table.PATH)["pairs"], 0
    elements = ("bf16", 2, "ieee"), ("fp32", 4, "tf32"), ("fp32", 4, "tf32x3")
    for L, H, (label, size, precision), device in itertools.product((1, 3), SIZES, elements, DEVICES):
        for plan in training_plans.fused_plans(direction, L, H, D, 1, size, precision, device):
            ahead = "all" if plan.ahead == plans.ALL else plan.ahead
            tiles = f"{precision} 16x{plan.units} width {plan.width} ahead {ahead}"
            key = table.key(f"lstm_mdn_nll.{direction} {label} H{H} M20 bernoulli L{L} {tiles}", device.target)
            counted = training_plans.shared_memory(direction, L, H, D, plan, size)
            assert 0.9 * counted <= rows[key]["shared"] <= counted, key
            checked += 1
    assert checked > 150


# In use


class Counting(Simulator):
    """A large GPU, whose launches are counted by kernel; cooperative ones are refused, if so said."""

    device = plans.Device("sm_90", 64, 227 * 1024)

    def __init__(self, refuses=False):
        super().__init__(policy="serial", race=False)
        self.refuses, self.launched = refuses, []

    def __call__(self, kernel, grid, arguments, options=None):
        self.launched.append(f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}")
        if self.refuses and options.cooperative:
            raise launch.LaunchRefusedError("too many blocks in cooperative launch")
        return super().__call__(kernel, grid, arguments)


FUSED = ["lstm_mdn_nll.forward", "lstm_mdn_nll.backward"]


def network(**options):
    return Network(1, torch.float32, sizes=(2, 3, 6, 2, 3), **options)


def run(network):
    with torch.enable_grad():
        inputs = network.differentiable()
        return torch.autograd.grad(sum(v.sum() for v in network.run()), inputs)


@pytest.mark.parametrize("name", ["fused", "composed"])
def test_a_plan_by_its_name(name):
    counting = Counting()
    with ops.backend("triton"), launching(counting), ops.plan(name):
        run(network())
    assert counting.launched == FUSED if name == "fused" else not set(counting.launched) & set(FUSED)


def test_a_forced_plan_that_does_not_fit_is_named():
    """By its sizes, or by what the kernel does not take; packed rows and wide inputs are composed where none is."""
    live = reference.alive(5, LENGTHS.sort(descending=True).values)[..., 0]
    padded = Network(1, torch.float32, lengths=LENGTHS.sort(descending=True).values)
    wide = Network(1, torch.float32, sizes=(2, 3, 6, 2, 15))
    with simulated(processors=64, policy="serial", race=False):
        packed = padded.run(padded.x[live], padded.target[live])[0]
        assert wide.run()[0].isfinite().all()
        for composed in ("composed", Composed()):
            with ops.plan(composed):
                assert torch.equal(padded.run(padded.x[live], padded.target[live])[0], packed)
        with ops.plan("fused"):
            with pytest.raises(RuntimeError, match=r"the fused plan does not fit: rows are packed: \(11, 3\)"):
                padded.run(padded.x[live], padded.target[live])
            with pytest.raises(RuntimeError, match="the fused plan does not fit: forward, .* 15 inputs"):
                wide.run()
    with simulated(processors=2), ops.plan("fused"), pytest.raises(RuntimeError, match="forward, L=1, H=6, D=13"):
        network().run()


def test_what_overflows_is_composed_unless_fused_is_forced():
    plan_of = triton.training._plan_of
    for B, D in ((1 << 30, 13), (6_000_000, 121)):
        many = torch.zeros(1).expand(1, B, 3), torch.zeros(1).expand(1, B, 2)
        with launching(Idle()):
            assert plan_of("forward", *many, D) == Composed()
            with ops.plan("fused"), pytest.raises(RuntimeError, match=f"{B} sequences of 1 steps overflow 32-bit"):
                plan_of("forward", *many, D)


def test_a_refused_launch_is_composed_instead_and_says_so_once():
    given = Network(2, torch.float32, sizes=(2, 3, 6, 2, 3), lengths=torch.tensor([2, 0, 1]))
    grads = torch.randn(2, 3), torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    counting = Counting(refuses=True)
    counting.device = counting.device._replace(processors=4)  # two layers, the head, the loss
    with ops.backend("triton"), launching(counting), mock.patch.object(refused, "_refused", set()):
        with pytest.warns(ops.FallbackWarning) as said:
            got = both_ways(triton, given, grads)
        about = [str(w.message) for w in said if "lstm_mdn_nll" in str(w.message)]
        counted = len(counting.launched)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = both_ways(triton, given, grads)
    assert [text.split(":")[0] for text in about] == [f"lstm_mdn_nll {d} runs layer by layer" for d in DIRECTIONS]
    assert all("too many blocks" in text for text in about)
    assert [name for name in counting.launched if name in FUSED] == FUSED  # asked once
    assert not set(counting.launched[counted:]) & {*FUSED, "lstm_persistent.forward", "lstm_persistent.backward"}
    expected, live = both_ways(reference, given, grads), reference.alive(2, given.lengths)
    for values in (got, again, expected):
        values["raw"] = torch.where(live, values["raw"], 0)  # it may hold anything
    for name, value in got.items():
        assert torch.equal(value, again[name])
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_forced_plan_is_never_replaced():
    given = network()
    with (
        ops.backend("triton"),
        launching(Counting(refuses=True)),
        ops.plan("fused"),
        pytest.raises(launch.LaunchRefusedError, match="too many"),
    ):
        given.run()
    outputs = reference.lstm_mdn_nll(*given.arguments())
    grads = [torch.randn(v.shape) for v in outputs[:3]]
    arguments = given.arguments()
    with (
        launching(Counting(refuses=True)),
        ops.plan("fused"),
        pytest.raises(launch.LaunchRefusedError, match="too many"),
    ):
        triton.lstm_mdn_nll_backward(*grads, *arguments[:6], *outputs[3:], *arguments[6:-1], False, False)
