"""Every loader, in CI: some hundred spoiled files each, always the same ones."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .mutations import mutate
from .targets import TARGETS, prepare

EXAMPLES = 150


@pytest.fixture(params=TARGETS)
def target(request, tmp_path):
    return prepare(request.param, tmp_path)


def test_what_is_right_is_taken(target):
    for seed in target.seeds:
        target.load(seed)


@settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False))
def test_what_is_spoiled_is_refused_with_a_reason(target, random):
    target.check(mutate(random.choice(target.seeds), target.seeds, random))
