"""Damage of every kind of file: always found, and told by name; what can be made again is, to the byte.

Each file has its bits flipped, is cut short, emptied, and replaced by another one of its kind. Nothing may pass but
what provably carries no meaning: white space between JSON's words, dates in a zip.
"""

import collections
import json
import random
import shutil

import pytest
import torch

from fusedmdn import FusedLSTMMDN, jobs, load, sealed
from fusedmdn.checkpoint import CheckpointError, load_model, load_training, save_model
from fusedmdn.dataset import StrokeFileError
from fusedmdn.jobs import JobError
from fusedmdn.jobs.job import MANIFEST, MODEL, PRIME, SPEC
from fusedmdn.train import Trainer, TrainOptions

from .synthetic import zigzags

TALLY = collections.defaultdict(collections.Counter)  # of a kind of file: what became of its damage


@pytest.fixture(params=[12, pytest.param(250, marks=pytest.mark.chaos)], ids=["short", "long"])
def times(request):
    """How often a file is damaged."""
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _told(request):
    yield
    total = sum(TALLY.values(), collections.Counter())
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for kind, counts in [*TALLY.items(), ("all", total)]:
            print(f"{kind:24} {counts['found']:5} found and named, {counts['harmless']:3} harmless")


def damaged(data, others, times):
    """The file emptied, as each of `others`, and otherwise two bit flips to one truncation."""
    chosen = random.Random(len(data))
    yield b""
    yield from (other for other in others if other != data)
    for k in range(times):
        if k % 3 == 2:
            yield data[: chosen.randrange(1, len(data))]
        else:
            at = chosen.randrange(8 * len(data))
            yield data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def each_damage(kind, path, others, times, check):
    """`check(harmless)` after each damage, where `harmless` says whether it means the same; gives whether it is found.

    The file is as it was in the end.
    """
    data = path.read_bytes()
    for changed in damaged(data, others, times):
        path.write_bytes(changed)
        harmless = path.suffix == ".json" and means_the_same(changed, data)
        found = check()
        assert found != harmless, f"{path.name} as {changed[:2000]!r}"
        TALLY[kind]["found" if found else "harmless"] += 1
    path.write_bytes(data)


def means_the_same(changed, data):
    try:
        return json.loads(changed) == json.loads(data)
    except ValueError:
        return False


def refused_by_name(error, names, action):
    """Whether this raises that error; its message then holds all names."""
    try:
        action()
    except error as told:
        assert all(str(name) in str(told) for name in names), told
        return True
    return False


# Training runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Data, and two runs of it of the same sizes."""
    data, folder = zigzags(), tmp_path_factory.mktemp("runs")
    for seed in range(2):
        options = TrainOptions(hidden_size=8, num_mixtures=2, epochs=2, batch_size=32, warmup=5, seed=seed)
        Trainer(options, data, folder / str(seed)).run()
    return data, folder / "0", folder / "1"


def files_of(run, part):
    return sorted((run / part).iterdir(), key=lambda path: path.name.split("-")[0])  # config, model, training


@pytest.mark.parametrize("which", range(3), ids=["config", "weights", "training"])
def test_a_run_never_goes_on_from_damage_and_its_best_is_there(runs, times, which):
    data, run, other = runs
    path = files_of(run, "last")[which]
    best = load_model(run / "best").state_dict()
    others = [files_of(other, "last")[which].read_bytes()]
    if which < 2:
        others.append(files_of(run, "best")[which].read_bytes())

    def check():
        names = [path.name, run / "last", f"its best weights are intact: {run / 'best'}"]
        found = refused_by_name(CheckpointError, names, lambda: Trainer.resume(data, run))
        assert refused_by_name(CheckpointError, [path.name], lambda: load_training(run / "last")) == found
        assert all(torch.equal(value, best[name]) for name, value in load_model(run).state_dict().items())
        return found

    each_damage(f"last/{path.name.split('-')[0]}", path, others, times, check)
    Trainer.resume(data, run)


@pytest.mark.parametrize("which", range(2), ids=["config", "weights"])
def test_a_finished_run_whose_best_is_damaged(runs, times, which):
    data, run, other = runs
    path = files_of(run, "best")[which]
    others = [files_of(other, "best")[which].read_bytes()]

    def check():
        found = refused_by_name(CheckpointError, [path.name, run / "best"], lambda: load_model(run))
        told = [f"{run / 'best'}: is damaged", f"{run / 'last'} is intact"]
        assert refused_by_name(CheckpointError, told, lambda: Trainer.resume(data, run)) == found
        return found

    each_damage(f"best/{path.name.split('-')[0]}", path, others, times, check)


def test_damage_is_told_where_there_are_no_best_weights(runs, tmp_path):
    data, run, _ = runs
    shutil.copytree(run / "last", tmp_path / "run" / "last")
    files_of(tmp_path / "run", "last")[1].write_bytes(b"")
    with pytest.raises(CheckpointError, match="there are no best weights to take instead: train anew"):
        Trainer.resume(data, tmp_path / "run")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("model", "batch_first"), True, "its model has batch_first True, its options False"),
        (("progress", "options", "hidden_size"), 9, "its model has hidden_size 8, its options 9"),
        (("progress", "options", "optimizer"), "graves", "its training state"),
        (("progress", "options", "lr"), 10**400, "lr: expected at most 64 bits"),
        (("progress", "options", "epochs"), 1.5, "epochs: expected int, got 1.5"),
        (("progress", "options", "surprise"), 1, "'surprise' is not known"),
        (("progress", "step"), 0, "weight_ih_l0/step: expected at most 0, as many as were taken, got 8.0"),
        (("progress", "step"), 10**6, "step 1000000 of a run of 8"),
        (("progress", "step"), True, "step: expected int, got True"),
        (("progress", "best"), "1", "best: expected float or NoneType, got '1'"),
        (("progress", "data", "train"), "", "was trained on other data"),
        (("progress",), None, "has no progress"),
        (("training", "file"), "../last/x", "training: '../last/x' is no name of a file of tensors"),
        (("training", "bytes"), 1, "damaged: .* bytes, expected 1"),
        (("weights",), {}, "weights: "),
    ],
)
def test_what_does_not_belong_together_is_refused_though_it_is_sealed(runs, tmp_path, place, value, message):
    data, run, _ = runs
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "last" / "config.json"
    document = json.loads(path.read_bytes())
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    sealed.write(path, document)
    with pytest.raises(ValueError, match=message) as error:
        Trainer.resume(data, tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head.bias/step": torch.tensor(9.0)}, "head.bias/step: expected at most 8, as many as were taken, got 9.0"),
        ({"head.bias/step": torch.tensor(-1.0)}, "got -1.0"),
        ({"head.bias/step": torch.tensor(torch.nan)}, "got nan"),
        ({"head.bias/exp_avg": torch.zeros(3)}, r"head.bias/exp_avg: expected \(15,\) of torch.float32, got \(3,\)"),
        ({"head.bias/exp_avg": torch.zeros(15, dtype=torch.float64)}, "of torch.float32, got .* of torch.float64"),
        ({"head.bias/exp_avg": None}, "its training state lacks head.bias/exp_avg"),
        ({"head.bias/surprise": torch.zeros(15)}, "its training state has an unknown head.bias/surprise"),
        (None, "the optimiser has a state of 0 parameters after 8 steps"),
    ],
)
def test_another_state_of_the_optimiser_is_refused(runs, tmp_path, changes, message):
    data, run, _ = runs
    shutil.copytree(run, tmp_path / "run")
    model, tensors, progress = load_training(run / "last")
    changed = {} if changes is None else {k: v for k, v in (tensors | changes).items() if v is not None}
    save_model(model, tmp_path / "run" / "last", changed, progress)
    with pytest.raises(CheckpointError, match=message) as error:
        Trainer.resume(data, tmp_path / "run")
    assert str(tmp_path / "run" / "last" / "config.json") in str(error.value)


# Strokes


def test_strokes(tmp_path, times):
    path, given = tmp_path / "strokes.npz", zigzags()
    given.save(path)
    for changed in damaged(path.read_bytes(), [], times):
        path.write_bytes(changed)
        try:
            assert load(path).digest() == given.digest(), changed[:2000]
        except StrokeFileError as error:
            assert str(path) in str(error)
            TALLY["strokes .npz"]["found"] += 1
        else:
            TALLY["strokes .npz"]["harmless"] += 1


# Jobs


@pytest.fixture(scope="module", params=["parquet", "npz", "svg"])
def job(request, tmp_path_factory):
    """A job of three shards, and another of the same sizes."""
    folder = tmp_path_factory.mktemp("jobs")
    zigzags(3).save(folder / "prime.npz")
    for seed in range(2):
        torch.manual_seed(seed)
        FusedLSTMMDN(5, 8, 1, 2, pen="categorical").save_pretrained(folder / f"model-{seed}")
        made = jobs.create(folder / f"job-{seed}", folder / f"model-{seed}", 12, seed=seed, shard_size=5, max_steps=8,
                           output=request.param, prime=folder / "prime.npz")  # fmt: skip
        assert jobs.run(made).complete
    return jobs.Job(folder / "job-0"), jobs.Job(folder / "job-1")


def contents(job):
    return {str(path): path.read_bytes() for path in sorted(job.directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("which", ["shard", "record", "manifest"])
def test_verify_names_it_and_run_makes_it_again(job, times, which):
    job, other = job
    path_of = {"shard": job.file_of, "record": job.record_of, "manifest": lambda k: job.directory / MANIFEST}[which]
    path, before = path_of(1), contents(job)
    others = [before[str(path_of(0))], (other.directory / path.relative_to(job.directory)).read_bytes()]

    def check():
        changed = path.read_bytes()
        told = jobs.verify(job)
        found = bool(told.problems)
        assert not found or any(str(path) in problem for problem in told.problems)
        assert told.complete != found
        assert jobs.run(job).complete
        after = contents(job)
        if found or which == "manifest":
            assert after == before
        else:
            assert after == {**before, str(path): changed}
        return found

    kind = f"shard {path.suffix}" if which == "shard" else f"{which} (JSON)"
    each_damage(kind, path, others, times, check)


def test_shards_that_changed_places(job):
    job, _ = job
    before = contents(job)
    first, second = job.file_of(0), job.file_of(1)
    first.write_bytes(before[str(second)])
    second.write_bytes(before[str(first)])
    problems = jobs.verify(job).problems
    assert [str(path) in problem for path, problem in zip((first, second), problems, strict=True)] == [True, True]
    assert jobs.run(job).complete
    assert contents(job) == before


@pytest.mark.parametrize("which", range(4), ids=["spec", "prime", "config", "weights"])
def test_what_a_job_is_made_of_is_never_used_damaged(job, times, which):
    job, other = job
    paths, others = (
        [made.directory / SPEC, made.directory / PRIME, *sorted((made.directory / MODEL).iterdir())]
        for made in (job, other)
    )
    path, its_like = paths[which], [others[which].read_bytes()] if which else []
    before = contents(job)
    job.file_of(2).unlink()  # there is work to do

    def check():
        try:
            opened = jobs.Job(job.directory)
        except JobError as error:
            assert str(path) in str(error)
            return True
        told = [problem for problem in jobs.verify(opened).problems if str(job.file_of(2)) not in problem]
        found = bool(told)
        if found:
            assert any(path.name in problem for problem in told), told
            assert refused_by_name(JobError, [path.name], lambda: jobs.run(opened))
            assert not job.file_of(2).exists()
        return found

    each_damage(f"job's {path.name.split('-')[0]}", path, its_like, times, check)
    assert jobs.run(jobs.Job(job.directory)).complete
    assert contents(job) == before


def test_another_job_s_spec(job):
    """Then nothing else is this job's: all of it is named, and nothing is made."""
    job, other = job
    before = contents(job)
    shutil.copy(other.directory / SPEC, job.directory / SPEC)
    opened = jobs.Job(job.directory)
    told = jobs.verify(opened).problems
    for path in (job.record_of(0), job.record_of(1), job.record_of(2), job.directory / MANIFEST, job.directory / MODEL):
        assert any(str(path) in problem for problem in told)
    with pytest.raises(JobError, match=f"{job.directory / MODEL}.*these are not the job's weights"):
        jobs.run(opened)
    (job.directory / SPEC).write_bytes(before[str(job.directory / SPEC)])
    assert contents(job) == before
