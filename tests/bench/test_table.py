"""A cell's table as it is printed."""

import io

import pytest
from rich.console import Console

from bench.table import number, table, times

from . import synthetic


def printed(cell, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table(cell, 1))
    return console.file.getvalue()


def lines(text, name):
    return [line.split() for line in text.splitlines() if line.strip().startswith(name)]


def test_figures_of_a_sampler():
    shown = printed(synthetic.sampling(8, [3000.0, 3100.0, 3050.0], [220.0, 180.0, 190.0]))
    float32, bf16 = lines(shown, "ours")
    assert float32 == ["ours", "210", "204", "216", "1.00", "1.05", "12", "38,095", "1e-06"]
    assert bf16[1:6] == ["105", "102", "108", "1.00", "2.10"]
    assert lines(shown, "JAX scan") == [["JAX", "scan", "190", "184", "208", "0.90", "0.95", "12", "42,105", "1e-06"]]
    assert "float32, floor 200" in shown
    assert "fwd" not in shown


def test_phases_of_a_training_step():
    shown = printed(synthetic.training())
    heading = "contender median 20 % 80 % fwd bwd optim. x ours x floor MB error"
    assert heading in [" ".join(line.split()) for line in shown.splitlines()]
    assert "points/s" not in shown
    assert lines(shown, "nn.LSTM + eager loss")[0][4:] == (
        ["120", "120", "120", "40", "60", "7", "1.20", "1.50", "12", "1e-06"]
    )
    assert lines(shown, "JAX")[0][1:] == ["150", "150", "150", "1.50", "1.88", "12", "1e-06"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_reason_is_wrapped_and_not_cut(width):
    reason = "CompilationError: " + " ".join(f"word{n}" for n in range(60)) + " [/bold]"
    cell = synthetic.training()
    cell["results"].append(synthetic.result("torch.compile", [], "fp16", reason=reason))
    shown = printed(cell, width)
    assert reason in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= width
    for figure in ("100", "120", "150", "1.88"):
        assert figure in shown


def test_a_stand_in_is_told():
    cell = synthetic.training()
    cell["results"].append(synthetic.result("nn.LSTMCell loop", [1.0], role="stand-in"))
    assert "nn.LSTMCell loop (stand-in)" in printed(cell)


@pytest.mark.parametrize("dtypes", [("float32", "bf16"), ("float32", "tf32", "bf16", "fp16")])
def test_all_columns_fit_120(dtypes):
    for cell in synthetic.realistic(dtypes=dtypes)["cells"]:
        shown = printed(cell)
        assert "…" not in shown
        for result in cell["results"]:
            if result["values"]:
                assert f"{number(result['median'])} " in shown


def test_numbers():
    assert [number(value) for value in (None, 0.123456, 12.3456, 1234.5)] == ["", "0.1235", "12.35", "1,234"]
    assert [times(value) for value in (None, 0.123, 9.876, 12.34, 1234.5)] == ["", "0.12", "9.88", "12.3", "1,234"]
