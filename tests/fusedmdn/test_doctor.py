"""`fusedmdn doctor`: a healthy machine is good, and every kind of trouble is found and named, with what to do."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import _backend, _cpu, forced, launch
from rich.console import Console
from typer.testing import CliRunner

from fusedmdn import checkpoint, cli, doctor
from fusedmdn.doctor import Network, compared, examine, installation
from fusedmdn.doctor.specimens import CALLS, Inputs, Sizes

from ..conftest import ROOT, simulated

CPU = torch.device("cpu")
SMALL, TINY = Sizes(5, 9, 12, 3), Sizes(2, 5, 9, 2)
NETWORK = Network(9, 2, 2, (1, 3), 6, (2, 3))
OUTPUTS = [(name, output) for name, call in CALLS.items() for output in call(Inputs(TINY, CPU, torch.float32, True))[1]]


def findings(sizes=SMALL):
    return list(examine("cpu", sizes, NETWORK))


def problems(found):
    return [problem for finding in found for problem in finding.problems]


def command(*words):
    result = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(cli.app, ["doctor", "--device", "cpu", *words])
    return result.exit_code, result.output


def replace(monkeypatch, operator, function, backend="cpu"):
    """The operator runs `function(real, *arguments)`."""
    real = _backend._table[operator][backend]
    monkeypatch.setitem(_backend._table[operator], backend, lambda *arguments: function(real, *arguments))


def wrong(operator, output):
    """Of an operator: the largest number of an output is off by a thousandth, or a whole one by one."""
    calls = [CALLS[operator](Inputs(TINY, CPU, torch.float32, full)) for full in (False, True)]
    names = {len(call.outputs): call.outputs for call in calls}  # with and without peepholes

    def function(real, *arguments):
        outputs = real(*arguments)
        tensors = list(compared._flat(outputs))
        changed = dict(zip(names[len(tensors)], tensors, strict=True)).get(output, torch.empty(0))
        value = changed.flatten()
        if value.dtype == torch.bool:
            value[0] = ~value[0]
        elif not value.is_floating_point():
            value[0] += 1
        elif len(value):
            value[value.nan_to_num().abs().argmax()] *= 1.001
        changed.copy_(value.view_as(changed))
        return outputs

    return function


# A healthy machine


def test_a_healthy_machine_is_good_in_less_than_a_minute(tmp_path):
    started, file = time.monotonic(), tmp_path / "doctor.json"
    code, out = command("--json", str(file))
    assert code == 0, out
    assert time.monotonic() - started < 60
    assert out.splitlines()[-1] == "all good"
    assert "what is wrong" not in out
    for choice in ops.report():
        if choice.device == "cpu":
            assert re.search(rf"^  {choice.operator} +(C\+\+|PyTorch) +float32 0\.\d\d", out, re.MULTILINE), choice
    assert re.search(r"lstm_backward +C\+\+ +float32 0\.\d\d  bf16 0\.\d\d$", out, re.MULTILINE)
    assert f"torch                  {torch.__version__}, built" in out
    assert f"C++ kernels            {_cpu.isa()}, of {', '.join(_cpu.isas())}\n" in out
    assert re.search(r"C\+\+ library +/.*_cpu\S*\.so$", out, re.MULTILINE)
    assert re.search(r"sampling float32 +3x400: [\d,]+ at batch 1, [\d,]+ at batch 64", out)
    assert re.search(r"training float32 +3x400, 16 sequences of 50: [\d,]+", out)
    written = json.loads(file.read_text())
    assert written["good"] is True
    lines = [f"  {finding['name']:22} {finding['value']}" for finding in written["findings"]]
    assert [line for line in out.splitlines() if line.startswith("  ")] == lines


def test_every_operator_is_compared():
    assert {choice.operator for choice in ops.report()} == {compared.STREAM, *CALLS}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("operator", CALLS)
def test_calls_are_what_they_are_said_to_be(operator, full):
    """Outputs have names; ragged lengths, peepholes, skip connections, clips, both pens."""
    call = CALLS[operator](Inputs(SMALL, CPU, torch.float32, full))
    outputs = list(compared._flat(getattr(torch.ops.fusedmdn, operator)(*call.arguments)))
    assert len(outputs) == len(call.outputs) == len(set(call.outputs))
    tensors = list(compared._flat([v for v in call.arguments if isinstance(v, (torch.Tensor, list))]))
    lengths = [v for v in tensors if v.dtype == torch.int64 and v.shape == (9,) and v.any()]
    assert bool(lengths) == full
    assert all((v.min(), v.max()) == (0, 5) for v in lengths)
    assert any(v.isnan().any() for v in tensors) == (full and operator not in ("lstm_layer", "lstm_gates"))
    if operator != "generate" and not operator.startswith("mdn"):
        assert any(v.shape == (3, 12) for v in tensors) == full
    if "mdn" in operator or operator == "generate":
        assert ("categorical" if full else "bernoulli") in call.arguments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_seeds_would_be_as_good(monkeypatch, dtype):
    """That a healthy machine is found good is no luck."""
    for seed in (2, 3):
        monkeypatch.setattr("fusedmdn.doctor.specimens.SEED", seed)
        for operator in CALLS:
            found = compared.deviations(operator, CPU, dtype, Sizes())
            assert not [name for name, deviation in found.items() if deviation.excessive], (operator, seed)


def test_a_pipe_gets_whole_lines_and_a_terminal_wrapped_ones(monkeypatch):
    text = "word " * 40
    problem = installation.Problem(f"{text}is wrong", f"{text}is to be done")
    found = [installation.Finding("part", "name", f"{text}end", (problem,))]
    monkeypatch.setattr(doctor, "examine", lambda device: iter(found))
    code, out = command()
    assert code == 1
    assert out.splitlines() == [
        "part", f"  {'name':22} {text}end", "what is wrong", f"  {text}is wrong", f"    {text}is to be done"
    ]  # fmt: skip
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(cli.machine, "console", console)
    command()
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == " ".join(out.split())


def test_what_it_warns_of_is_told_once():
    def examination():
        for message in ("lstm runs step by step: refused", "lstm runs step by step: refused"):
            warnings.warn(message, ops.FallbackWarning, stacklevel=1)
        warnings.warn("lstm on mps runs the PyTorch reference: no kernels", ops.FallbackWarning, stacklevel=1)
        yield installation.Finding("part", "name", "value")

    found = list(doctor._safely("part", "name", examination))
    assert [finding.value for finding in found] == ["value", "note: lstm runs step by step: refused"]


# What can be wrong with operators


@pytest.mark.parametrize(("operator", "output"), OUTPUTS)
def test_a_wrong_output_is_named(monkeypatch, operator, output):
    replace(monkeypatch, operator, wrong(operator, output))
    (finding,) = doctor._operator("part", operator, CPU, SMALL)
    (in_float32, *_) = finding.problems
    assert in_float32.wrong.startswith(f"{operator} on cpu in float32 deviates: ")
    assert re.search(rf"(deviates: |; ){re.escape(output)} by [\d.e+-]+, [\d.e+-]+ is allowed", in_float32.wrong)
    assert 'with fusedmdn.ops.backend("reference"):' in in_float32.remedy
    assert "report it" in in_float32.remedy


@pytest.mark.parametrize("normals", [False, True])
def test_a_wrong_random_stream_is_named(monkeypatch, normals):
    def function(real, *arguments):
        out = real(*arguments)
        return torch.where(torch.tensor(arguments[-1] == normals), out * 1.001, out)

    replace(monkeypatch, compared.STREAM, function)
    found = problems(findings())
    assert len(found) == 1
    assert f"philox_fill on cpu in float32 deviates: {'normals' if normals else 'uniforms'} by" in found[0].wrong


def test_samples_that_choose_otherwise_are_counted(monkeypatch):
    def function(real, weights, *arguments):
        return real([*weights[:-1], weights[-1].roll(1)], *arguments)

    replace(monkeypatch, "generate", function)
    found = compared.deviations("generate", CPU, torch.float32, SMALL)
    assert found["choices"].excessive
    assert found["choices"].allowed < 3
    assert not found["drawn"].excessive


def test_a_wrong_operator_is_two_lines_for_each_dtype_and_exit_code_1(monkeypatch, tmp_path):
    replace(monkeypatch, "lstm_backward", wrong("lstm_backward", "h0"))
    small = {"sizes": SMALL, "network": NETWORK}
    monkeypatch.setattr(doctor, "examine", lambda device: examine(device, **small))
    code, out = command("--json", str(tmp_path / "x.json"))
    assert code == 1
    lines = out.splitlines()
    assert "all good" not in lines
    assert lines.index("what is wrong") == len(lines) - 5
    for line, dtype in zip(lines[-4::2], ("float32", "bf16"), strict=True):
        assert re.match(rf"  lstm_backward on cpu in {dtype} deviates: h0 by \S+, \S+ is allowed$", line)
    for line in lines[-3::2]:
        assert re.match(r"    (set FUSEDMDN_CPU_ISA=\w+, or )?run on plain PyTorch inside `with .*`, and report", line)
    assert json.loads((tmp_path / "x.json").read_text())["good"] is False


def test_another_instruction_set_is_proposed():
    others = [isa for isa in _cpu.isas() if isa != _cpu.isa()]
    assert (f"FUSEDMDN_CPU_ISA={others[0]}," in doctor._instead_of("cpu")) if others else True
    assert "FUSEDMDN_CPU_ISA" not in doctor._instead_of("triton")


def test_many_wrong_outputs_are_the_worst_three(monkeypatch):
    def function(real, *arguments):
        outputs = real(*arguments)
        for k, value in enumerate(outputs):
            value.mul_(1.001 + k)
        return outputs

    replace(monkeypatch, "lstm", function)
    (finding,) = doctor._operator("part", "lstm", CPU, SMALL)
    assert re.search(r"deviates: cells by .*; gates by .*; c_T by .*; and 2 more outputs$", finding.problems[0].wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h[:-1], r"h: shape \(4, 9, 12\), expected \(5, 9, 12\)"),
        (lambda h: h.double(), "h: torch.float64, expected torch.float32"),
        (lambda h: torch.full_like(h, torch.nan), "deviates: h by inf"),
    ],
)
def test_another_shape_or_dtype_or_nan_is_a_problem(monkeypatch, change, message):
    replace(monkeypatch, "lstm", lambda real, *a: (change(real(*a)[0]), *real(*a)[1:]))
    (finding,) = doctor._operator("part", "lstm", CPU, SMALL)
    assert re.search(f"lstm on cpu in float32.*{message}", finding.problems[0].wrong)


@pytest.mark.parametrize("operator", [compared.STREAM, *CALLS])
def test_what_raises_is_a_problem_and_the_others_still_run(monkeypatch, operator):
    def function(real, *arguments):
        raise RuntimeError("a cosmic ray\n  hit it")

    replace(monkeypatch, operator, function)
    found = findings()
    named = [
        p for p in problems(found) if p.wrong == f"{operator} on cpu in float32: RuntimeError: a cosmic ray hit it"
    ]
    assert len(named) == 1
    broken = {f.name for f in found if f.problems}
    expected = {operator} | {"generate": {"sampling"}, "lstm_mdn_nll": {"training"}}.get(operator, set())
    expected |= {"training"} if operator == "lstm_mdn_nll_backward" else set()
    assert broken == expected
    if "sampling" in broken:
        assert "speed on cpu, sampling: RuntimeError: a cosmic ray hit it" in [p.wrong for p in problems(found)]
    assert {compared.STREAM, *CALLS, "sampling", "training", "Pillow"} <= {f.name.split(" ")[0] for f in found}


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "nvidia-smi.*--device cpu"),
        (MemoryError("fusedmdn_run_lstm: not enough memory"), "free memory"),
        (RuntimeError("Failed to find C compiler. Please specify via CC"), r"install a C compiler \(gcc or clang\)"),
    ],
)
def test_what_to_do_follows_from_the_error(monkeypatch, error, remedy):
    def function(real, *arguments):
        raise error

    replace(monkeypatch, "lstm", function)
    (finding,) = doctor._operator("part", "lstm", CPU, SMALL)
    assert len(finding.problems) == 2  # in both dtypes
    for problem in finding.problems:
        assert str(error) in problem.wrong
        assert re.search(remedy, problem.remedy)


# What can be wrong with the installation


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setattr(_cpu, "_load", lambda: (None, "the extension fusedmdn._cpu was not built"))
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.delenv("FUSEDMDN_REQUIRE_NATIVE", raising=False)


def test_no_extension(without_extension, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    found = findings()
    (problem,) = problems(found)
    assert problem.wrong == "no C++ kernels: the extension fusedmdn._cpu was not built"
    assert re.match(r"install a C\+\+17 compiler .*, then install fusedmdn again.* pip install", problem.remedy)
    assert "PyTorch  float32" in next(f.value for f in found if f.name == "lstm")
    assert not [f for f in found if "note" in f.value]
    monkeypatch.setattr("platform.system", lambda: "Windows")
    assert not problems(installation.cpu_and_extension())


def test_an_instruction_set_that_is_not_there(monkeypatch):
    reason = "FUSEDMDN_CPU_ISA=mmx: this processor and build have avx2, baseline"
    monkeypatch.setattr(_cpu, "_load", lambda: (None, reason))
    (problem,) = problems(installation.cpu_and_extension())
    assert reason in problem.wrong
    assert problem.remedy == "unset FUSEDMDN_CPU_ISA, or set it to one of these"


def test_damaged_weights(monkeypatch, tmp_path):
    shutil.copytree(checkpoint.locate("kanji"), tmp_path / "assets" / "kanji")
    (file,) = (tmp_path / "assets" / "kanji").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(checkpoint.resources, "files", lambda package: tmp_path)
    found = findings(TINY)
    (problem,) = problems(found)
    assert re.search(rf"^weights, kanji: CheckpointError: .*{file.name}: damaged: SHA-256", problem.wrong)
    assert "install fusedmdn again" in problem.remedy
    assert {*CALLS} <= {f.name for f in found}


def test_torch_too_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    (problem,) = problems(installation.versions())
    assert problem == ("torch 2.9.1+cpu is too old", "pip install --upgrade 'torch>=2.11'")
    assert '"torch>=2.11"' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setattr(torch, "__version__", "2.11.0a0+git")
    assert not problems(installation.versions())


class Gpus(SimpleNamespace):
    """What torch says of two GPUs."""

    name, major, minor, multi_processor_count, total_memory = "NVIDIA Model", 9, 0, 132, 80 << 30


@pytest.fixture
def two_gpus(monkeypatch):
    answers = {
        "is_available": True,
        "device_count": 2,
        "get_device_properties": Gpus(),
        "mem_get_info": (1 << 30, 80 << 30),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)


def test_every_gpu_is_told(two_gpus):
    found = {f.name: f.value for f in installation.gpus(torch.device("cuda", 1))}
    assert found["cuda:0"] == "NVIDIA Model, capability 9.0, 132 multiprocessors, 80 GiB"
    assert found["cuda:1"] == found["cuda:0"]
    assert found["free memory"] == "1.0 of 80.0 GiB on cuda:1"
    assert "Triton kernels" not in {f.name for f in installation.gpus(CPU)}  # nor is it a fault that they are missing


@pytest.mark.parametrize("name", ["cuda", "auto", "abacus"])
def test_a_device_that_cannot_be_used(monkeypatch, name):
    """The CPU is checked in its place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    real = torch.empty

    def empty(*shape, device=None, **options):
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")
        return real(*shape, device=device, **options)

    monkeypatch.setattr(torch, "empty", empty)
    (finding,) = installation.checked(name)
    assert finding.value == "cpu"
    reason = "Expected one of cpu" if name == "abacus" else "CUDA error: no kernel image is available$"
    assert re.search(
        f"^device '{'abacus' if name == 'abacus' else 'cuda'}' cannot be used: {reason}", finding.problems[0].wrong
    )
    assert "nvidia-smi" in finding.problems[0].remedy
    assert installation.usable("cpu") == (CPU, ())


def test_a_report_that_cannot_be_written_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "examine", None)
    code, out = command("--json", str(tmp_path / "none" / "x.json"))
    assert code == 2
    assert "there is no directory" in out


@pytest.mark.parametrize(
    ("reason", "wrong"),
    [
        ("Triton is not installed: pip install 'fusedmdn[gpu]'", "no GPU kernels: Triton is not installed"),
        ("Triton 3.5.1 is too old: 3.6 or newer is needed", "no GPU kernels: Triton 3.5.1 is too old: 3.6 or newer"),
    ],
)
def test_a_gpu_without_triton(two_gpus, monkeypatch, reason, wrong):
    monkeypatch.setattr(launch, "problem", lambda: reason)
    (problem,) = problems(installation.gpus(torch.device("cuda", 0)))
    assert problem.wrong.startswith(wrong)
    assert problem.remedy == "pip install --upgrade 'fusedmdn[gpu]'"


def test_no_gpu_is_no_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, file, said in (
        (None, "none", "^none$"),
        (None, "", "built without CUDA"),
        ("13.0", "none", "nvidia-smi"),
    ):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(installation, "NVIDIA", tmp_path / file)
        (finding,) = installation.gpus(CPU)
        assert re.search(said, finding.value)
        assert not finding.problems


def test_extras_that_are_missing_are_no_fault(monkeypatch):
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    found = list(installation.extras())
    assert not problems(found)
    metadata = (ROOT / "pyproject.toml").read_text()
    for finding in found:
        (extra,) = re.findall(r"pip install 'fusedmdn\[(\w+)\]'", finding.value)
        assert re.search(rf"^{extra} = \[.*{finding.name.lower()}", metadata, re.MULTILINE)


def test_it_runs_without_what_is_optional():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('triton', 'PIL', 'tensorboard', 'pyarrow', 'ray', 'pytest')))\n"
        "from fusedmdn import cli, doctor\nfrom fusedmdn.doctor import specimens\n"
        "whole, small = doctor.examine, (specimens.Sizes(2, 5, 9, 2), doctor.Network(9, 2, 2, (1, 3), 6, (2, 3)))\n"
        "doctor.examine = lambda device: whole(device, *small)\n"
        "cli.app(['doctor', '--device', 'cpu'])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Triton                 none; only a GPU needs it" in out
    assert "Pillow                 not there: pip install 'fusedmdn[render]' for PNG and GIF" in out
    assert out.splitlines()[-1] == "all good"


# On the Triton kernels


def test_on_the_triton_kernels():
    with simulated():
        found = findings(TINY)
    assert not problems(found)
    for operator in CALLS:
        assert next(f.value for f in found if f.name == operator).startswith("Triton ")
    plans = {f.name: f.value for f in found if f.part == "plans on cpu"}
    assert plans["device"] == "sm_90, 8 multiprocessors"
    assert plans["training float32"] == "2x9, batch 3: forward fused, backward fused"
    assert plans["sampling bf16"] == "2x9: batch 1 rows, batch 3 rows"
    assert plans["measured plans"] == "none; `fusedmdn tune` makes them"
    with simulated(), ops.plan("composed"), ops.plan("stepwise"):
        plans = {f.name: f.value for f in doctor._plans(CPU, NETWORK)}
    assert plans["training bf16"] == "2x9, batch 3: forward composed of stepwise layers, backward composed of stepwise layers"  # fmt: skip  # noqa: E501


def test_no_plans_where_no_triton_kernels_run():
    assert not list(doctor._plans(CPU, NETWORK))


def of_family(family):
    return [plan for plan, its_family in forced.FAMILY.items() if its_family == family]


FIRST = {"lstm": "h", "lstm_backward": "xw", "lstm_mdn_nll": "nll", "lstm_mdn_nll_backward": "x", "generate": "c"}
PLANS = [(operator, plan) for operator, family in compared.FAMILY.items() for plan in of_family(family)]


@pytest.mark.parametrize(("operator", "plan"), PLANS)
def test_the_wrong_plan_is_named(monkeypatch, operator, plan):
    broken = wrong(operator, FIRST[operator])

    def function(real, *arguments):
        return (broken if forced.plan_of(forced.FAMILY[plan]) == plan else lambda real, *a: real(*a))(real, *arguments)

    replace(monkeypatch, operator, function, "triton")
    with simulated():
        found = compared.deviations(operator, CPU, torch.float32, TINY)
    excessive = {name for name, deviation in found.items() if deviation.excessive}
    assert excessive == {f"{FIRST[operator]} by the {plan} plan"}


def test_a_plan_that_does_not_fit_is_left_out():
    with simulated(processors=1):
        found = compared.deviations("lstm", CPU, torch.float32, TINY._replace(hidden=20))
    assert {"h", "h by the stepwise plan"} <= found.keys()
    assert "h by the persistent plan" not in found
