"""Checkpoints: exact, checked, and whole whatever happens while they are written."""

import json
import os
import resource
import signal

import numpy as np
import pytest
import torch

from fusedmdn import FusedLSTMMDN, Scale, checkpoint, files, sealed
from fusedmdn.checkpoint import CheckpointError, load_training, save_model

from ..killer import Killer, in_a_child


def model(value=0, dtype=torch.float32):
    torch.manual_seed(value)
    m = FusedLSTMMDN(5, 8, 2, 3, pen="categorical", skip=True, peephole=True, dropout=0.1, clip_gates=10.0, dtype=dtype)
    m.scale = Scale((0.5, -1.0), (11.9 + value, 12.1))
    return m


def equal(a, b):
    return (
        a.config() == b.config()
        and a.scale == b.scale
        and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_there_and_back(tmp_path, dtype):
    saved = model(1, dtype)
    saved.save_pretrained(tmp_path / "new" / "checkpoint")
    loaded = FusedLSTMMDN.from_pretrained(tmp_path / "new" / "checkpoint")
    assert equal(loaded, saved)
    assert loaded.head.weight.dtype == dtype
    assert not loaded.training


def test_saving_again_leaves_one_model(tmp_path):
    for value in range(3):
        model(value).save_pretrained(tmp_path)
    assert equal(FusedLSTMMDN.from_pretrained(tmp_path), model(2))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_training_state_there_and_back(tmp_path):
    tensors = {"a/b": torch.randn(3), "rng": torch.get_rng_state()}
    save_model(model(), tmp_path, tensors, {"step": 7})
    loaded, again, progress = load_training(tmp_path)
    assert equal(loaded, model())
    assert all(torch.equal(again[k], v) for k, v in tensors.items())
    assert progress == {"step": 7}
    model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no training state"):
        load_training(tmp_path)


def test_kill_9_at_every_step_leaves_the_old_or_the_new(tmp_path):
    old, new = model(1), model(2)
    tensors = [{"x": torch.full((100,), float(k))} for k in (1, 2)]
    outcomes = []
    for n in range(1000):
        directory = tmp_path / str(n)
        save_model(old, directory, tensors[0], {"step": 1})

        def save(n=n, directory=directory):
            Killer(n).install(files)
            save_model(new, directory, tensors[1], {"step": 2})

        status = in_a_child(save)
        loaded, state, progress = load_training(directory)
        assert equal(loaded, {1: old, 2: new}[progress["step"]])
        assert torch.equal(state["x"], tensors[progress["step"] - 1]["x"])
        outcomes.append(progress["step"])
        save_model(new, directory, tensors[1], {"step": 2})  # and what was left behind is cleared away
        assert len(list(directory.iterdir())) == 3
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert n > 30
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def test_disk_full_leaves_the_old(tmp_path):
    save_model(model(1), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def save():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            save_model(model(2), tmp_path)
        except OSError as error:
            os._exit(7 if ".safetensors" in error.filename else 8)  # and it says which file did not fit

    assert in_a_child(save) == 7
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_every_flipped_bit_is_found(tmp_path):
    save_model(model(), tmp_path)
    paths = sorted(tmp_path.iterdir())
    generator = torch.Generator().manual_seed(0)
    for path in paths:
        data = path.read_bytes()
        for _ in range(200):
            damaged = bytearray(data)
            bit = int(torch.randint(len(data) * 8, (), generator=generator))
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                loaded = FusedLSTMMDN.from_pretrained(tmp_path)
            except CheckpointError as error:
                assert str(tmp_path) in str(error)
            else:  # white space between the words of config.json carries nothing
                assert path.suffix == ".json"
                assert json.loads(bytes(damaged)) == json.loads(data)
                assert equal(loaded, model())
        path.write_bytes(data)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "another"])
def test_damaged_weights_are_refused_by_name(tmp_path, damage):
    save_model(model(), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": data[:-1], "empty": b"", "another": data[::-1]}[damage])
    with pytest.raises(CheckpointError, match=path.name):
        FusedLSTMMDN.from_pretrained(tmp_path)


def test_a_config_of_other_weights_is_refused(tmp_path):
    """Even with a digest made right again, a config that does not describe its weights is named."""
    save_model(model(), tmp_path)
    path = tmp_path / "config.json"
    for change in ({"hidden_size": 9}, {"pen": "bernoulli"}, {"surprise": 1}, {"num_layers": 0}):
        config = json.loads(path.read_text())
        config["model"] |= change
        config["sha256"] = sealed.digest_of(config)
        path.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"config\.json: does not describe its weights"):
            FusedLSTMMDN.from_pretrained(tmp_path)
        save_model(model(), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "fusedmdn-1"}'])
def test_bad_configs_are_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        FusedLSTMMDN.from_pretrained(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"nor is it an embedded model \(kanji\)"):
        FusedLSTMMDN.from_pretrained(tmp_path / "nowhere")


def test_a_reader_follows_a_writer(tmp_path, monkeypatch):
    """Weights replaced between config.json and the file it named: the new config is read."""
    save_model(model(1), tmp_path)
    read, calls = checkpoint._read_tensors, []

    def racing(*args):
        calls.append(args)
        if len(calls) == 1:
            save_model(model(2), tmp_path)
        return read(*args)

    monkeypatch.setattr(checkpoint, "_read_tensors", racing)
    assert equal(FusedLSTMMDN.from_pretrained(tmp_path), model(2))


def test_a_failed_write_leaves_nothing(tmp_path):
    files.write(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "x") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"skip": 1}, "skip: expected bool, got 1"),
        ({"dropout": True}, "dropout: expected float, got True"),
    ],
)
def test_what_could_not_be_read_back_is_not_saved(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        save_model(FusedLSTMMDN(5, 8, 1, 3, **made), tmp_path)
    assert not (tmp_path / "config.json").exists()
    FusedLSTMMDN(5, 8, 1, 3, dropout=np.float64(0.5), clip_gates=1).save_pretrained(tmp_path)
    assert FusedLSTMMDN.from_pretrained(tmp_path).dropout == 0.5
