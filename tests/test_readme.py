"""The README's and the pages' Python runs as it stands, and their commands are the command's own."""

import re

import pytest
from typer.testing import CliRunner

from fusedmdn import jobs
from fusedmdn.cli import app

from .conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {
    "README.md": README,
    **{
        f"docs/{name}": (ROOT / "docs" / name).read_text()
        for name in ("drawing.md", "jobs.md", "strokes.md", "training.md", "weights.md")
    },
}


def run_blocks(page, number):
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    assert len(blocks) == number
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_readme_s_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_blocks("README.md", 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "one.svg"]
    assert "True" in capsys.readouterr().out


def test_the_jobs_page_s_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    jobs.run(jobs.create("runs/million", "kanji", 12, shard_size=4, max_steps=100))
    run_blocks("docs/jobs.md", 3)
    assert re.search(r"^Strokes\(.*\n12 \d+", capsys.readouterr().out, re.MULTILINE)


def test_the_strokes_page_s_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/strokes.md", 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.svg", "strokes.npz"]
    page, printed = PAGES["docs/strokes.md"], capsys.readouterr().out
    for epsilon, points, middle in re.findall(r"^(\S+) (\d+) ([\d.]+)$", printed, re.MULTILINE)[-5:]:
        assert f"| {epsilon} | {int(points):,} | {float(middle):g} |" in page


def test_the_weights_page_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/weights.md", 2)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_the_drawing_page_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/drawing.md", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.png", "page.svg"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page):
    lines = re.findall(r"(?:^ {4}|^\|.*`|-m )fusedmdn ([a-z][^`\n#]*)", PAGES[page], re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        command, *words = line.split()
        path = [command, words[0]] if command == "jobs" else [command]
        result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [*path, "--help"])
        assert result.exit_code == 0, line
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", result.output), f"{command} has no {option}"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    pages = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    for target in re.findall(r"^    make (\S+)", "\n".join(pages), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
