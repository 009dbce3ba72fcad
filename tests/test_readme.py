"""The README's Python runs as it stands, and its commands are the command's own."""

import re

from typer.testing import CliRunner

from fusedmdn.cli import app

from .conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "one.svg"]
    assert "True" in capsys.readouterr().out


def test_commands_and_options_exist():
    lines = re.findall(r"^    fusedmdn (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        command, *words = line.split()
        text = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [command, "--help"]).output
        for option in (word for word in words if word.startswith("-")):
            assert option in text, f"{command} has no {option}"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\S+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
