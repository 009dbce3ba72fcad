"""`fusedmdn tune`: measured in the simulator, with clocks that say what a test wants to hear."""

import collections
import contextlib
import itertools
import json
import re
from unittest import mock

import pytest
import torch
from fusedmdn.ops import forced, launch, plans, tuned
from fusedmdn.ops.triton import recurrence, refused
from typer.testing import CliRunner

from fusedmdn import tune
from fusedmdn.cli import app

from ..conftest import GPU, launching
from ..simulator import Simulator

CPU, NAME = torch.device("cpu"), "Simulated GPU"
DEVICE = plans.Device("sm_90", 8, 227 * 1024)
IDENTITIES = [("persistent", 16, 8), ("persistent", 16, 16), ("persistent", 32, 16), ("stepwise", 0, 0)]
ROUNDS = 5
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@contextlib.contextmanager
def simulated():
    """CPU tensors run the kernels in the simulator, which looks for no races here."""
    simulator = Simulator(race=False)
    simulator.device = DEVICE
    with launching(simulator):
        yield


@pytest.fixture(autouse=True)
def _nothing_refused(monkeypatch):
    monkeypatch.setattr(refused, "_refused", set())


def clock(fastest):
    """A timer by which a run of this plan takes 1 s and of others 2, but for its first ones and one more."""
    runs = collections.Counter()

    def seconds(run):
        plan = plans.identity(forced.plan_of("lstm"))
        nth = runs[plan] % (tune.WARM_UP + ROUNDS)
        runs[plan] += 1
        if nth <= tune.WARM_UP:
            return 100.0 if plan == fastest else 0.1
        return 1.0 if plan == fastest else 2.0

    return seconds


def measured(path, sizes, timer, name=NAME):
    """With the simulator that is set."""
    return list(tune.tune(sizes, CPU, name, path, steps=2, rounds=ROUNDS, timer=timer))


def chosen(path, size, device=DEVICE):
    _, dtype, tf32 = tune.PRECISIONS[size.precision]
    return plans.choose(size.direction, size.H, size.B, dtype, device, tf32=tf32, tuned=tuned.read(path))


def check_written_and_taken(path, sizes, fastest):
    with simulated():
        results = measured(path, sizes, clock(fastest))
    assert [result.size for result in results] == sizes
    entries = json.loads(path.read_text())["plans"]
    for result, entry in zip(results, entries, strict=True):
        every = tune.candidates(result.size, DEVICE)
        assert result.static == tune.static_choice(result.size, DEVICE)
        assert result.medians == {plan: 0.5 if plans.identity(plan) == fastest else 1.0 for plan in every}  # of 2 steps
        assert not result.left_out
        assert plans.identity(chosen(path, result.size)) == fastest
        assert entry["microseconds"] == {tune.title(plan): 1e6 * seconds for plan, seconds in result.medians.items()}


@pytest.mark.parametrize("fastest", IDENTITIES)
def test_the_fastest_is_written_and_taken(tmp_path, fastest):
    sizes = tune.sizes([20], [40], ["bf16"])
    assert set(IDENTITIES) == set(map(plans.identity, tune.candidates(sizes[0], DEVICE)))
    check_written_and_taken(tmp_path / "cache" / "plans.json", sizes, fastest)


def test_every_precision(tmp_path):
    sizes = tune.sizes([20], [3], tune.PRECISIONS)
    assert len(sizes) == 8
    check_written_and_taken(tmp_path / "plans.json", sizes, ("persistent", 16, 16))
    assert torch.backends.cuda.matmul.fp32_precision == "none"


@pytest.mark.parametrize(("precision", "setting"), [("tf32", "tf32"), ("float32", "ieee")])
def test_plans_take_turns_under_torchs_setting(tmp_path, precision, setting):
    seen = []

    def timer(run):
        assert torch.backends.cuda.matmul.fp32_precision == setting
        seen.append(forced.plan_of("lstm"))
        return 1.0

    size = tune.Size("forward", 20, precision, 3)
    every = tune.candidates(size, DEVICE)
    with simulated():
        measured(tmp_path / "plans.json", [size], timer)
    timed = seen[len(every) * tune.WARM_UP :]
    rounds = [timed[i : i + len(every)] for i in range(0, len(timed), len(every))]
    assert len(rounds) == ROUNDS
    assert all(set(turn) == set(every) for turn in rounds)
    assert {turn[0] for turn in rounds} == set(every)


def test_a_precision_must_be_known():
    with pytest.raises(ValueError, match="precision must be one of bf16, fp16, tf32, float32; got 'half'"):
        tune.sizes([20], [3], ["half"])
    assert len(tune.sizes([20, 20], [3], ["bf16"])) == 2


@pytest.mark.parametrize("direction", tune.DIRECTIONS)
@pytest.mark.parametrize("precision", tune.PRECISIONS)
@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_wrong_plan_is_left_out_and_named(tmp_path, direction, precision, wrong):
    def launch_noisily(name, grid, arguments, options):
        launch.launch(name, grid, arguments, options)
        if (arguments.get("ROWS"), arguments.get("UNITS")) == (16, 16):
            arguments["h" if direction == "forward" else "dz"][-1, -1, -1] += wrong

    size = tune.Size(direction, 20, precision, 3)
    with simulated(), mock.patch.object(recurrence, "launch", launch_noisily):
        (result,) = measured(tmp_path / "plans.json", [size], clock(("persistent", 16, 16)))
    assert [tune.title(plan) for plan in result.left_out] == ["persistent 16x16"]
    (reason,) = result.left_out.values()
    assert re.fullmatch(r"wrong: \S+ off the reference in float64, \S+ at most", reason)
    (entry,) = json.loads((tmp_path / "plans.json").read_text())["plans"]
    assert entry["left_out"] == {"persistent 16x16": reason}
    every = map(tune.title, tune.candidates(size, DEVICE))
    assert entry["microseconds"].keys() == set(every) - {"persistent 16x16"}
    assert plans.identity(chosen(tmp_path / "plans.json", size)) == ("persistent", 16, 8)


class Failing(Simulator):
    """A device on which plans of so many units fail."""

    device = DEVICE

    def __init__(self, error, units=8):
        super().__init__(race=False)
        self.error, self.units = error, units

    def __call__(self, kernel, grid, arguments, options=None):
        if arguments.get("UNITS") == self.units:
            raise self.error
        return super().__call__(kernel, grid, arguments)


@pytest.mark.parametrize("direction", tune.DIRECTIONS)
def test_a_refused_plan_is_left_out_every_time(tmp_path, direction):
    """Not counted as what runs in its place, the second time neither, when the operator is silent about it."""
    size = tune.Size(direction, 20, "bf16", 3)
    with launching(Failing(launch.LaunchRefusedError("too many blocks in cooperative launch"))):
        for _ in range(2):
            (result,) = measured(tmp_path / "plans.json", [size], clock(("persistent", 16, 8)))
            assert [tune.title(plan) for plan in result.left_out] == ["persistent 16x8"]
            assert "too many blocks in cooperative launch" in next(iter(result.left_out.values()))
    assert plans.identity(chosen(tmp_path / "plans.json", size)) == ("persistent", 16, 16)


def test_a_plan_that_crashes_is_left_out_and_a_device_that_does_ends_it(tmp_path):
    path, sizes = tmp_path / "plans.json", tune.sizes([20], [3], ["bf16"])
    with launching(Failing(RuntimeError("misaligned address"))):
        results = measured(path, sizes, clock(("persistent", 16, 8)))
        for result in results:
            assert list(result.left_out.values()) == ["RuntimeError: misaligned address"]
        with (
            mock.patch.object(tune, "_usable", return_value=False),
            pytest.raises(tune.TuneError, match="the device failed in plan persistent 16x8: RuntimeError: misaligned"),
        ):
            measured(path, sizes, clock(("persistent", 16, 8)))
    assert tune._usable(CPU)


def test_a_size_that_does_not_fit_in_memory_is_not_written(tmp_path):
    def arguments(size, T, device, original=tune._arguments):
        if size.B == 4:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return original(size, T, device)

    sizes = [tune.Size("forward", 20, "bf16", B) for B in (4, 3)]
    with simulated(), mock.patch.object(tune, "_arguments", arguments):
        none, some = measured(tmp_path / "plans.json", sizes, clock(("stepwise", 0, 0)))
    assert not none.medians
    assert set(none.left_out.values()) == {"OutOfMemoryError: tried to allocate 9 GiB"}
    assert some.medians
    assert [e["B"] for e in json.loads((tmp_path / "plans.json").read_text())["plans"]] == [3]


def test_sizes_measured_before_are_kept(tmp_path):
    path = tmp_path / "plans.json"
    first, second = tune.sizes([20], [3], ["bf16"])
    with simulated():
        measured(path, [first, second], clock(("persistent", 16, 8)))
        before = json.loads(path.read_text())
        with mock.patch.object(tuned.load, "cache_clear") as used_at_once:
            measured(path, [first], clock(("persistent", 16, 16)))
    after = json.loads(path.read_text())
    used_at_once.assert_called_once()
    assert len(after["plans"]) == 2
    assert before["plans"][1] in after["plans"]
    assert plans.identity(chosen(path, first)) == ("persistent", 16, 16)
    assert plans.identity(chosen(path, second)) == ("persistent", 16, 8)
    assert not list(tmp_path.glob(".*.tmp"))


def unmeasured(run):
    raise AssertionError("something was measured")


GOOD = {"direction": "forward", "H": 20, "precision": "tf32", "B": 3, "plan": "stepwise", "rows": 0, "units": 0}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"plans": []}', '{"device": "Simulated GPU", "triton": "3", "plans": 3}', "\N{SNOWMAN}"]
    + [
        json.dumps({"device": NAME, "triton": "3", "plans": [entry]})
        for entry in ({}, [], GOOD | {"H": "20"}, GOOD | {"plan": "eager"}, GOOD | {"precision": "ieee"})
    ],
)
def test_a_damaged_file_is_refused_and_untouched(tmp_path, text):
    path = tmp_path / "plans.json"
    path.write_bytes(text.encode("utf-16"))  # not even text
    if text.isascii():
        path.write_text(text)
    before = path.read_bytes()
    with simulated(), pytest.raises(tuned.PlansError, match=r"plans\.json is damaged .*; delete it to measure anew"):
        measured(path, tune.sizes([20], [3], ["bf16"]), unmeasured)
    assert path.read_bytes() == before


def test_a_file_of_another_device_is_refused(tmp_path):
    path = tmp_path / "plans.json"
    with simulated():
        measured(path, tune.sizes([20], [3], ["bf16"]), clock(("stepwise", 0, 0)))
        before = path.read_bytes()
        with pytest.raises(tuned.PlansError, match="was measured on Simulated GPU with .*, this is Another with"):
            measured(path, tune.sizes([20], [3], ["bf16"]), unmeasured, name="Another")
    assert path.read_bytes() == before


def test_an_interrupt_keeps_what_is_complete(tmp_path):
    path, sizes, inner = tmp_path / "plans.json", tune.sizes([20], [3, 4], ["bf16"]), clock(("persistent", 16, 8))
    seen = []

    def timer(run):
        if len(seen) == 2 and forced.plan_of("lstm").name == "stepwise":
            raise KeyboardInterrupt
        return inner(run)

    with simulated(), pytest.raises(KeyboardInterrupt):
        for result in tune.tune(sizes, CPU, NAME, path, steps=2, rounds=ROUNDS, timer=timer):
            seen.append(result)
    assert [r.size for r in seen] == sizes[:2]
    assert len(json.loads(path.read_text())["plans"]) == 2
    assert plans.identity(chosen(path, sizes[0])) == ("persistent", 16, 8)
    assert not list(tmp_path.glob(".*.tmp"))
    assert forced.plan_of("lstm") is None


# The command


def call(*words, code=0):
    result = runner.invoke(app, ["tune", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_help_says_where_the_file_lies():
    out = " ".join(call("--help").split())
    for words in ("plans-DEVICE-triton-VERSION.json", "$FUSEDMDN_CACHE", "$XDG_CACHE_HOME", "~/.cache", "--dry-run"):
        assert words in out


@pytest.mark.skipif(bool(GPU), reason="there is a GPU")
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_without_a_gpu(words):
    assert re.fullmatch(r"error: device 'cuda' cannot be used: .*\n", call(*words, code=2))


def test_what_cannot_be_measured_is_one_line(monkeypatch, tmp_path):
    assert call("--device", "cpu", code=2) == (
        "error: plans are measured on a GPU, not on 'cpu'; --device is cuda, or cuda:1, …\n"
    )
    monkeypatch.setattr(launch, "problem", lambda: "Triton is not installed: pip install 'fusedmdn[gpu]'")
    with pytest.raises(tune.TuneError, match="Triton is not installed"):
        tune.gpu_name(torch.device("cuda"))


@pytest.fixture
def simulated_command(monkeypatch, tmp_path):
    """`fusedmdn tune --device cpu`, as on a GPU; gives the file's path."""
    monkeypatch.setenv("FUSEDMDN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "gpu_name", lambda device: NAME)
    monkeypatch.setattr(tune, "cuda_timer", lambda device: clock(("persistent", 16, 8)))
    with simulated():
        yield tuned.path_of(NAME)


OPTIONS = ("--device", "cpu", "--hidden", 20, "--batch", 3, "--steps", 2, "--rounds", ROUNDS)


def test_the_command(simulated_command):
    out = call(*OPTIONS, "--precision", "bf16", "--precision", "float32")
    for precision, direction in itertools.product(("bf16", "float32"), tune.DIRECTIONS):
        row = rf"20\W+3\W+{precision}\W+{direction}\W+persistent 16x8\W+500000\.00\W+persistent 16x16\W+1000000\.00"
        assert re.search(row, out)
    assert f"4 of 4 sizes written to {simulated_command}\n" in out
    size = tune.Size("forward", 20, "float32", 3)
    assert plans.identity(chosen(simulated_command, size)) == ("persistent", 16, 8)


def test_the_command_names_what_is_left_out(simulated_command):
    with launching(Failing(RuntimeError("misaligned\naddress"), units=16)):
        out = call(*OPTIONS, "--precision", "bf16")
    expected = "forward, H=20, bf16, B=3: persistent 16x16 is left out: RuntimeError: misaligned address\n"
    assert expected in out
    assert re.search(r"persistent 16x16\W+left out", out)


def test_a_dry_run_writes_nothing(simulated_command, monkeypatch):
    monkeypatch.setattr(tune, "cuda_timer", lambda device: unmeasured)
    out = call(*OPTIONS, "--dry-run")
    assert re.search(r"20\W+3\W+bf16\W+forward\W+persistent 16x8, persistent 16x16, persistent 32x16, stepwise", out)
    assert f"4 sizes; the choices would be written to {simulated_command}\n" in out
    assert not simulated_command.parent.exists()


def test_the_command_refuses_a_damaged_file(simulated_command):
    simulated_command.parent.mkdir()
    simulated_command.write_text("{")
    for words in ((), ("--dry-run",)):
        out = call(*OPTIONS, *words, code=2)
        assert re.fullmatch(r"error: \S+\.json is damaged \(.*\); delete it to measure anew\n", out)
    assert simulated_command.read_text() == "{"


def test_an_interrupted_command_says_what_is_kept(simulated_command, monkeypatch):
    inner, count = clock(("persistent", 16, 16)), itertools.count()

    def timer(run):
        if next(count) == 40:
            raise KeyboardInterrupt
        return inner(run)

    monkeypatch.setattr(tune, "cuda_timer", lambda device: timer)
    result = runner.invoke(app, ["tune", *map(str, OPTIONS), "--precision", "bf16"])
    assert result.exit_code not in (0, 2)
    assert f"1 of 2 sizes written to {simulated_command}\n" in result.output


@pytest.mark.skipif(not GPU, reason="there is no GPU")
def test_on_a_gpu(tmp_path):
    path, sizes = tmp_path / "plans.json", tune.sizes([64], [16], ["bf16", "float32"])
    for result in tune.tune(sizes, torch.device("cuda"), "gpu", path, steps=10, rounds=3):
        assert not result.left_out
        assert all(0 < seconds < 1 for seconds in result.medians.values())
    assert len(tune.read(path, "gpu")) == len(sizes)
