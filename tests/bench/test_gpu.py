"""`bench.gpu` in all but the GPU."""

import contextlib
import io
import itertools
import json
import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from fusedmdn.ops import launch
from fusedmdn.ops.triton import training as operators
from rich.console import Console
from typer.testing import CliRunner

from bench.gpu import __main__ as command
from bench.gpu import layer, objective, promises, sampling_promises, suite, table, training_promises
from bench.gpu.accuracy import Wrong
from bench.gpu.machine import Machine, compilations
from bench.gpu.network import PLANS, Network
from bench.gpu.parts import attempt, parts
from bench.gpu.sizes import Sampling, Sizes, Training
from bench.plans import DIRECTIONS
from bench.record import Record
from fusedmdn import ops

from ..conftest import Compiling, launching, simulated

DRAWN = Sampling(elements=("float32",), units=20, checked=2, promised=(17, 2), runs=(("B", 2),), real=(2, 2))
TINY = Sizes(
    elements=("float32",),
    hidden=16,
    batch=3,
    steps=2,
    runs=3,
    shapes=((1, 1), (3, 16), (2, 5)),
    training=Training(promised=("C",), units=16),
    sampling=DRAWN,
)


def recapture(run):
    with mock.patch.object(launch, "capturing", return_value=True):
        outputs = run()

    def replay():
        for name, value in run().items():
            outputs[name].copy_(value)

    return replay, outputs


@contextlib.contextmanager
def once():
    yield {"mdn_nll.forward": 1}


@pytest.fixture
def machine():
    with simulated(race=False):
        yield Machine(torch.device("cpu"), recapture, once)


def test_a_plan_that_does_not_fit_is_no_failure(machine):
    launch.simulator.device = launch.simulator.device._replace(processors=1)
    assert attempt(lambda: promises.repeated(machine, Sizes(hidden=40, batch=2, steps=1))) == {
        "trouble": None,
        "left out": f"the persistent plan does not fit: forward, H=40, torch.bfloat16, ieee, {launch.simulator.device}",
    }


def test_a_refused_launch_fails_every_time(machine):
    class Refusing:
        device = launch.simulator.device

        def __call__(self, *_):
            raise launch.LaunchRefusedError("too many blocks")

    run = layer.planned(layer.ours(1, 2, 16, torch.float32, machine.device).both, "persistent")
    with launching(Refusing()):
        for _ in range(2):
            found = attempt(run)
            assert found["trouble"] == "LaunchRefusedError: too many blocks"


def test_repeated_runs(machine, monkeypatch):
    assert promises.repeated(machine, TINY) == {
        "trouble": None, "T": 2, "B": 3, "H": 16, "runs": 3, "different": {}
    }  # fmt: skip
    seeds = iter(range(100))

    def noisy(run, plan):
        return lambda: {"h": torch.zeros(3) + next(seeds) // 2, "x": torch.tensor([float("nan")])}

    monkeypatch.setattr(layer, "planned", noisy)
    part = promises.repeated(machine, TINY)
    assert part["different"] == {"h": 1}
    assert part["trouble"] == "not bitwise equal: {'h': 1} of 3 runs"


@pytest.mark.parametrize("plan", ["persistent", "stepwise"])
def test_a_graph_is_replayed_on_other_inputs(machine, plan):
    assert promises.graph(machine, TINY, plan)["trouble"] is None
    stuck = machine._replace(capture=lambda run: (lambda: None, run()))
    part = promises.graph(stuck, TINY, plan)
    assert part["different"] == dict.fromkeys(["h", *layer.LEAVES], 1)
    assert part["trouble"].startswith("replay is not eager: {'h': 1")


def test_compilations_are_counted(machine, pretended_gpu):
    """By Triton's own hook, on the path of a GPU's launches."""
    with launching(Compiling()):
        part = promises.compiled(machine._replace(compilations=compilations), TINY)
    assert part["trouble"] is None
    kernels = ["lstm_stepwise.forward", "lstm_stepwise.backward", "lstm_persistent.forward"]
    kernels += ["lstm_persistent.backward", "mdn_nll.forward", "mdn_nll.backward"]
    assert part["variants"] == dict.fromkeys(kernels, 1)


def test_a_kernel_compiled_twice_fails_the_part(machine):
    @contextlib.contextmanager
    def twice():
        yield {"lstm_persistent.forward": 2, "mdn_nll.forward": 1}

    part = promises.compiled(machine._replace(compilations=twice), TINY)
    assert part["trouble"] == "compiled more than once: {'lstm_persistent.forward': 2}"


def test_the_tests_are_counted(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2, 'so it is'\n"
        "@pytest.mark.skip('no GPU')\ndef test_not(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError('gone')\n"
        "def test_broken(broken): pass\n"
    )
    part = suite.run(["-q", "-p", "no:cacheprovider", str(tmp_path)], tmp_path)
    assert part["trouble"] == "2 of 3 tests failed"
    assert (part["passed"], part["failed"], part["skipped"]) == (1, 2, 1)
    assert [failure["test"] for failure in part["failures"]] == ["test_some::test_wrong", "test_some::test_broken"]
    assert part["failures"][0]["message"].startswith("AssertionError: so it is")
    assert part["skips"] == {"no GPU": 1}
    assert suite.run(["--no-such-option"], tmp_path)["trouble"] == "pytest ended with exit code 4 and no results"


TRAINING = "training", "training in a CUDA graph", "training, compiled variants"
SAMPLING = (
    "sampling", "sampling in a CUDA graph", "sampling by the shipped weights", "sampling, compiled variants",
)  # fmt: skip


def test_the_parts(machine):
    assert [*parts(machine, TINY)] == [
        "tests", "compiled variants", "repeated runs", "CUDA graph, persistent", "CUDA graph, stepwise",
        *(f"{name}, {plan}" for plan in objective.PLANS for name in TRAINING),
        *(f"{name}, {plan}" for plan in PLANS for name in SAMPLING), "sampling on another GPU, graph",
    ]  # fmt: skip


SPEAKS = """
import json, os, sys
out, name = os.fdopen(int(sys.argv[-1]), "w"), json.load(sys.stdin)["part"]
if name == "dies": os.abort()
if name == "hangs": import time; time.sleep(600)
trouble = "it is so" if name == "fails" else None
if name != "mute": print(json.dumps({"part": {"trouble": trouble, "runs": 3}}), file=out)
"""


def test_one_file_whatever_fails(tmp_path):
    """Its shape, what is printed, and what is said of the whole."""
    path, printed = tmp_path / "results" / "gpu.json", io.StringIO()
    record, screen = Record(path, {"gpu": {"name": "Some GPU"}}), Console(file=printed, width=80)
    names = ["goes well", "fails", "dies", "hangs", "mute"]

    def kept(*names, at_once=1):
        tasks = {name: {"part": name} for name in names}
        return command.promises(tasks, [sys.executable, "-c", SPEAKS], record, screen, 2.0, 1, at_once)

    assert not kept(*names)
    assert [*path.parent.iterdir()] == [path]
    run = json.loads(path.read_text())
    assert run["environment"]["gpu"] == {"name": "Some GPU"}
    assert {name: part["trouble"] for name, part in run["parts"].items()} == {
        "goes well": None,
        "fails": "it is so",
        "dies": "its process killed by signal 6 (SIGABRT)",
        "hangs": "its process said nothing for 2 s and was ended",
        "mute": "it had no results",
    }
    assert all(part["seconds"] >= 0 for part in run["parts"].values())
    assert "goes well: as it should be, runs 3, 0 s\nfails: it is so, runs 3, 0 s" in printed.getvalue()
    assert kept("goes well")
    assert not kept(*names, at_once=5)
    again = json.loads(path.read_text())["parts"]
    assert [*again] == names
    assert {name: part["trouble"] for name, part in again.items()} == {
        name: part["trouble"] for name, part in run["parts"].items()
    }


def test_an_interrupt_ends_what_runs_and_begins_nothing_more(tmp_path):
    class Interrupted(Record):
        def write(self):
            raise KeyboardInterrupt

    tasks = {name: {"part": name} for name in ("goes well", "hangs", "fails")}
    record = Interrupted(tmp_path / "gpu.json", {})
    with pytest.raises(KeyboardInterrupt):
        command.promises(tasks, [sys.executable, "-c", SPEAKS], record, Console(file=io.StringIO()), 500.0, 1, 2)
    assert list(record.run["parts"]) == ["goes well"]


def test_an_exception_is_the_parts_trouble():
    part = attempt(lambda: 1 / 0)
    assert part["trouble"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in part["traceback"]


def test_without_a_gpu_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(command.app, ["--out", str(tmp_path / "results")])
    assert done.exit_code == 2
    assert done.stderr == f"bench.gpu needs a GPU, and torch {torch.__version__} sees none: nothing was run\n"
    assert not done.stdout
    assert not [*tmp_path.iterdir()]


def test_failed_tests_are_printed():
    part = {"trouble": "1 of 1 tests failed", "seconds": 1.0, "failures": [{"test": "a::b", "message": "no"}]}
    assert [*table.shown("tests", part)] == ["tests: 1 of 1 tests failed, 1 s", "  a::b: no"]


# Training


@pytest.mark.parametrize("plan", objective.PLANS)
def test_training_keeps_its_promises(machine, plan):
    launch.simulator.device = launch.simulator.device._replace(processors=16)  # 3 layers by 2, 8 of the head, the loss
    sizes = replace(TINY, elements=("bf16",), runs=2, training=Training(promised=("B",), units=16))
    names = ["values", "repeated"], ["replayed"]
    for look, expected in zip((training_promises.plain, training_promises.captured), names, strict=True):
        part = look(machine, sizes, plan)
        assert part["trouble"] is None
        assert part["promises"] == {f"{name}, B, bf16": None for name in expected}
        assert [chosen["name"] for chosen in part["plans"]["B, bf16"].values()] == [plan] * 2


def test_what_is_trained_on_is_ragged_and_padded_with_nan():
    """The same for a seed."""
    sizes = "B", 16, "bf16", (9, 5), torch.device("cpu")
    ours, same, other = (objective.Objective(*sizes, ragged=True, seed=seed) for seed in (0, 0, 1))
    assert len(set(ours.lengths.tolist())) > 1
    assert torch.equal(ours.rows.isnan()[..., 0], torch.arange(9)[:, None] >= ours.lengths)
    assert ours.leaves.keys() == {"rows", "lengths", *ours.parameters}
    assert not promises.unequal(ours.leaves, same.leaves)
    assert promises.unequal(ours.leaves, other.leaves) == [*ours.leaves]


BROKEN_LOSS = {
    "values": (lambda nll, run: nll * 1.001, "Wrong: nll: error "),
    "repeated": (lambda nll, run: nll.nextafter(nll + (run == 1)), "not bitwise equal: {'nll': 1} of 3 runs"),
    "replayed": (lambda nll, run: nll * run, "replay is not eager: {'nll': 2} of 2 inputs"),
}


@pytest.mark.parametrize("name", BROKEN_LOSS)
def test_a_broken_promise_of_training_is_named(machine, monkeypatch, name):
    change, trouble = BROKEN_LOSS[name]
    kernels, runs = operators.KERNELS, itertools.count()
    wrong = kernels._replace(mdn_nll=lambda *given: change(kernels.mdn_nll(*given), next(runs)))
    monkeypatch.setattr(operators, "KERNELS", wrong)
    part = training_promises.every({name: getattr(training_promises, name)}, machine, TINY, "composed")
    assert part["trouble"].startswith(f"{name}, C, float32: {trouble}")


def test_a_graph_of_training_that_reads_no_new_inputs(machine):
    stuck = machine._replace(capture=lambda run: (lambda: None, run()))
    trouble = training_promises.captured(stuck, TINY, "composed")["trouble"]
    assert trouble.startswith("replayed, C, float32: replay is not eager: {'nll': 1, 'h': 1, 'c': 1, 'rows': 1, ")


@pytest.mark.parametrize("plan", objective.PLANS)
def test_compilations_of_training_are_counted(machine, pretended_gpu, plan):
    compiling = Compiling()
    compiling.device = compiling.device._replace(processors=6)
    with launching(compiling):
        part = training_promises.compiled(machine._replace(compilations=compilations), TINY, plan)
    assert part["trouble"] is None
    kernels = ["lstm_stepwise", "lstm_persistent", "mdn_nll"] if plan == "composed" else ["lstm_mdn_nll"]
    assert part["variants"] == {f"{kernel}.{d}": 1 for kernel in kernels for d in DIRECTIONS}


def test_training_that_does_not_fit_is_no_failure(machine):
    launch.simulator.device = launch.simulator.device._replace(processors=1)
    reason = "the fused plan does not fit: forward, L=2, H=16, D=13, 3 inputs, torch.float32"
    part = training_promises.plain(machine, TINY, "fused")
    assert (part["trouble"], part["promises"]) == (None, {})
    assert part["left out"].startswith(reason)
    part = attempt(lambda: training_promises.compiled(machine, TINY, "fused"))
    assert part["trouble"] is None
    assert part["left out"].startswith("the fused plan does not fit")


# Sampling


@pytest.mark.parametrize("model", ["B", "ragged"])
@pytest.mark.parametrize("plan", PLANS)
def test_sampling_keeps_its_promises(machine, plan, model):
    half = replace(TINY, sampling=replace(DRAWN, elements=("bf16",), runs=((model, 2),)))
    names = ["values", "repeated", "batches", "calls", "to the host"], ["replayed", "no seed"]
    for look, expected in zip((sampling_promises.plain, sampling_promises.captured), names, strict=True):
        part = look(machine, half, plan)
        assert part["trouble"] is None
        assert part["promises"] == {f"{name}, {model}, bf16": None for name in expected}
        assert part["plans"][f"{model}, bf16"]["name"] == plan
        assert part["plans"][f"{model}, bf16"].get("groups", 2) == 2


def test_the_ragged_network_is_what_it_should_be():
    """Some of its sequences end, and the last program of its resident plan has fewer units than the others."""
    network = Network("ragged", None, "float32", torch.device("cpu"))
    B, T = Sampling().promised
    with ops.backend("reference"):
        assert 0 < int(network.draw(network.start(B), T, **network.prime(B))[1].done.sum()) < B
    for elements in ("bf16", "float32"):
        network = Network("ragged", None, elements, torch.device("cpu"))
        with simulated(processors=132), ops.plan("resident"):
            plan = network.plan(B)
        assert plan.programs > 1
        assert network.model.hidden_size % plan.units


def test_counts_that_do_not_follow_from_the_rows_are_wrong(machine):
    network = Network("ragged", 20, "float32", machine.device)
    drawn = network.draw(network.start(3), 2)[0]
    network.deviation(drawn)
    with pytest.raises(Wrong, match=r"not as the rows say: \['done'\]"):
        network.deviation(drawn | {"done": ~drawn["done"]})


def test_the_shipped_weights_draw_as_the_reference(machine, monkeypatch):
    part = sampling_promises.real(machine, TINY, "rows")
    assert part == {"trouble": None, "B": 2, "rows": 4, "different": 0, "ended": 0}
    monkeypatch.setattr(sampling_promises, "SAME", 0.0)
    part = sampling_promises.real(machine, TINY, "rows")
    assert part["trouble"] == "4 of 4 rows are not the reference's, 1 are allowed"


def test_compilations_of_sampling_are_counted(machine, pretended_gpu):
    with launching(Compiling()):
        part = sampling_promises.compiled(machine._replace(compilations=compilations), TINY, "resident")
    assert part["trouble"] is None
    assert part["variants"] == {"generate_resident.generate": 1}


def test_a_machine_of_one_gpu_has_no_other(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert sampling_promises.elsewhere(machine, TINY) == {
        "trouble": None,
        "left out": "it takes two GPUs, of which there are 1",
    }


def broken(monkeypatch, change):
    """What is drawn is changed by a function of points and arguments."""
    draw = Network.draw

    def changed(network, begin, steps):
        outputs, state = draw(network, begin, steps)
        return outputs | {"points": change(outputs["points"], begin, steps)}, state

    monkeypatch.setattr(Network, "draw", changed)


STRETCHED = torch.tensor([1.001, 1.001, 1.0])
RUNS = iter(range(1000))
BROKEN = {
    "values": lambda points, begin, steps: points * STRETCHED,
    "repeated": lambda points, begin, steps: points.nextafter(points + (next(RUNS) == 0)),
    "batches": lambda points, begin, steps: points.nextafter(points + (points.shape[1] == 1)),
    "calls": lambda points, begin, steps: points.nextafter(points + (steps == 1)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_named(machine, monkeypatch, name):
    broken(monkeypatch, BROKEN[name])
    promise = getattr(sampling_promises, name)
    promises = {name: promise, "to the host": sampling_promises.to_the_host}
    part = sampling_promises.every(promises, machine, DRAWN, "rows")
    assert part["trouble"].startswith(f"{name}, B, float32: ")
    assert "points" in part["trouble"]
    assert part["promises"]["to the host, B, float32"] is None


def test_other_choices_than_the_references_are_wrong(machine, monkeypatch):
    broken(monkeypatch, lambda points, begin, steps: torch.where(points[..., :1] > 0, points + 1, points))
    part = sampling_promises.every({"values": sampling_promises.values}, machine, DRAWN, "rows")
    assert "choices are not the reference's, 1 are allowed" in part["trouble"]


def test_points_on_the_host_must_be_the_same(machine, monkeypatch):
    generate = ops.generate_chunked

    def moved(*given, to, **options):
        points, lengths, state = generate(*given, to=to, **options)
        return points + (to == "cpu"), lengths, state

    monkeypatch.setattr(ops, "generate_chunked", moved)
    part = sampling_promises.every({"to the host": sampling_promises.to_the_host}, machine, DRAWN, "rows")
    assert part["trouble"] == "to the host, B, float32: not bitwise equal: ['points']"


def test_a_graph_that_reads_no_new_seed_and_one_without(machine):
    stuck = machine._replace(capture=lambda run: (lambda: None, run()))
    part = sampling_promises.captured(stuck, TINY, "rows")
    assert part["promises"]["replayed, B, float32"].startswith("replay is not a plain call: {'points': 2")
    assert part["promises"]["no seed, B, float32"] == "captured"

    def refuse(run):
        raise RuntimeError("CUDA error: 900\nand more")

    part = sampling_promises.captured(machine._replace(capture=refuse), TINY, "rows")
    assert part["promises"] == {
        "replayed, B, float32": "RuntimeError: CUDA error: 900",
        "no seed, B, float32": "refused for another reason: CUDA error: 900",
    }


def test_sampling_that_does_not_fit_is_no_failure(machine):
    launch.simulator.device = launch.simulator.device._replace(processors=1)
    part = sampling_promises.plain(machine, TINY, "resident")
    assert part["trouble"] is None
    assert part["left out"].startswith("the resident plan does not fit: L=3, H=20, D=121, torch.float32")
    assert part["promises"] == {}
