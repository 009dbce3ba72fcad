"""Which backend runs, and that falling back is never silent."""

import os
import subprocess
import sys
import warnings

import fusedmdn.ops as ops
import pytest
import torch
from fusedmdn.ops import _backend, _cpu, launch, reference

STREAM = (1, 0, 2, 3)


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setattr(_cpu, "_load", lambda: (None, "it was taken away"))
    monkeypatch.setattr(_backend, "_warned", set())


def test_the_extension_is_in_use():
    assert _cpu.problem() is None
    assert _backend.choose("philox_fill", "cpu").backend == "cpu"


def test_missing_extension_warns_once_and_gives_the_same(without_extension, monkeypatch):
    monkeypatch.delenv("FUSEDMDN_REQUIRE_NATIVE", raising=False)
    with pytest.warns(ops.FallbackWarning, match=r"philox_fill on cpu .* it was taken away"):
        first = ops.uniforms(*STREAM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ops.uniforms(*STREAM), first)
    with ops.backend("reference"):
        assert torch.equal(ops.uniforms(*STREAM), first)
    assert ("philox_fill", "cpu", "reference", "it was taken away") in ops.report()


def test_required_native_backend_must_load(without_extension, monkeypatch):
    monkeypatch.setenv("FUSEDMDN_REQUIRE_NATIVE", "1")
    with pytest.raises(RuntimeError, match=r"FUSEDMDN_REQUIRE_NATIVE=1, but philox_fill .* it was taken away"):
        ops.uniforms(*STREAM)


def test_extension_without_its_functions_is_a_problem(tmp_path, monkeypatch):
    """A stale or foreign library is named, not called."""
    path = tmp_path / "stale.so"
    source = tmp_path / "stale.c"
    source.write_text("int unrelated(void) { return 0; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, source], check=True)

    class Spec:
        origin = str(path)

    monkeypatch.setattr(_cpu.importlib.util, "find_spec", lambda name: Spec)
    library, problem = _cpu._load.__wrapped__()
    assert library is None
    assert str(path) in problem
    assert "fusedmdn_isa" in problem


def test_other_devices_fall_back_with_a_warning(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())
    with pytest.warns(ops.FallbackWarning, match="lstm on mps .* no kernels for mps devices"):
        _backend.kernel("lstm", "mps")


def test_forced_backend_without_a_kernel_is_an_error():
    with ops.backend("cpu"), pytest.raises(RuntimeError, match="lstm cannot run on the forced backend 'cpu'"):
        _backend.kernel("lstm", "cuda", torch.float64)
    ops.lstm(torch.zeros(2, 1, 8), torch.zeros(8, 2))  # and the force ends with its block
    with (
        pytest.raises(ValueError, match="backend must be one of reference, cpu, triton; got 'cudnn'"),
        ops.backend("cudnn"),
    ):
        pass


def test_without_triton_cuda_runs_the_reference_and_says_why(monkeypatch):
    monkeypatch.setattr(launch, "problem", lambda: "Triton is not installed: pip install 'fusedmdn[gpu]'")
    choice = _backend.choose("lstm", "cuda")
    assert (choice.backend, choice.reason) == ("reference", "Triton is not installed: pip install 'fusedmdn[gpu]'")
    with ops.backend("triton"), pytest.raises(RuntimeError, match="Triton is not installed"):
        ops.lstm(torch.zeros(2, 1, 8), torch.zeros(8, 2))


def test_what_has_no_kernel_by_design_never_warns(monkeypatch):
    monkeypatch.setenv("FUSEDMDN_REQUIRE_NATIVE", "1")
    assert _backend.choose("lstm_gates", "cpu").reason.startswith("by design")
    assert _backend.kernel("lstm_gates", "cpu") is reference.lstm_gates


def test_a_dtype_without_kernels_is_named(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())
    xw, weight_hh = torch.zeros(2, 1, 8, dtype=torch.float16), torch.zeros(8, 2, dtype=torch.float16)
    message = "lstm on cpu .* the cpu kernels take float32 and bfloat16, not float16"
    with pytest.warns(ops.FallbackWarning, match=message):
        ops.lstm(xw, weight_hh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.lstm(xw.double(), weight_hh.double())  # the reference's own dtype, not a fallback
    with ops.backend("cpu"), pytest.raises(RuntimeError, match="not float64"):
        ops.lstm(xw.double(), weight_hh.double())


def test_instruction_set_can_be_forced():
    """From the environment for a process, and one the machine has not is named with those that it has."""
    code = "import fusedmdn.ops as ops; print(ops.cpu_isa(), ops.report()[0].reason)"

    def run(isa):
        env = os.environ | {"FUSEDMDN_CPU_ISA": isa}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    for isa in _cpu.isas():
        assert run(isa).startswith(isa)
    assert f"FUSEDMDN_CPU_ISA=mmx: this processor and build have {', '.join(_cpu.isas())}" in run("mmx")
    with (
        pytest.raises(ValueError, match="instruction set 'mmx': this processor and build have"),
        _cpu.forced_isa("mmx"),
    ):
        pass
    assert _cpu.isa() == _cpu.isas()[0]


def test_report_covers_every_operator():
    operators = {choice.operator for choice in ops.report()}
    assert operators == {
        "philox_fill",
        "lstm",
        "lstm_backward",
        "lstm_layer",
        "lstm_gates",
        "lstm_mdn_nll",
        "lstm_mdn_nll_backward",
        "mdn_nll",
        "mdn_nll_backward",
        "generate",
    }
    assert all(choice.reason for choice in ops.report())


def test_import_needs_no_extension():
    """Importing never warns; the first use does."""
    code = "import warnings; warnings.simplefilter('error'); import fusedmdn"
    subprocess.run([sys.executable, "-c", code], check=True)
