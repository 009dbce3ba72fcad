"""What a grid measures."""

import json

import pytest

from bench import settings
from bench.settings import Settings, models_of, parts


def whole(grid, kind):
    return parts(grid, kind, settings.WORKS, models_of(grid))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_full_grid(kind):
    found = whole("full", kind)
    by_model = {(part.work, part.model): part.setups for part in found}
    assert {"A", "B", "C", "D", "1x128", "1x256", "1x1024"} == {model for _, model in by_model} - {None}
    for model in models_of("full"):
        trained = {(setup["B"], setup["lengths"]) for setup in by_model["training", model]}
        assert trained >= {(1, "equal"), *((B, kind) for B in (16, 64, 256, 1024) for kind in ("equal", "ragged"))}
        assert {setup["B"] for setup in by_model["sampling", model]} >= {1, 16, 64, 256, 1024}
    assert {setup["lengths"] for setup in by_model["training", "B"]} == {
        "equal", "ragged", "equal, clipped", "equal, peepholes"
    }  # fmt: skip
    assert len(by_model["loss", None]) > 1


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_default_grid_has_every_work_and_model(kind):
    found = whole("default", kind)
    assert {(part.work, part.model) for part in found} >= {
        *((work, model) for work in ("training", "sampling") for model in "ABCD"), ("loss", None)
    }  # fmt: skip
    assert found[0].name == "training, model B"
    assert next(part for part in found if part.work == "loss").name == "loss"


def test_only_what_is_asked_for():
    assert [part.name for part in parts("default", "cpu", ("sampling", "loss"), ("D", "1x77"))] == [
        "sampling, model D", "loss", "sampling, model 1x77"
    ]  # fmt: skip


def test_settings_survive_json():
    given = Settings("cpu", 2, "quick", whole("quick", "cpu"), ("float32",), ("JAX",), None, 2, 3, 16)
    assert Settings.from_json(json.loads(json.dumps(given.as_json()))) == given
