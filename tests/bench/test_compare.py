"""Two revisions compared: the rule, the turns, the workers, the checkouts, and the command from end to end."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

import fusedmdn
from bench.compare import checkouts, colleague, report, turns, worker
from bench.compare.__main__ import app
from bench.compare.colleague import Cannot, Died, Ready
from bench.compare.verdict import FASTER, SAME, SLOWER, Ratio, deviation, paired_ratio, verdict

from ..conftest import ROOT


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (Ratio(1.06, 1.01, 1.2), SLOWER),
        (Ratio(1.06, 0.99, 1.2), SAME),  # too few of the repetitions
        (Ratio(1.04, 1.03, 1.045), SAME),  # too little
        (Ratio(1.05, 1.01, 1.2), SAME),
        (Ratio(0.94, 0.8, 0.99), FASTER),
        (Ratio(0.94, 0.8, 1.01), SAME),
        (Ratio(0.96, 0.95, 0.97), SAME),
    ],
)
def test_verdicts(ratio, word):
    assert verdict(ratio, 1.05) == word


def test_ratios_are_of_pairs():
    ratio = paired_ratio([1, 10, 100, 1000, 10000], [1.1, 12, 130, 1400, 15000])  # the machine slows down
    assert ratio == pytest.approx((1.3, 1.18, 1.42))


@pytest.mark.parametrize(("base", "head"), [([], []), ([1.0], [1.0, 2.0])])
def test_unpaired_times(base, head):
    with pytest.raises(ValueError, match="expected as many times"):
        paired_ratio(base, head)


def test_noise_alone_is_hardly_ever_slower():
    draw = random.Random(0)
    times = [[draw.lognormvariate(0, 0.15) for _ in range(30)] for _ in range(400)]
    words = [verdict(paired_ratio(*pair), 1.05) for pair in zip(times[::2], times[1::2], strict=True)]
    assert words.count(SLOWER) <= 1


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        ([[1.0, -4.0], [0.5]], [[1.0, -4.0], [0.5]], 0.0),
        ([[1.0, -4.0]], [[1.2, -4.0]], 0.05),
        ([[1.0], [0.1]], [[1.0], [0.2]], 1.0),
        ([[1.0]], [[float("nan")]], float("inf")),
        ([[0.0]], [[1e-9]], float("inf")),
        ([[1.0]], [[1.0, 1.0]], float("inf")),
        ([[1.0]], [], float("inf")),
    ],
)
def test_deviations(base, head, expected):
    assert deviation(base, head) == pytest.approx(expected)


class Fake:
    """A side whose calls take a fixed time, in a list of all that happened."""

    def __init__(self, name, events, seconds=1.0, values=((1.0,),), trouble=None, at="prepare"):
        self.name, self.events, self.seconds, self.values = name, events, seconds, [list(v) for v in values]
        self.trouble, self.at = trouble or {}, at

    def prepare(self, case):
        self.case = case
        self._fail("prepare")
        return Ready(self.values, self.seconds)

    def time(self, calls):
        self.events.append((self.name, self.case, calls))
        self._fail("time")
        return self.seconds * calls

    def _fail(self, at):
        if at == self.at and self.case in self.trouble:
            raise self.trouble[self.case]


def compared(base, head, cases=("a",), repeats=3):
    """The outcomes, and how often each side was started."""
    started = {"base": 0, "head": 0}

    @contextlib.contextmanager
    def start(side, fake):
        started[side] += 1
        yield fake

    sides = {"base": lambda: start("base", base), "head": lambda: start("head", head)}
    return list(turns.compare(sides, dict.fromkeys(cases, 0.01), repeats, 1.05, pause=0)), started


def test_they_take_turns():
    events = []
    (outcome,), started = compared(Fake("base", events, 0.2), Fake("head", events, 0.201))
    assert [name for name, _, _ in events] == ["base", "head", "head", "base", "base", "head"]
    assert {calls for _, _, calls in events} == {1}
    assert outcome.times == {"base": pytest.approx([0.2] * 3), "head": pytest.approx([0.201] * 3)}
    assert (outcome.verdict(1.05), outcome.values_differ, outcome.reasons) == (SAME, False, {})
    assert (outcome.measured, started) == (1, {"base": 1, "head": 1})


@pytest.mark.parametrize(
    ("first", "second", "measured", "word"),
    [(1.0, 2.0, 1, SAME), (2.0, 2.0, 2, SLOWER), (2.0, 1.0, 2, SAME), (0.5, 1.0, 2, SAME), (0.5, 0.5, 2, FASTER)],
)
def test_what_stands_out_is_measured_again(first, second, measured, word):
    class Changing(Fake):
        def prepare(self, case):
            self.seconds = seconds.pop(0)
            return super().prepare(case)

    events, seconds = [], [first, second]
    (outcome,), _ = compared(Fake("base", events), Changing("head", events))
    assert (outcome.measured, outcome.verdict(1.05)) == (measured, word)
    assert outcome.times["head"] == [(first, second)[measured - 1]] * 3
    assert len(events) == 6 * measured


def test_short_calls_are_repeated_alike():
    events = []
    (outcome,), _ = compared(Fake("base", events, 1e-4), Fake("head", events, 3e-4))
    assert {calls for _, _, calls in events} == {200}
    assert outcome.ratio == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("at", ["prepare", "time"])
@pytest.mark.parametrize(
    ("trouble", "starts"), [(Cannot("AttributeError: no such operator"), 1), (Died("killed by signal 11"), 2)]
)
def test_a_case_that_one_side_cannot_do(at, trouble, starts):
    broken = Fake("base", [], trouble={"b": trouble}, at=at)
    outcomes, started = compared(broken, Fake("head", []), cases="abc")
    assert [outcome.reasons for outcome in outcomes] == [{}, {"base": str(trouble)}, {}]
    assert [outcome.verdict(1.05) for outcome in outcomes] == [SAME, None, SAME]
    assert started == {"base": starts, "head": starts}


def test_nothing_is_started_for_no_case_that_is_left():
    _, started = compared(Fake("base", []), Fake("head", [], trouble={"a": Died("gone")}))
    assert started == {"base": 1, "head": 1}


@pytest.mark.parametrize(("values", "differ"), [([[1.005]], False), ([[1.05]], True), ([[1.0], [1.0]], True)])
def test_values_that_differ(values, differ):
    (outcome,), _ = compared(Fake("base", []), Fake("head", [], values=values))
    assert outcome.values_differ == differ
    shown = Console(width=150, record=True, file=open(os.devnull, "w"))
    shown.print(report.table([outcome], 1.05))
    assert ("values differ" in shown.export_text()) == differ


def timed(head=1.0):
    return turns.Compared("[a]", {"base": [1.0] * 3, "head": [head] * 3})


def refused(**reasons):
    return turns.Compared("[a]", reasons=reasons)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([timed()], 0),
        ([timed(), timed(head=0.5)], 0),
        ([timed(), timed(head=1.1)], 1),
        ([timed(), refused(base="no such operator")], 0),
        ([timed(), refused(head="no such operator")], 3),
        ([timed(), refused(base="too little memory", head="too little memory")], 0),
        ([refused(base="no such operator")], 3),  # nothing was compared
        ([timed(head=1.1), refused(head="no such operator")], 1),
    ],
)
def test_exit_codes(outcomes, code):
    assert report.exit_code(outcomes, 1.05) == code


def test_the_table_says_it_all():
    shown = Console(width=150, record=True, file=open(os.devnull, "w"))
    shown.print(report.table([timed(head=1.1), refused(base="no [such] operator")], 1.05))
    lines = [line for line in shown.export_text().splitlines() if "[a]" in line]
    assert all(word in lines[0] for word in ("1000", "1100", "1.100", "1.100 to 1.100", "slower"))
    assert "base: no [such] operator" in lines[1]


SPEAKS = """
    import os, subprocess, sys
    from bench.compare.worker import own_streams, serve

    def answer(message):
        print("hello", flush=True)
        os.write(1, b'{"seconds": 1}')
        subprocess.run(["echo", "hello"])
        assert sys.stdin.read() == ""
        if message.get("prepare") == "dies":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(7)
        if message.get("prepare") == "is killed":
            os.kill(os.getpid(), 9)
        if message.get("prepare") == "cannot":
            return {"cannot": "no such operator"}
        return {"seconds": message["time"] * 2} if "time" in message else {"values": [[1, 2]], "seconds": 3}

    def start():
        if "refuse" in sys.argv:
            raise ValueError("not the one")
        return answer

    serve(*own_streams(), start)
"""


def speaking(tmp_path, *words):
    code = textwrap.dedent(SPEAKS)
    command = [sys.executable, "-c", code, *words]
    return colleague.running(command, tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)}, [])


@pytest.fixture(autouse=True)
def _any_core(monkeypatch):
    monkeypatch.setattr(colleague, "pin", lambda cores: None)


def test_stray_prints_do_not_break_the_protocol(tmp_path):
    with speaking(tmp_path) as side:
        assert side.prepare("a") == ([[1, 2]], 3)
        assert side.time(5) == 10
        with pytest.raises(Cannot, match="^no such operator$"):
            side.prepare("cannot")
        assert side.time(1) == 2
    assert side.process.poll() is not None


@pytest.mark.parametrize(
    ("case", "how"),
    [("dies", r"ended with exit code 7: .*the last words$"), ("is killed", "killed by signal 9")],
)
def test_a_worker_that_dies(tmp_path, case, how):
    with speaking(tmp_path) as side:
        with pytest.raises(Died, match=how):
            side.prepare(case)
        with pytest.raises(Died, match=how):
            side.time(1)


def test_a_worker_that_refuses(tmp_path):
    with pytest.raises(Died, match="refused: ValueError: not the one"), speaking(tmp_path, "refuse"):
        pass


def test_a_worker_ends_with_the_block(tmp_path):
    with pytest.raises(KeyboardInterrupt), speaking(tmp_path) as side:
        raise KeyboardInterrupt
    assert side.process.returncode == -signal.SIGKILL


def test_what_a_case_raises_is_its_reason(tmp_path):
    def prepare(name):
        raise AttributeError("no such operator\nand more")

    bench = worker.Bench(tmp_path, prepare)
    assert bench.answer({"prepare": "a"}) == {"cannot": "AttributeError: no such operator"}
    assert bench.answer({"time": 1}) == {"cannot": "RuntimeError: no case was prepared"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The package as it is installed: copied, not built."""
    path = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "kanjivg.npz", "*.safetensors")
    package = path / "fusedmdn"
    for source, target in (("fusedmdn", "."), ("python", "ops"), ("kernels/triton", "kernels")):
        shutil.copytree(ROOT / source, package / target, ignore=ignored, dirs_exist_ok=True)
    shutil.copy(importlib.util.find_spec("fusedmdn._cpu").origin, package)
    return path


@pytest.mark.parametrize("elsewhere", ["before it", "after it"])
def test_another_package_is_refused(site, tmp_path, monkeypatch, elsewhere):
    """From the checkout's root, and with the checkout's sub-packages among those that are found."""
    other = tmp_path / "other" / "fusedmdn"
    other.mkdir(parents=True)
    shutil.copy(ROOT / "fusedmdn" / "__init__.py", other)
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    start = colleague.measuring(site, tmp_path, [], 1)
    if elsewhere == "before it":
        shutil.copytree(site / "fusedmdn", tmp_path / "fusedmdn")  # the worker's own directory comes first
    else:
        path = {"PYTHONPATH": f"{site}:{other.parent}"}
        command = [sys.executable, "-m", "bench.compare.worker", str(site), "1"]
        start = colleague.running(command, tmp_path, {**os.environ, **path}, [])
    with pytest.raises(Died, match=r"refused: Refused: .* is /.*, not in /"), start:
        pass


def test_only_the_site_is_looked_at(site, tmp_path, monkeypatch):
    """Neither an editable install nor an inherited PYTHONPATH fills in what the site lacks."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *fusedmdn.__path__[0].rsplit("/", 1)[:1]]))
    less = tmp_path / "less"
    shutil.copytree(site, less)
    (less / "fusedmdn" / "_cpu.abi3.so").unlink()
    harness = checkouts.harness(ROOT, tmp_path / "harness")
    with colleague.measuring(less, harness, [], 1) as side, pytest.raises(Cannot, match="extension"):
        side.prepare("mdn_nll, float32, T10 B2")


def git(path, *words):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=path, check=True, capture_output=True
    )


SETUP = """
from setuptools import setup
setup(name="fusedmdn", version="1", packages=["fusedmdn"], package_dir={"fusedmdn": "package"})
"""


@pytest.fixture
def repository(tmp_path):
    """A git repository of a package with nothing but a number."""
    root = tmp_path / "repository"
    (root / "package").mkdir(parents=True)
    (root / "bench").mkdir()
    (root / "setup.py").write_text(SETUP)
    (root / ".gitignore").write_text("build/\n*.egg-info/\nignored\n")
    (root / "package" / "__init__.py").write_text("number = 1\n")
    (root / "package" / "gone.py").write_text("")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    return root


def assert_nothing_left(root):
    assert list((root / "build" / "compare").iterdir()) == []
    assert checkouts.git(root, "worktree", "list").count("\n") == 1
    assert checkouts.git(root, "status", "--porcelain", "--ignored").count("worktree") == 0


def test_both_are_built_and_nothing_is_left(repository):
    (repository / "package" / "__init__.py").write_text("number = 2\n")
    (repository / "package" / "new.py").write_text("")
    (repository / "package" / "gone.py").unlink()
    (repository / "ignored").write_text("")
    commit = checkouts.commit_of(repository, "HEAD")
    said = []
    with checkouts.installed(repository, commit, said.append) as pair:
        assert (pair.base.commit, pair.head.commit) == (commit, commit + "+")
        names = [sorted(p.name for p in (r.site / "fusedmdn").glob("*.py")) for r in (pair.base, pair.head)]
        assert names == [["__init__.py", "gone.py"], ["__init__.py", "new.py"]]
        assert (pair.base.site / "fusedmdn" / "__init__.py").read_text() == "number = 1\n"
        assert (pair.head.site / "fusedmdn" / "__init__.py").read_text() == "number = 2\n"
        assert [p.name for p in pair.harness.iterdir()] == ["bench"]
        assert not (pair.harness.parent / "head-source" / "ignored").exists()
    assert len(said) == 2
    assert_nothing_left(repository)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_after_trouble(repository, monkeypatch, trouble):
    monkeypatch.setattr(checkouts, "install", lambda source, site: site)
    with pytest.raises(trouble), checkouts.installed(repository, checkouts.commit_of(repository, "HEAD")) as pair:
        assert (pair.harness.parent / "base-source" / "setup.py").exists()
        raise trouble
    assert_nothing_left(repository)


def test_a_build_that_fails(repository):
    (repository / "setup.py").write_text("raise SystemExit('no compiler')")
    commit = checkouts.commit_of(repository, "HEAD")
    words = r"head-source: the build failed\n(.*\n)*.*no compiler"
    with pytest.raises(checkouts.NotBuilt, match=words), checkouts.installed(repository, commit):
        pass
    assert_nothing_left(repository)


@pytest.mark.parametrize("revision", ["nonsense", "--all", "HEAD:setup.py", ""])
def test_an_unknown_revision(repository, revision):
    with pytest.raises(checkouts.Unknown, match=f"^BASE '{revision}': git knows no such revision here"):
        checkouts.commit_of(repository, revision)


def test_no_repository(tmp_path):
    with pytest.raises(checkouts.Unknown, match="not a git repository"):
        checkouts.commit_of(tmp_path, "HEAD")


@pytest.fixture
def project(site, repository):
    """A repository of the real package, its extension compiled beforehand; the second commit adds nothing to it."""
    shutil.rmtree(repository / "package")
    shutil.rmtree(repository / "bench")
    shutil.copytree(site / "fusedmdn", repository / "package")
    shutil.copytree(ROOT / "bench", repository / "bench", ignore=shutil.ignore_patterns("__pycache__", "results"))
    names = '["fusedmdn", "fusedmdn.loaders", "fusedmdn.ops", "fusedmdn.ops.triton", "fusedmdn.kernels"]'
    setup = SETUP.replace('["fusedmdn"]', names).replace("setup(name", 'setup(package_data={"fusedmdn": ["*"]}, name')
    (repository / "setup.py").write_text(setup)
    git(repository, "add", "-f", ".")
    git(repository, "commit", "-qm", "two")
    return repository


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def start(project, *words):
    """The command; Ctrl-C reaches it even where this is a background job, to whose children it would not."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}\nfrom bench.compare.__main__ import app\napp()"
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_slower_working_tree_and_a_base_that_lacks_an_operator(project, tmp_path):
    change(project / "package" / "module.py", "    def generate(", "    def generate_not_yet(")
    git(project, "commit", "-aqm", "three")
    git(project, "checkout", "-q", "HEAD~1", "--", "package/module.py")
    slow = "__import__('time').sleep(0.01); return 1.5 * _library.mdn_nll("
    change(project / "package" / "ops" / "functional.py", "return _library.mdn_nll(", slow)
    out = tmp_path / "out.json"
    process = start(project, "HEAD", "--only", "float32, T10 B2", "--repeats", "4", "--above", "2", "--out", str(out))
    printed, errors = process.communicate()
    assert process.returncode == 1, printed + errors
    assert_nothing_left(project)
    run = json.loads(out.read_text())
    commit = checkouts.commit_of(project, "HEAD")
    assert (run["base"], run["head"]) == (commit, commit + "+")
    assert (run["environment"]["threads"], run["options"]["repeats"]) == (1, 4)
    lstm, mdn_nll, generate = run["cases"]
    assert lstm["verdict"] != SLOWER
    assert (lstm["values_differ"], lstm["reasons"]) == (False, {})
    assert [len(times) for times in lstm["times"].values()] == [4, 4]
    assert (mdn_nll["verdict"], mdn_nll["values_differ"]) == (SLOWER, True)
    assert mdn_nll["ratio"] > 2
    assert (generate["verdict"], generate["times"]) == (None, {})
    (reason,) = generate["reasons"].items()
    assert reason == ("base", "AttributeError: 'FusedLSTMMDN' object has no attribute 'generate'")
    assert "slower, values differ by 5.0e-01" in printed
    assert "base: AttributeError" in printed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_it_builds(project, number, code):
    building = project / "building"
    slow = f"import time\nwhile True: open({str(building)!r}, 'a').write('.'); time.sleep(0.02)"
    (project / "setup.py").write_text(slow)
    git(project, "commit", "-aqm", "slow to build")
    process = start(project, "HEAD")
    while not building.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert_nothing_left(project)
    written = building.stat().st_size
    time.sleep(0.2)
    assert building.stat().st_size == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "BASE 'nonsense': git knows no such revision here"),
        (["HEAD", "--only", "cooking"], "--only 'cooking': no case has this in its name"),
        (["HEAD", "--threads", "4096"], "--threads 4096: this process may use 1 to"),
        (["HEAD", "--above", "0.9"], "--above 0.9: must be >= 1"),
        (["HEAD", "--repeats", "0"], "'--repeats': "),
        (["HEAD", "--out", "nowhere/out.json"], "--out nowhere/out.json: expected a file's name in a directory"),
        (["HEAD", "--out", "/"], "--out /: expected a file's name in a directory that exists"),
    ],
)
def test_arguments_that_do_not_fit(words, message):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, words)
    assert result.exit_code == 2
    assert message in result.output
