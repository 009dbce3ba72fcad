"""The weights that ship: what they are said to reach, on characters they never saw, and that what they draw ends."""

import json
import re

import numpy as np
import pytest

from fusedmdn import FusedLSTMMDN
from fusedmdn.checkpoint import locate
from fusedmdn.dataset import kanjivg
from fusedmdn.evaluate import evaluate


@pytest.fixture(scope="module")
def kanji():
    return FusedLSTMMDN.from_pretrained("kanji")


def test_size_and_scale(kanji):
    folder = locate("kanji")
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 3_000_000
    assert kanji.pen == "categorical"
    assert kanji.scale == kanjivg().part("train").scale()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_nats_per_row(kanji, part):
    """At most -3.1 on held-out characters, and just what the README beside the weights says."""
    result = evaluate(kanji, kanjivg().part(part))
    assert result.nats_per_row <= -3.1
    readme = (locate("kanji") / "README.md").read_text()
    said = re.search(rf"\| {part} \| (-[0-9.]+) \| (-[0-9.]+) \| ([0-9.]+) \|", readme)
    got = result.nats_per_row, result.nats_per_sequence, result.sse
    assert [float(v) for v in said.groups()] == pytest.approx(got, abs=2e-3, rel=1e-3)


def test_curve_is_of_these_weights():
    lines = [json.loads(line) for line in (locate("kanji") / "metrics.jsonl").read_text().splitlines()]
    nats = [line["validation"]["nats_per_row"] for line in lines]
    assert len(nats) == 60
    assert min(nats) == lines[-1]["best"]
    assert f"{min(nats):.4f}" in (locate("kanji") / "README.md").read_text()


def test_characters_end_and_stay_in_their_box(kanji):
    batch = kanji.generate(256, 400, seed=1)
    assert batch.state.done.float().mean() > 0.98
    assert 45 < batch.lengths.float().mean() < 90  # of the real ones: 69
    position = np.concatenate([np.concatenate(s.polylines()) for s in batch if len(s)])
    inside = ((position > -10) & (position < 120)).all(axis=1)  # the box is 109 x 109
    assert inside.mean() > 0.97
    strokes = [len(s.polylines()) for s in batch]
    assert 9 < np.mean(strokes) < 15  # of the real ones: 12


def test_first_sequences_do_not_depend_on_how_many_are_drawn(kanji):
    few, many = kanji.generate(3, 60, seed=5), kanji.generate(40, 60, seed=5)
    for i in range(3):
        a, b = few[i].points, many[i].points
        n = min(len(a), len(b), 12)
        assert np.allclose(a[:n], b[:n], atol=1e-2)
