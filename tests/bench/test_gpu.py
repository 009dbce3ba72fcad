"""docs/gpu.md is what the generator makes, its numbers calculated a second time; `bench.gpu` in all but the GPU."""

import contextlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from fusedmdn.ops import launch, plans

from bench import gpu_page
from bench.gpu import __main__ as command
from bench.gpu import layer, promises, report, suite, table, timings
from bench.gpu.machine import Machine, compilations
from bench.gpu.sizes import Sizes

from ..compile_gate import shipped
from ..conftest import ROOT, Compiling, launching, simulated

TINY = Sizes(
    elements=("float32",),
    hidden=(16,),
    batches=(3,),
    steps=2,
    repeats=3,
    runs=3,
    shapes=((1, 1), (3, 16), (2, 5)),
    without=("torch.compile",),
)


# The page


def test_the_page_is_what_the_generator_makes():
    written = (ROOT / "docs" / "gpu.md").read_text()
    assert written == gpu_page.page(gpu_page.Rows()), f"docs/gpu.md is not up to date: run `{gpu_page.COMMAND}`"


@pytest.fixture(scope="module")
def tables():
    """Rows of the page's tables by the heading above them."""
    found, heading = {}, ""
    for line in (ROOT / "docs" / "gpu.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| "):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: rows[1:] for heading, rows in found.items()}


BANDWIDTH, BF16, TF32, FLOAT32 = 3.35e6, 989.4e6 / 2, 494.7e6 / 2, 66.9e6 / 2  # of an H100, a microsecond


@pytest.mark.parametrize(
    ("title", "e", "rate", "stepwise_rate"),
    [
        ("bfloat16", 2, BF16, BF16),
        ("float32", 4, TF32 / 3, FLOAT32),
        ("float32, TF32 allowed", 4, TF32, TF32),
    ],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_floors_calculated_from_the_notation_alone(tables, title, e, rate, stepwise_rate, direction):
    """From H, B and rows×units·groups as printed, by counting tensors; nothing of cost.py or plans.py but padding."""
    rows = tables[f"{title}, {direction}"]
    assert len(rows) == 12
    for row in rows:
        H, B = int(row[0]), int(row[1])
        hidden, gates, cells = B * H * e, B * 4 * H * e, B * H * 4
        memory = {
            "forward": gates + hidden + gates + cells,  # xw; h; gates and cells kept
            "backward": hidden + gates + 2 * cells + gates,  # grad_h; gates; c before and after; dz
        }[direction]
        products, barriers, launches, per_microsecond = B * 4 * H * H, "0", "2", stepwise_rate
        exchange = 4 * H * H * e + gates + hidden
        if row[2] != "step":
            shape, groups = row[2].split("·")
            R, U = map(int, shape.split("×"))
            P, G = -(-H // U), int(groups)
            assert row[3] == f"{P}×{G}"
            exchange = P * (hidden if direction == "forward" else gates)
            tiles, padded = -(-B // R), float(row[6].split("+ ")[1].rstrip("%"))
            assert tiles * R == B
            assert P * U / H - 1.0005 <= padded / 100 <= 0.05  # of the units, and of the sum
            products *= 1 + padded / 100
            per_microsecond, barriers, launches = rate * P * G / 132, "1", "0"
        by_memory, by_products = memory / BANDWIDTH, products / per_microsecond
        assert float(row[4]) == pytest.approx(memory / 1e6, abs=0.005)
        assert float(row[5]) == pytest.approx(exchange / 1e6, abs=0.005)
        assert float(row[6].split(" +")[0].replace(",", "")) == pytest.approx(products / 1e6, rel=1e-3, abs=0.05)
        floor, which = row[7].split()
        assert float(floor) == pytest.approx(max(by_memory, by_products), rel=1e-3, abs=0.005)
        assert which == ("m" if by_memory >= by_products else "p")
        assert row[-2:] == [barriers, launches]


def test_figures_by_hand(tables):
    """H = 400, B = 64, bf16: 64·400·22 bytes; 25 programs read 64·400·2; 64·4·400² products on 100 of 132."""
    row = tables["bfloat16, forward"][1]
    assert row[:8] == ["400", "64", "16×16·4", "25×4", "0.56", "1.28", "41.0 + 0.0%", "0.17 m"]
    kept = tables["What forward keeps for backward"]
    assert kept == [["bfloat16", "5,600", "2,400"], ["float32", "9,600", "3,200"]]


def test_registers_are_of_the_kernel_that_is_launched():
    """The names under which the page looks figures up are the compile gate's own."""
    device = gpu_page.device_of("sm_90")
    with launching(shipped.Recorder(device)) as recorder:
        for numbers in gpu_page.NUMBERS:
            shipped._record_recurrence(recorder, numbers.label, numbers.dtype, 512)
            for direction in gpu_page.DIRECTIONS:
                for B in gpu_page.PLAN_B:
                    plan = plans.choose(direction, 512, B, numbers.dtype, device, tf32=numbers.tf32)
                    variant = recorder.variants[gpu_page.variant_of(direction, numbers, 512, plan)]
                    assert variant.kernel.endswith(f"lstm_{plan.name}:{direction}")
                    assert variant.constexprs["H"] == 512
                    if plan.name == "persistent":
                        assert variant.constexprs["ROWS"] == plan.rows
                        assert variant.constexprs["UNITS"] == plan.units
                        assert variant.constexprs["PRECISION"] == numbers.precision


def test_what_does_not_fit_is_what_the_planner_steps_through(tables):
    """The bfloat16 sizes of which all batches step, by the table of decisions, are those with a reason."""
    directions = ("forward", "backward")
    stepping, gpu = set(), ""
    for row in tables["What the planner chooses"]:
        gpu = row[0].split(",")[0] or gpu
        chosen = [cell.split(" / ") for cell in row[2:]]  # one for both directions where they are the same
        for k, direction in enumerate(directions):
            if row[1] != "all" and {cell[k % len(cell)] for cell in chosen} == {"step"}:
                stepping.add((gpu, row[1], direction))
    reasons = set()
    for row in tables["What cannot run persistent"]:
        if "bfloat16" in row[0]:
            reasons |= {(row[0].split(",")[0], row[1], direction) for direction in directions if direction in row[2]}
    assert reasons == stepping
    assert reasons


def test_a_kernel_that_the_table_lacks_is_named(tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.json"
    path.write_text('{"triton": "3.7.1", "pairs": {}}')
    monkeypatch.setattr(gpu_page, "Rows", lambda rows=gpu_page.Rows: rows(path))
    assert gpu_page.main(["--out", str(tmp_path / "gpu.md")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("the compile gate's table has no row for 'lstm_persistent.forward bf16 H400 ieee 16x8")
    assert said.endswith("sm_90'; run `python -m tests.compile_gate --refresh`\n")
    assert not (tmp_path / "gpu.md").exists()


# The command


class Ticks:
    """A timer whose milliseconds count up, and which knows what it ran."""

    def __init__(self):
        self.ran = []

    def __call__(self, runs, repeats):
        times = {name: [] for name in runs}
        for repetition in range(repeats):
            for name, run in runs.items():
                run()
                self.ran.append(name)
                times[name].append(float(repetition + 1))
        return times


def recapture(run):
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
        yield Machine(torch.device("cpu"), Ticks(), recapture, once)


def test_the_layer_is_checked_and_timed_in_turn(machine):
    part = timings.lstm(machine, TINY, 16)
    assert part["trouble"] is None
    assert [cell["work"] for cell in part["cells"]] == ["lstm forward", "lstm forward + backward"]
    assert part["cells"][0]["setup"] == {"elements": "float32", "T": 2, "B": 3, "H": 16}
    chosen = part["cells"][0]["chosen"]["forward"]
    assert chosen["name"] == "persistent"
    assert chosen["step"]["memory"] == 3 * 16 * (4 * 4 + 4 + 4 * 4 + 4)  # xw; h; gates and cells, float32
    assert machine.interleaved.ran == ["persistent", "stepwise", "nn.LSTM"] * 6
    for result in (result for cell in part["cells"] for result in cell["results"]):
        assert result["reason"] is None
        assert result["error"] < 1e-5
        assert result["values"] == [1.0, 2.0, 3.0]
        assert [result[key] for key in ("median", "minimum", "percentile_20", "percentile_80")] == [2, 1, 1.4, 2.6]


def test_the_layer_in_bfloat16(machine):
    part = timings.lstm(machine, Sizes(("bfloat16",), (16,), (3,), 2, 2), 16)
    assert part["trouble"] is None
    assert all(result["values"] for result in part["cells"][1]["results"] if result["role"] == "ours")


def test_the_loss_is_checked_and_timed(machine):
    part = timings.mdn_nll(machine, TINY)
    assert part["trouble"] is None
    (cell,) = part["cells"]
    reasons = {result["contender"]: result["reason"] for result in cell["results"]}
    assert reasons["ours"] is None
    assert reasons["eager"] is None
    assert reasons["torch.compile"] == "left out (--without torch.compile)"


def test_what_is_wrong_is_not_timed_and_fails_the_part(machine, monkeypatch):
    monkeypatch.setattr(layer, "planned", lambda run, plan: lambda: {k: v * 1.01 for k, v in run().items()})
    part = timings.lstm(machine, TINY, 16)
    ours, _, peer = part["cells"][0]["results"]
    assert ours["reason"].startswith("Wrong: h: error 0.0")
    assert "over the bound" in ours["reason"]
    assert ours["values"] == []
    assert peer["reason"] is None
    assert "lstm forward, elements float32, T 2, B 3, H 16: persistent: Wrong: h" in part["trouble"]


def test_a_plan_that_does_not_fit_is_no_failure(machine):
    launch.simulator.device = launch.simulator.device._replace(processors=1)
    part = timings.lstm(machine, Sizes(("float32",), (40,), (2,), 2, 2), 40)
    assert part["trouble"] is None
    assert "the persistent plan does not fit" in part["cells"][0]["results"][0]["reason"]
    assert command.attempt(lambda: promises.repeated(machine, Sizes(hidden=(40,), batches=(2,), steps=1))) == {
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
            found = command.attempt(run)
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


def properties():
    return SimpleNamespace(
        name="NVIDIA Some GPU", major=9, minor=0, multi_processor_count=132,
        shared_memory_per_block_optin=232448, total_memory=1 << 36,
    )  # fmt: skip


def test_one_file_whatever_fails(machine, tmp_path, capsys):
    """The shape of the JSON, what is printed, and the exit code."""

    def perform(name):
        if name == "CUDA graph, stepwise":
            return command.attempt(lambda: 1 / 0)
        return (
            command.attempt(command.parts(machine, TINY)[name]) if name != "tests" else {"trouble": None, "passed": 3}
        )

    where = report.describe(properties())
    path = report.path_of(where, tmp_path / "results")
    assert path.name == "gpu-nvidia-some-gpu.json"
    names = [*command.parts(machine, TINY)]
    assert command.run(names, perform, where, path) == 1
    assert [*path.parent.iterdir()] == [path]
    run = json.loads(path.read_text())
    assert run["environment"]["gpu"]["capability"] == [9, 0]
    assert run["environment"]["gpu"]["multiprocessors"] == 132
    assert {"torch", "triton", "cuda", "cudnn"} <= run["environment"]["versions"].keys()
    assert [*run["parts"]] == names == [
        "tests", "compiled variants", "repeated runs", "CUDA graph, persistent", "CUDA graph, stepwise",
        "lstm, H 16", "mdn_nll",
    ]  # fmt: skip
    troubles = {name: part["trouble"] for name, part in run["parts"].items() if part["trouble"]}
    assert troubles == {"CUDA graph, stepwise": "ZeroDivisionError: division by zero"}
    assert "1 / 0" in run["parts"]["CUDA graph, stepwise"]["traceback"]
    assert all(part["seconds"] >= 0 for part in run["parts"].values())
    printed = capsys.readouterr().out
    assert "CUDA graph, stepwise: ZeroDivisionError: division by zero" in printed
    assert "lstm forward, elements float32, T 2, B 3, H 16" in printed
    assert command.run(["tests"], perform, where, path) == 0


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("open(into, 'w').write('{\"trouble\": null}')", {"trouble": None}),
        ("import os; os.abort()", {"trouble": "its process ended with exit code -6 and no results"}),
        ("import time; time.sleep(600)", {"trouble": "did not end in 2 s"}),
    ],
)
def test_a_part_may_crash_or_hang(code, part):
    assert command.apart([sys.executable, "-c", f"import sys; into = sys.argv[-1]; {code}"], 2) == part


def test_without_a_gpu_there_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path / "results")]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"bench.gpu needs a GPU, and torch {torch.__version__} sees none: nothing was run\n"
    assert not printed.out
    assert not [*tmp_path.iterdir()]


def test_precisions_are_put_back():
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [setting.fp32_precision for setting in settings]
    for precision in ("tf32", "ieee"):
        with layer.products(precision):
            assert [setting.fp32_precision for setting in settings] == [precision] * 2
    assert [setting.fp32_precision for setting in settings] == before


def test_failed_tests_are_printed():
    part = {"trouble": "1 of 1 tests failed", "seconds": 1.0, "failures": [{"test": "a::b", "message": "no"}]}
    assert [*table.shown("tests", part)] == ["tests: 1 of 1 tests failed, 1 s", "  a::b: no"]
