"""Every loader of files, as a function of bytes that may raise nothing but ValueError, with a reason.

A target's bytes are the file itself, or what is put into one that is otherwise right: "sealed" ones get a right SHA-256
whatever they hold, so that what lies behind that check is reached too.
"""

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from fusedmdn.ops import plans, tuned

import fusedmdn
from fusedmdn import FusedLSTMMDN, Scale, Strokes, dataset, jobs, render, sealed, tune
from fusedmdn.checkpoint import CONFIG, load_model, load_training, save_model
from fusedmdn.dataset import StrokeSet
from fusedmdn.jobs import formats, reading
from fusedmdn.jobs.job import MANIFEST, SPEC
from fusedmdn.loaders import pickled
from fusedmdn.train import Trainer, TrainOptions

from ..fusedmdn import stroke_files
from ..fusedmdn.synthetic import zigzags
from .foreign_targets import FOREIGN
from .target import Target

BETWEEN = b"\n--\n"
ARRAYS = (*dataset.COLUMNS, *dataset.OPTIONAL)
TENSORS = "weights-0123456789abcdef.safetensors"
DTYPES = ("<f4", "<f8", "<f2", "<i1", "<u8", "<i4", "<c8", "S3", "?", "<M8[s]", "V2", ">f4")


def prepare(name: str, folder: Path) -> Target:
    """A target, its files in an empty folder."""
    return TARGETS[name](folder)


# Strokes


def stroke_sets():
    drawn = zigzags(4)
    return [
        drawn,
        StrokeSet.of(list(drawn)),
        StrokeSet.of([]),
        StrokeSet.of([Strokes(np.zeros((0, 3)), "\N{CJK RADICAL REPEAT}a")], 0.25),
        StrokeSet.of(list(drawn), 0.0, ("train", "test", "validation", "train")),
    ]


def use(strokes):
    """What everybody does with strokes that were loaded."""
    for part in dataset.PARTS:
        assert len(strokes.part(part)) == len(list(strokes.part(part)))
    strokes.without_empty().digest()


def stroke_file(folder):
    path = folder / "strokes.npz"

    def load(data):
        path.write_bytes(data)
        use(fusedmdn.load(path))

    return Target(load, [npz_of(strokes) for strokes in stroke_sets()], path.name)


def npz_of(strokes, **more):
    sink = io.BytesIO()
    strokes.write(sink, **more)
    return sink.getvalue()


def stroke_arrays(folder):
    """The arrays of a file, one after the other: what lies behind a zip's checksums."""
    path = folder / "strokes.npz"

    def load(data):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in zip(ARRAYS, data.split(BETWEEN), strict=False):
                archive.writestr(f"{name}.npy", array)
        use(fusedmdn.load(path))

    def unpacked(data):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return BETWEEN.join(archive.read(name) for name in archive.namelist())

    return Target(load, [unpacked(npz_of(strokes)) for strokes in stroke_sets()], path.name)


def stroke_format(ending, seeds):
    """Files of others' formats, by their ending."""

    def target(folder):
        path = folder / f"strokes{ending}"

        def load(data):
            path.write_bytes(data)
            use(fusedmdn.load(path))

        return Target(load, seeds(), path.name, plain=True)

    return target


def xml_seeds():
    made = [stroke_files.IAM_LINE, stroke_files.INKML, stroke_files.SVG, stroke_files.combined(*stroke_files.KANJI)]
    return [text.encode() for text in made]


def svg_seeds():
    drawn = render.svg([zigzags(1)[0]])
    hidden = """<!DOCTYPE svg [<!ENTITY a "none">]><svg><style>.b,.c{display:none} /* */ .d{visibility:hidden}</style>
        <g class="b d"/><g style="display:&a;;transform:none" visibility="hidden"/><switch><g systemLanguage="a"/>
        <line class="e" x2="1"/></switch></svg>"""
    return [text.encode() for text in (stroke_files.SVG, hidden, drawn, *stroke_files.KANJI.values())]


def inkml_seeds():
    differences = """<ink><trace id="a">1125 18432,'23'43,"7"-8,3-5,* !7,'1 #F</trace></ink>"""
    pieces = """<ink><definitions><trace>1 1</trace></definitions><trace id="a">1 2, - 3 -#A,</trace><trace>5 6</trace>
        <trace continuation="end" priorRef="#a">3 4</trace></ink>"""
    return [text.encode() for text in (stroke_files.INKML, differences, pieces)]


def npy_seeds():
    drawings = stroke_files.drawings()
    five = Strokes(drawings[2]).stroke5()
    return [npy_of(array) for array in (drawings[2], five, stroke_files.objects(drawings))]


def npy_of(array):
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


def sketch_rnn_seeds():
    sink = io.BytesIO()
    sets = {name: stroke_files.objects(stroke_files.drawings(n)) for n, name in enumerate(("test", "valid", "train"))}
    np.savez_compressed(sink, **sets)
    return [sink.getvalue()]


def pickles(folder):
    """What lies behind a .npy file's header, by every protocol that numpy has written."""
    made = stroke_files.objects(stroke_files.drawings())

    def load(data):
        for array in pickled.unpickled(data, 10_000):
            assert array.nbytes <= len(data) or not array.size

    return Target(load, [pickle.dumps(made, protocol=protocol) for protocol in range(5)])


def arrays(folder):
    """Arrays of any dtype and shape that somebody calls strokes: a dtype, the number of columns, the values."""

    def load(data):
        kind, columns = (data + bytes(2))[:2]
        dtype, columns, values = np.dtype(DTYPES[kind % len(DTYPES)]), columns % 8, data[2:]
        rows = np.frombuffer(values[: len(values) // dtype.itemsize * dtype.itemsize], dtype)
        take(rows[: len(rows) // columns * columns].reshape(-1, columns) if columns else rows)

    three, five = zigzags(1).points, Strokes(zigzags(1).points).stroke5()
    seeds = [("<f4", three), ("<f4", five), ("<f8", five.astype("<f8"))]
    return Target(load, [bytes([DTYPES.index(kind), rows.shape[1]]) + rows.tobytes() for kind, rows in seeds])


def lists(folder):
    """Lists of lists that somebody calls strokes."""
    seeds = [zigzags(1).points.tolist(), Strokes(zigzags(1).points).stroke5().tolist(), [[[0, 1], [2, 3.5]], [[1, 1]]]]
    return Target(lambda data: take(_json(data)), [json.dumps(rows).encode() for rows in seeds])


def take(rows):
    scale = Scale((0.5, -1.0), (2.0, 3e38))
    ways = [Strokes, Strokes.from_stroke5, lambda rows: Strokes.from_rows(rows, scale)]
    for way in [*ways, Strokes.from_polylines] if isinstance(rows, list) else ways:
        try:
            strokes = way(rows)
        except ValueError as error:
            assert str(error)
        else:
            assert np.isfinite(strokes.points).all()
            strokes.polylines()
            strokes.rows("categorical", Scale())


# Checkpoints


def model(hidden=4):
    torch.manual_seed(0)
    made = FusedLSTMMDN(5, hidden, 2, 2, pen="categorical", skip=True, peephole=True, clip_gates=10.0)
    made.scale = Scale((0.5, -1.0), (11.9, 12.1))
    return made


def use_model(loaded):
    """What was accepted works."""
    loaded(torch.zeros(1, 1, loaded.input_size, dtype=loaded.head.weight.dtype))
    loaded.scale.arrays()


def config(folder):
    return _config(folder, lambda data: data)


def sealed_config(folder):
    return _config(folder, seal)


def _config(folder, prepared):
    save_model(model(), folder, {"a": torch.ones(3)}, {"step": 3})
    path = folder / CONFIG
    seeds = [path.read_bytes()]

    def load(data):
        path.write_bytes(prepared(data))
        use_model(load_model(folder))
        load_training(folder)

    return Target(load, seeds, str(folder))


def weights(folder):
    """The weights' file of a checkpoint that is sealed with it."""
    save_model(model(), folder)
    load, seeds = _with_tensors(folder, "weights")
    return Target(lambda data: use_model(load(data, load_model)), seeds, str(folder))


def _with_tensors(folder, part):
    """A function that loads the checkpoint with these bytes as that file, and what the file held."""
    document = json.loads((folder / CONFIG).read_text())
    seeds = [(folder / document[part]["file"]).read_bytes()]

    def load(data, loader):
        (folder / TENSORS).write_bytes(data)
        named = {"file": TENSORS, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        sealed.write(folder / CONFIG, {**document, part: named})
        return loader(folder)

    return load, seeds


def seal(data):
    """A JSON object with a right SHA-256; anything else as it is."""
    try:
        document = json.loads(data)
        if isinstance(document, dict):
            document = {**document, "sha256": sealed.digest_of(document)}
        return json.dumps(document).encode()
    except (ValueError, RecursionError):
        return data


def _json(data):
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("no JSON") from error


# Training runs


def begun(folder):
    """A small run of a few steps, and its data."""
    data = zigzags(40)
    options = TrainOptions(hidden_size=4, num_mixtures=2, batch_size=16, epochs=2, checkpoint_every=1, log_every=1)
    trainer = Trainer(options, data, folder / "run")
    trainer.run()
    return data, folder / "run"


def progress(folder):
    """What config.json says of a run, sealed."""
    data, run = begun(folder)
    path = run / "last" / CONFIG
    seeds = [path.read_bytes()]

    def load(changed):
        path.write_bytes(seal(changed))
        _go_on(data, run)

    return Target(load, seeds, str(run))


def training_state(folder):
    data, run = begun(folder)
    load, seeds = _with_tensors(run / "last", "training")
    return Target(lambda changed: load(changed, lambda last: _go_on(data, run)), seeds, str(run))


def metrics(folder):
    """A curve of which anything is left; a run goes on whatever that is."""
    data, run = begun(folder)
    path = run / "metrics.jsonl"
    seeds = [path.read_bytes()]

    def load(changed):
        path.write_bytes(changed)
        Trainer.resume(data, run)

    return _never_refused(load, seeds)


def _go_on(data, run):
    """Resume, and take a step: what was accepted works."""
    (run / "metrics.jsonl").write_text("")
    trainer = Trainer.resume(data, run)
    trainer._train_step(0, trainer.batches.order(0)[0])


def _never_refused(load, seeds):
    def strictly(data):
        try:
            load(data)
        except ValueError as error:
            raise AssertionError(f"refused: {error}") from error

    return Target(strictly, seeds)


# Measured plans

NAME = "Simulated GPU"
PLANS = [
    {"direction": "forward", "H": 400, "precision": "bfloat16", "B": 64, "plan": "persistent", "rows": 32, "units": 16},
    {"direction": "forward", "H": 400, "precision": "bfloat16", "B": 256, "plan": "stepwise", "rows": 0, "units": 0},
    {"direction": "backward", "H": 20, "precision": "tf32", "B": 3, "plan": "stepwise", "rows": 0, "units": 0},
]


def plans_taken(folder):
    """As an operator takes them: never refused, and a plan is found."""
    path = folder / "plans.json"
    device = plans.Device("sm_90", 132, 227 * 1024)

    def load(data):
        path.write_bytes(data)
        table = tuned.read(path)
        for B in (1, 64, 1000):
            plans.choose("forward", 400, B, torch.bfloat16, device, tuned=table)

    return _never_refused(load, _plans())


def plans_added_to(folder):
    """As `fusedmdn tune` reads them."""
    path = folder / "plans.json"

    def load(data):
        path.write_bytes(data)
        for entry in tune.read(path, NAME):
            assert [entry[field] for field in tune.KEY]

    return Target(load, _plans(), path.name)


def _plans():
    import triton

    return [json.dumps({"device": NAME, "triton": triton.__version__, "plans": PLANS}).encode()]


# Jobs


def job(folder, output="npz"):
    """A job of two shards, done."""
    save_model(model(), folder / "model")
    made = jobs.create(folder / "job", folder / "model", 5, shard_size=3, max_steps=6, output=output)
    assert jobs.run(made).complete
    return made


def job_spec(folder):
    return _job_spec(folder, lambda data: data)


def sealed_job_spec(folder):
    return _job_spec(folder, seal)


def _job_spec(folder, prepared):
    path = job(folder).directory / SPEC
    seeds = [path.read_bytes()]

    def load(data):
        path.write_bytes(prepared(data))
        opened = jobs.Job(path.parent)
        opened.model()
        opened.prime()
        opened.read_record(0)
        opened.read_manifest()

    return Target(load, seeds, str(path.parent))


def record(folder):
    made = job(folder)
    return _sealed_file(made.record_of(0), lambda: made.read_record(0), made)


def manifest(folder):
    made = job(folder)
    return _sealed_file(made.directory / MANIFEST, made.read_manifest, made)


def _sealed_file(path, read, made):
    """Its bytes as they are, and sealed; after that `status` and `verify` tell of it, and raise nothing."""
    seeds = [path.read_bytes()]

    def load(data):
        for changed in (data, seal(data)):
            path.write_bytes(changed)
            try:
                read()
            except ValueError as error:
                assert str(path) in str(error), error
                assert any(path.name in problem for problem in jobs.verify(made).problems)
            jobs.status(made)

    return Target(load, seeds)


def parquet(folder):
    return _shard(folder, "parquet")


def npz_shard(folder):
    return _shard(folder, "npz")


def _shard(folder, output):
    """A shard by itself, as `fusedmdn.jobs.read` takes one from anywhere."""
    made = job(folder, output)
    path = shutil.copy(made.file_of(0), folder / f"part{made.format.suffix}")
    seeds = [path.read_bytes(), made.file_of(1).read_bytes()]

    def load(data):
        path.write_bytes(data)
        for strokes in reading.read(path):
            assert np.isfinite(strokes.points).all()
        formats.FORMATS[output].decode(data, path.name)

    return Target(load, seeds, path.name)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "strokes": stroke_file,
    "strokes-arrays": stroke_arrays,
    "strokes-npy": stroke_format(".npy", npy_seeds),
    "strokes-sketch-rnn": stroke_format(".npz", sketch_rnn_seeds),
    "strokes-pickles": pickles,
    "strokes-xml": stroke_format(".xml", xml_seeds),
    "strokes-inkml": stroke_format(".inkml", inkml_seeds),
    "strokes-svg": stroke_format(".svg", svg_seeds),
    "arrays": arrays,
    "lists": lists,
    "config": config,
    "config-sealed": sealed_config,
    "weights": weights,
    "progress": progress,
    "training-state": training_state,
    "metrics": metrics,
    "plans-taken": plans_taken,
    "plans-added-to": plans_added_to,
    "job-spec": job_spec,
    "job-spec-sealed": sealed_job_spec,
    "record": record,
    "manifest": manifest,
    "shard-parquet": parquet,
    "shard-npz": npz_shard,
    **FOREIGN,
}
