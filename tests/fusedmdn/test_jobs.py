"""Jobs: shards hold what `generate` gives, whatever the cut, order or restart; every file says what it is."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
import zipfile
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from fusedmdn.ops import _cpu
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from fusedmdn import FusedLSTMMDN, Scale, Strokes, jobs, load, ops
from fusedmdn.checkpoint import CheckpointError
from fusedmdn.cli import app
from fusedmdn.dataset import StrokeFileError, StrokeSet
from fusedmdn.jobs import EnvironmentRefused, JobError, JobSpec
from fusedmdn.jobs import reading as reading_module
from fusedmdn.jobs.formats import FORMATS

from ..conftest import simulated

N = 23


@pytest.fixture(scope="module", params=["categorical", "bernoulli"])
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / request.param
    network(request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def categorical(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model"
    network("categorical").save_pretrained(path)
    return path


def network(pen):
    torch.manual_seed(0)
    model = FusedLSTMMDN({"categorical": 5, "bernoulli": 3}[pen], 12, 2, 3, pen=pen, skip=True)
    model.scale = Scale((0.25, -1.0), (3.5, 11.9))
    return model


def create(directory, checkpoint, **options):
    return jobs.create(directory, checkpoint, **{"sequences": N, "shard_size": 5, "max_steps": 30, **options})


def made(directory, checkpoint, **options):
    job = create(directory, checkpoint, **options)
    assert jobs.run(job).complete
    return job


def tree(job):
    """Every file's bytes."""
    return {
        str(path.relative_to(job.directory)): path.read_bytes() for path in job.directory.rglob("*") if path.is_file()
    }


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x.points, y.points)


# What is in the shards


@pytest.mark.parametrize("output", ["parquet", "npz"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": 0.7, "temperature": 1.3, "first_index": 1 << 40, "seed": -5}, {"precision": "bf16", "batch_size": 2}],
)
def test_shards_hold_what_generate_gives(tmp_path, checkpoint, output, options):
    job = made(tmp_path / "job", checkpoint, output=output, **options)
    given = {key: options[key] for key in ("bias", "temperature", "first_index") if key in options}
    batch = FusedLSTMMDN.from_pretrained(checkpoint).generate(
        N, 30, seed=options.get("seed", 0), dtype={"bf16": torch.bfloat16}.get(options.get("precision")), **given
    )
    same(list(jobs.read(job.directory)), list(batch))
    first = options.get("first_index", 0)
    indices = np.concatenate([piece().indices for piece in reading_module.pieces(job.directory)])
    assert indices.tolist() == list(range(first, first + N))
    ending = {"parquet": ".parquet", "npz": ".npz"}[output]
    assert sorted(p.name for p in (job.directory / "strokes").iterdir()) == [f"part-{k:06d}{ending}" for k in range(5)]
    same(list(jobs.read(job.file_of(4))), list(batch)[20:])


def test_the_cut_does_not_matter(tmp_path, checkpoint):
    whole = list(jobs.read(made(tmp_path / "whole", checkpoint, shard_size=100).directory))
    for shard_size, batch_size in ((1, 1), (7, 3), (N - 1, 100)):
        job = made(tmp_path / f"{shard_size}", checkpoint, shard_size=shard_size, batch_size=batch_size)
        same(list(jobs.read(job.directory)), whole)


def test_sequences_go_on_from_their_prefixes(tmp_path, checkpoint):
    model, random = FusedLSTMMDN.from_pretrained(checkpoint), np.random.default_rng(0)
    prefixes = [Strokes(np.column_stack([random.normal(size=(n, 2)), np.arange(n) == n - 1])) for n in (3, 0, 8)]
    StrokeSet.of(prefixes).save(tmp_path / "prime.npz")
    job = made(tmp_path / "job", checkpoint, prime=tmp_path / "prime.npz", first_index=4, batch_size=2)
    (tmp_path / "prime.npz").unlink()  # the job has its own
    for k, strokes in enumerate(jobs.read(job.directory)):
        prefix = prefixes[(4 + k) % 3]
        rows = torch.from_numpy(prefix.rows(model.pen, model.scale)[: len(prefix)])
        drawn = model.generate(1, 30, seed=0, first_index=4 + k, prime=rows)[0]
        assert np.array_equal(strokes.points, np.concatenate([prefix.points, drawn.points]))
    assert job.spec.prime["sequences"] == 3


def test_drawings(tmp_path, categorical):
    job = made(tmp_path / "job", categorical, output="svg")
    strokes = list(FusedLSTMMDN.from_pretrained(categorical).generate(N, 30, seed=0))
    names = []
    for shard in range(5):
        with zipfile.ZipFile(job.file_of(shard)) as archive:
            names += archive.namelist()
            for name in archive.namelist():
                text = archive.read(name).decode()
                ElementTree.fromstring(text)
                assert text == strokes[int(name[:-4])]._repr_svg_()
    assert names == [f"{i:09d}.svg" for i in range(N)]
    assert jobs.merge(job, tmp_path / "all.zip") == N
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.namelist() == names
        assert archive.read(names[-1]).decode() == strokes[-1]._repr_svg_()
    with pytest.raises(JobError, match="drawings becomes one .zip file"):
        jobs.merge(job, tmp_path / "all.parquet")
    with pytest.raises(JobError, match="job of drawings .* has no strokes to read"):
        list(jobs.read(job.directory))


def test_the_gpu_s_kernels_write_a_job(tmp_path, categorical):
    with simulated():
        job = create(tmp_path / "job", categorical, sequences=3, shard_size=2, max_steps=4)
        assert job.spec.environment["backend"] == "triton"
        assert job.spec.environment["multiprocessors"] == 8
        assert job.spec.plan in ("resident", "rows", "graph")
        forced = create(tmp_path / "forced", categorical, sequences=3, shard_size=2, max_steps=4, plan="rows")
        for one in (job, forced):
            assert jobs.run(one, engine=jobs.in_this_process("cpu")).complete
        with ops.plan("rows"):
            same(
                list(jobs.read(forced.directory)),
                list(FusedLSTMMDN.from_pretrained(categorical).generate(3, 4, seed=0)),
            )
    with pytest.raises(EnvironmentRefused, match="backend is cpu, the job's is triton"):
        jobs.run(create_again(job), engine=jobs.in_this_process("cpu"))


def create_again(job):
    """The job with a shard to be made."""
    job.record_of(0).unlink()
    return job


# Going on


def test_only_what_is_missing_or_damaged_is_made_again(tmp_path, categorical):
    job = made(tmp_path / "job", categorical)
    before = tree(job)
    assert (again := jobs.run(job)).kept == 5
    assert again.complete
    assert not again.written
    damages = {
        "no shard": (0, lambda: job.file_of(0).unlink()),
        "no record": (1, lambda: job.record_of(1).unlink()),
        "flipped": (2, lambda: flip(job.file_of(2))),
        "longer": (3, lambda: job.file_of(3).write_bytes(job.file_of(3).read_bytes() + b"x")),
        "record flipped": (4, lambda: flip(job.record_of(4))),
        "another's record": (0, lambda: job.record_of(0).write_bytes(job.record_of(1).read_bytes())),
    }
    for what, (shard, damage) in damages.items():
        damage()
        result = jobs.run(job)
        assert [record.shard for record in result.written] == [shard], what
        assert result.kept == 4
        assert tree(job) == before, what


def test_deleted_folders_are_made_again(tmp_path, categorical):
    job = made(tmp_path / "job", categorical)
    before = tree(job)
    for name in ("strokes", "records"):
        shutil.rmtree(job.directory / name)
    assert jobs.verify(job).missing == list(range(5))
    assert jobs.run(job).complete
    assert tree(job) == before


def test_killed_while_a_damaged_shard_is_made_again(tmp_path, categorical, monkeypatch):
    """Nothing says meanwhile that it is there: a run of other shards does not complete the job."""
    job = made(tmp_path / "job", categorical)
    flip(job.file_of(1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fusedmdn.jobs.shard.files.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        jobs.run(job)
    assert not jobs.run(job, range(2, 5)).complete
    assert jobs.run(job).complete
    assert jobs.verify(job).complete


def test_a_damaged_record_is_for_its_own_range_to_mend(tmp_path, categorical):
    job = create(tmp_path / "job", categorical)
    jobs.run(job, range(3))
    flip(job.record_of(0))
    assert not jobs.run(job, range(3, 5)).complete
    assert jobs.run(job).complete


def test_what_cannot_be_read_is_not_deleted(tmp_path, categorical, monkeypatch):
    """It may be intact, on a disk that is away for a moment."""
    job = made(tmp_path / "job", categorical)
    before = tree(job)

    def away(path, *_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("fusedmdn.jobs.job._sha256", away)
        found = jobs.verify(job, clean=True)
    assert (len(found.problems), found.damaged, found.complete) == (5, [], False)
    assert tree(job) == before
    assert jobs.verify(job).complete


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path, categorical, monkeypatch, number):
    monkeypatch.setattr("fusedmdn.jobs.job.fcntl.lockf", lambda *_: (_ for _ in ()).throw(OSError(number, "none")))
    assert jobs.run(create(tmp_path / "job", categorical)).complete


def flip(path, byte=60):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_ranges_in_any_order_are_one_job(tmp_path, categorical):
    straight, broken = made(tmp_path / "straight", categorical), create(tmp_path / "broken", categorical)
    for k, shards in enumerate((range(3, 5), range(1), range(1, 3))):
        result = jobs.run(broken, shards)
        assert result.complete == (k == 2) == (broken.directory / "manifest.json").exists()
    assert tree(straight) == tree(broken)
    assert jobs.run(broken, range(4, 10)).kept == 1  # a range may reach beyond the last
    for wrong in (range(5, 6), range(2, 2), range(0, 4, 2)):
        with pytest.raises(JobError, match="expected a:b with 0 <= a < b and a < 5"):
            jobs.run(broken, wrong)


def test_a_stop_leaves_whole_shards(tmp_path, categorical):
    job = create(tmp_path / "job", categorical, batch_size=2)

    class Stopping(jobs.Reports):
        batches = 0

        def drawn(self, sequences, points):
            self.batches += 1

        def stopping(self):
            return self.batches >= 5

    result = jobs.run(job, reports=Stopping())
    assert result.stopped
    assert [record.shard for record in result.written] == [0]
    assert not result.complete
    assert sorted(p.name for p in (job.directory / "strokes").iterdir()) == ["part-000000.parquet"]
    assert jobs.run(job).complete
    assert tree(job) == tree(made(tmp_path / "straight", categorical, batch_size=2))


def test_weights_that_fail_are_told_by_sequence(tmp_path):
    model = network("bernoulli")
    with torch.no_grad():
        model.head.bias[4:].fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    job = create(tmp_path / "job", tmp_path / "model", sequences=10)
    result = jobs.run(job)
    assert result.failed == {
        0: "shard 0: sequence 0 is not finite from point 0 on; do the weights diverge?",
        1: "shard 1: sequence 5 is not finite from point 0 on; do the weights diverge?",
    }
    assert not result.complete
    assert not list((job.directory / "strokes").iterdir())


def test_memory_stays_flat(tmp_path, categorical):
    """What is resident after the 20th shard is what is after the 200th, but for a few pages."""
    code = (
        "import sys; from fusedmdn import jobs\n"
        "class Watch(jobs.Reports):\n"
        "    resident = []\n"
        "    def written(self, record):\n"
        "        self.resident.append(int(open('/proc/self/statm').read().split()[1]) * 4096)\n"
        "job = jobs.create(sys.argv[1], sys.argv[2], 200 * 40, shard_size=40, max_steps=200)\n"
        "jobs.run(job, reports=Watch()); print(Watch.resident[19], max(Watch.resident[19:]))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "job", categorical],
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout  # fmt: skip
    settled, most = map(int, out.split())
    assert most - settled < 200 * 40 * 30 * 9 / 2  # half of the points that were drawn meanwhile


# The spec and the machine


def test_the_spec_is_what_was_asked_for(tmp_path, categorical):
    job = create(tmp_path / "a" / "job", categorical, seed=7, bias=0.5, precision="bf16")
    spec = jobs.Job(job.directory).spec
    assert spec == job.spec
    assert (spec.sequences, spec.seed, spec.bias, spec.precision, spec.plan) == (N, 7, 0.5, "bf16", None)
    assert spec.checkpoint["source"] == str(categorical)
    assert spec.environment["isa"] == ops.cpu_isa()
    assert spec.environment["pyarrow"] == pa.__version__
    assert [len(spec.sequences_of(k)) for k in range(spec.shards)] == [5, 5, 5, 5, 3]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["job"]
    with pytest.raises(FileExistsError, match="is there already"):
        create(job.directory, categorical)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 0}, r"sequences: expected an integer in \[1, .*\], got 0"),
        ({"shard_size": 2.0}, "shard_size: expected an integer"),
        ({"seed": True}, "seed: expected an integer"),
        ({"seed": 1 << 64}, "seed: expected an integer"),
        ({"max_steps": 1 << 30, "shard_size": 2}, "counted in int32"),
        ({"sequences": 10**7, "shard_size": 9}, "1111112 shards: expected at most 1000000; make shards larger"),
        ({"bias": -0.1}, "bias: expected a finite number >= 0, got -0.1"),
        ({"temperature": 0}, "temperature: expected a finite number > 0, got 0"),
        ({"temperature": float("nan")}, "temperature: expected a finite number > 0, got nan"),
        ({"bias": "1"}, "bias: expected a finite number >= 0, got '1'"),
        ({"precision": "fp16"}, "precision: expected one of float32, bf16; got 'fp16'"),
        ({"output": ["npz"]}, "output: expected one of parquet, npz, svg"),
        ({"plan": "rows"}, "plan: expected one for the backend triton and for no other, got 'rows'"),
        ({"checkpoint": {"path": "model"}}, r"checkpoint: expected an object of path \(str\)"),
        ({"checkpoint": {"path": "../x", "source": "", "sha256": ""}}, "expected a path that is a name"),
        ({"prime": {"path": "p", "sha256": "", "sequences": 0}}, "prime: expected at least one sequence, got 0"),
        ({"environment": {"backend": "abacus"}}, "environment: expected an object with backend one of"),
    ],
)
def test_bad_specs(tmp_path, categorical, change, message):
    spec = create(tmp_path / "job", categorical).spec
    with pytest.raises(JobError, match=message):
        dataclasses.replace(spec, **change)
    with pytest.raises(JobError, match=message):
        JobSpec.from_json({**spec.to_json(), **change})


def test_fields_missing_or_unknown(tmp_path, categorical):
    document = create(tmp_path / "job", categorical).spec.to_json()
    with pytest.raises(JobError, match="has an unknown field surprise"):
        JobSpec.from_json({**document, "surprise": 1})
    del document["seed"]
    with pytest.raises(JobError, match="has no field seed"):
        JobSpec.from_json(document)


def test_what_cannot_become_a_job_leaves_nothing(tmp_path, categorical, monkeypatch):
    with pytest.raises(CheckpointError, match="nor is it an embedded model"):
        create(tmp_path / "job", tmp_path / "nowhere")
    with pytest.raises(StrokeFileError, match=r"nothing\.npz"):
        create(tmp_path / "job", categorical, prime=tmp_path / "nothing.npz")
    StrokeSet.of([]).save(tmp_path / "empty.npz")
    with pytest.raises(JobError, match="holds no sequences to go on from"):
        create(tmp_path / "job", categorical, prime=tmp_path / "empty.npz")
    with pytest.raises(JobError, match="precision"):
        create(tmp_path / "job", categorical, precision="fp8")
    FusedLSTMMDN(7, 4, 1, 2).save_pretrained(tmp_path / "other")
    with pytest.raises(JobError, match="a network of 7 inputs cannot be fed its own rows"):
        create(tmp_path / "job", tmp_path / "other")
    monkeypatch.setattr("fusedmdn.jobs.job.sealed.write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        create(tmp_path / "job", categorical)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.npz", "other"]
    left, another = tmp_path / ".job.x1y2z3a4.tmp", tmp_path / ".job.b.x1y2z3a4.tmp"
    for path in (left, another):
        (path / "model").mkdir(parents=True)  # of a process that was killed there
    (tmp_path / "job").mkdir()  # an empty one is taken
    job = create(tmp_path / "job", categorical)
    assert jobs.verify(job, clean=True).leftovers == [left]
    assert sorted(p.name for p in tmp_path.iterdir()) == [another.name, "empty.npz", "job", "other"]


def test_another_machine_is_refused(tmp_path, categorical, monkeypatch):
    job = made(tmp_path / "job", categorical)
    before = tree(job)
    create_again(job)
    isa = next(name for name in _cpu.isas() if name != ops.cpu_isa())
    with (
        _cpu.forced_isa(isa),
        pytest.raises(EnvironmentRefused, match=rf"isa is {isa}, the job's is .*FUSEDMDN_CPU_ISA="),
    ):
        jobs.run(job)
    monkeypatch.setattr("fusedmdn.jobs.environment.__version__", "0.0.9")
    with pytest.raises(EnvironmentRefused, match=r"fusedmdn is 0\.0\.9, the job's is"):
        jobs.run(job)
    monkeypatch.undo()
    assert (job.directory / "manifest.json").exists()  # nothing was touched
    assert jobs.run(job).complete
    assert tree(job) == before


def test_other_weights_are_refused_by_name(tmp_path, categorical):
    job = create(tmp_path / "job", categorical)
    network("bernoulli").save_pretrained(job.directory / "model")
    with pytest.raises(JobError, match=r"model/config\.json: these are not the job's weights"):
        jobs.run(job)
    job = create(tmp_path / "job2", categorical)
    flip(next((job.directory / "model").glob("*.safetensors")))
    with pytest.raises(JobError, match=r"the job's weights: .*\.safetensors: damaged"):
        jobs.run(job)


def test_without_pyarrow(tmp_path, categorical, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"fusedmdn\[jobs\]"):
        create(tmp_path / "job", categorical)
    assert len(list(jobs.read(made(tmp_path / "job", categorical, output="npz").directory))) == N


# Parquet


def test_parquet_is_as_promised(tmp_path, categorical):
    job = made(tmp_path / "job", categorical)
    file = pq.ParquetFile(job.file_of(0))
    assert file.schema_arrow.names == ["index", "length", "dx", "dy", "pen"]
    for k, name in enumerate(("index", "length", "dx", "dy", "pen")):
        column = file.metadata.row_group(0).column(k)
        assert column.compression == "ZSTD"
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == (name in ("dx", "dy"))
    assert json.loads(file.schema_arrow.metadata[b"fusedmdn"]) == {"job": job.digest, "shard": 0, "first": 0}
    silent = 0
    path, data = tmp_path / "damaged.parquet", job.file_of(0).read_bytes()
    whole = pq.read_table(job.file_of(0))
    for bit in range(8 * 4, 8 * (len(data) - 2000), 97):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            silent += not pq.read_table(path, page_checksum_verification=True).equals(whole)
        except (OSError, pa.ArrowException):
            continue
    assert not silent  # by the pages' checksums alone


def test_pandas_and_pyarrow_read_it(tmp_path, categorical):
    job = made(tmp_path / "job", categorical)
    strokes = list(jobs.read(job.directory))
    frame = pd.read_parquet(job.directory / "strokes")
    assert frame["index"].tolist() == list(range(N))
    assert frame["length"].tolist() == [len(s) for s in strokes]
    assert np.array_equal(frame["dy"][7], strokes[7].points[:, 1])
    table = pyarrow.dataset.dataset(job.directory / "strokes").to_table(columns=["pen"])
    assert [pen.as_py() for pen in table["pen"]] == [s.points[:, 2].tolist() for s in strokes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["pen"]), "expected the columns index, length, dx, dy and pen of strokes, got index"),
        (lambda t: t.set_column(1, "length", pa.array([2, 2], pa.int32())), "length is not how many points there are"),
        (lambda t: t.set_column(4, "pen", pa.array([[0], [1, 1]], pa.list_(pa.uint8()))), "dx and pen have other"),
        (lambda t: t.set_column(4, "pen", pa.array([[0, 2], [1]], pa.list_(pa.uint8()))), "pen neither 0 nor 1"),
        (lambda t: t.set_column(2, "dx", pa.array([[0, None], [1]], pa.list_(pa.float32()))), "dx: a value is missing"),
        (lambda t: t.set_column(2, "dx", pa.array([[0, np.inf], [1]], pa.list_(pa.float32()))), "is not finite"),
        (lambda t: t.set_column(0, "index", pa.array([0, None], pa.int64())), "index: a value is missing"),
    ],
)
def test_parquet_that_holds_no_strokes(tmp_path, change, message):
    strokes = StrokeSet.of([Strokes([[1, 2, 0], [3, 4, 1]]), Strokes([[5, 6, 1]])])
    data = FORMATS["parquet"].encode(reading_module.Piece(np.arange(2), strokes), {})
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    same(list(jobs.read(path)), list(strokes))
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(JobError, match=rf"x\.parquet: .*{message}"):
        list(jobs.read(path))


# Reading


def test_merged_files(tmp_path, categorical):
    job = made(tmp_path / "job", categorical)
    strokes = list(jobs.read(job.directory))
    for ending in (".parquet", ".npz", ".zip"):
        assert jobs.merge(job, tmp_path / f"all{ending}") == N
    assert pq.ParquetFile(tmp_path / "all.parquet").num_row_groups == 5
    for path in ("all.parquet", "all.npz"):
        same(list(jobs.read(tmp_path / path)), strokes)
    same(list(load(tmp_path / "all.npz")), strokes)  # what `fusedmdn train` reads
    before = (tmp_path / "all.parquet").read_bytes()
    flip(job.file_of(3))
    for ending in (".parquet", ".npz", ".zip"):
        with pytest.raises(JobError, match=r"part-000003\.parquet: damaged"):
            jobs.merge(job, tmp_path / f"all{ending}")
    assert (tmp_path / "all.parquet").read_bytes() == before
    job.record_of(1).unlink()
    with pytest.raises(JobError, match="1 of 5 shards are not written, number 1 first"):
        jobs.merge(job, tmp_path / "all.parquet")
    with pytest.raises(JobError, match=r"the output ends in \.parquet, \.npz, \.zip"):
        jobs.merge(job, tmp_path / "all.csv")
    assert sorted(p.name for p in tmp_path.glob("all*")) == ["all.npz", "all.parquet", "all.zip"]


def test_reading_what_is_not_there(tmp_path, categorical):
    job = create(tmp_path / "job", categorical)
    jobs.run(job, range(1, 3))
    with pytest.raises(JobError, match="3 of 5 shards are not written, number 0 first; `fusedmdn jobs run`"):
        list(jobs.read(job.directory))
    assert len(list(jobs.read(job.directory, partial=True))) == 10
    for wrong, message in (
        (tmp_path / "nowhere", "is neither a job's directory nor a file"),
        (tmp_path, "no job.json there"),
        (job.directory / "job.json", "expected a job's directory, a .parquet or a .npz file"),
    ):
        with pytest.raises(JobError, match=message):
            list(jobs.read(wrong))
    strokes = StrokeSet.of([Strokes([[1, 2, 1]])])
    strokes.save(tmp_path / "plain.npz")
    with pytest.raises(JobError, match=r"plain\.npz: no array named index; found dx"):
        list(jobs.read(tmp_path / "plain.npz"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["job", "all.parquet", "all.npz"])
def test_a_loader_gives_every_sequence_once(tmp_path, categorical, workers, source):
    job = made(tmp_path / "job", categorical)
    if source != "job":
        jobs.merge(job, tmp_path / source)
    data = jobs.StrokeDataset(tmp_path / source)
    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=jobs.pad)
    found = []
    for rows, lengths in loader:
        assert rows.shape == (int(lengths.max()), len(lengths), 3)
        found += [rows[:n, b].tolist() for b, n in enumerate(lengths.tolist())]
    assert sorted(found) == sorted(s.points.tolist() for s in jobs.read(job.directory))


def test_ranks_divide_the_shards(tmp_path, categorical, monkeypatch):
    """Whatever way the loader starts its workers, which know of no ranks."""
    job = made(tmp_path / "job", categorical)
    found = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(reading_module.dist, "is_initialized", lambda: True)
            patch.setattr(reading_module.dist, "get_world_size", lambda: 2)
            patch.setattr(reading_module.dist, "get_rank", lambda rank=rank: rank)
            data = jobs.StrokeDataset(job.directory)
        loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="spawn")
        found.append([len(rows) for rows in loader])
    assert len(found[0]) == 5 + 5 + 3
    assert sorted(found[0] + found[1]) == sorted(len(s) for s in jobs.read(job.directory))


def test_a_model_trains_on_what_it_drew(tmp_path, categorical):
    job, model = made(tmp_path / "job", categorical), FusedLSTMMDN.from_pretrained(categorical)
    rows = jobs.StrokeDataset(job.directory, lambda s: torch.from_numpy(s.rows(model.pen, model.scale)))
    strokes, lengths = next(iter(DataLoader(rows, batch_size=8, collate_fn=jobs.pad)))
    assert strokes.shape[1:] == (8, 5)
    assert model.nll(strokes, lengths).isfinite()


# Verifying


def test_verify_names_what_is_wrong(tmp_path, categorical):
    job = made(tmp_path / "job", categorical)
    assert jobs.verify(job).complete
    before = tree(job)
    flip(job.file_of(0))
    job.file_of(1).unlink()
    job.record_of(2).unlink()
    flip(job.record_of(3))
    leftovers = [job.directory / "strokes" / ".part-000000.parquet.77.tmp", job.directory / ".manifest.json.7.tmp"]
    stray = job.directory / "records" / "notes.txt"
    for path in (*leftovers, stray):
        path.write_text("x")
    found = jobs.verify(job)
    assert (found.damaged, found.missing) == ([0, 1, 3], [2])
    assert (found.leftovers, found.strays) == (sorted(leftovers), [stray])
    told = "\n".join(found.problems)
    for name in ("part-000000.parquet: damaged: SHA-256", "part-000001.parquet: is missing", "part-000003.json",
                 "manifest.json: is not what the records say"):  # fmt: skip
        assert name in told
    assert not found.complete
    assert [record.shard for record in found.written] == [4]
    quick = jobs.status(job)
    assert (quick.damaged, quick.missing) == ([1, 3], [2])  # a flipped bit leaves the size

    jobs.verify(job, clean=True)
    assert not job.leftovers()
    assert stray.exists()  # it is somebody's
    assert not (job.directory / "manifest.json").exists()
    assert jobs.run(job).kept == 1
    assert jobs.verify(job, clean=True).complete
    stray.unlink()
    assert tree(job) == before
    flip(job.directory / "manifest.json")
    assert "manifest.json" in jobs.verify(job, clean=True).problems[0]
    assert jobs.run(job).complete
    flip(next((job.directory / "model").glob("*.safetensors")))
    assert "the job's weights" in jobs.verify(job).problems[0]
    assert tree(job).keys() == before.keys()


# The command


def call(*words, code=0):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["jobs", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command(tmp_path, categorical):
    job = tmp_path / "job"
    out = call("create", job, categorical, "-n", N, "--shard-size", 5, "--max-steps", 30, "--device", "cpu")
    assert f"{N} sequences in 5 shards" in out
    assert f"isa {ops.cpu_isa()}" in out
    assert "0 of 5 shards written" in call("status", job)
    call("preview", job, "--out", tmp_path / "before.svg", "-n", 4)
    assert "2 shards written" in (out := call("run", job, "--shards", "1:3"))
    assert "shard 1 (1 of 2): 5 sequences" in out
    assert "shards of other ranges are still to be written" in out
    assert "to be made: shards 0:1, 3:5" in call("status", job)
    assert json.loads(call("status", job, "--json"))["missing"] == [0, 3, 4]
    assert "not written: shards 0:1, 3:5" in call("verify", job, code=1)
    out = call("run", job)
    assert "3 shards written" in out
    assert "2 were there and verified" in out
    assert "complete: the manifest is written" in out
    assert "complete and verified" in call("verify", job)
    for name in ("all.parquet", "all.npz", "all.zip"):
        assert f"{N} sequences" in call("merge", job, tmp_path / name)
    call("preview", job, "--out", tmp_path / "some.png", "-n", 9)
    strokes = list(FusedLSTMMDN.from_pretrained(categorical).generate(4, 30, seed=0))
    assert (tmp_path / "before.svg").read_text().count("<path") == sum(len(s.polylines()) for s in strokes)
    flip(job / "strokes" / "part-000002.parquet")
    (job / "strokes" / ".part-000001.parquet.5.tmp").write_text("x")
    out = call("verify", job, code=1)
    assert "wrong: " in out
    assert "left over, or being written: " in out
    assert "deleted 1 damaged shards and 1 leftovers" in call("verify", job, "--clean", code=1)
    call("run", job)
    call("verify", job)


def test_the_command_refuses(tmp_path, categorical):
    job = create(tmp_path / "job", categorical).directory
    for words, message in (
        (("run", tmp_path / "none"), "no job.json there; `fusedmdn jobs create` makes a job"),
        (("run", job, "--shards", "3"), "shards: expected a:b, as 0:100, got '3'"),
        (("run", job, "--shards", "5:9"), "expected a:b with 0 <= a < b and a < 5, got 5:9"),
        (("run", job, "--workers", 2), "--workers: of no use to the engine local"),
        (("run", job, "--engine", "ray", "--threads", 2), "--threads: of no use to the engine ray"),
        (("run", job, "--engine", "magic"), "engine must be local or ray; got 'magic'"),
        (("create", job, categorical, "-n", 5), "is there already"),
        (("create", tmp_path / "x", categorical, "-n", 5, "--precision", "int4"), "precision: expected one of"),
        (("create", tmp_path / "x", categorical, "-n", 5, "--output", "csv"), "output: expected one of parquet"),
        (("create", tmp_path / "x", categorical, "-n", 5, "--plan", "rows"), "plan: expected one for the backend"),
        (("merge", job, tmp_path / "x.csv"), "the output ends in .parquet, .npz or .zip"),
        (("merge", job, tmp_path / "x.npz"), "5 of 5 shards are not written"),
        (("preview", job, "--out", tmp_path / "x.pdf"), "the output ends in .svg, .png or .gif"),
    ):
        assert message in call(*words, code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["job"]


def test_pictures_are_spread_over_the_job(tmp_path):
    network("bernoulli").save_pretrained(tmp_path / "model")
    job = made(tmp_path / "job", tmp_path / "model")
    all_of_it = [s.points.tobytes() for s in jobs.read(job.directory)]
    for n in (1, 2, 4, 9, N, 100):
        shown = [all_of_it.index(s.points.tobytes()) for s in jobs.preview(job, n)]
        assert shown == sorted({*shown})
        assert len(shown) == min(n, N)
        assert len({i // 5 for i in shown}) == min(n, 5)
