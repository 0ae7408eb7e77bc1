from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.regularizers import SCHEDULES, schedule_weight

settings.register_profile("no_deadline", deadline=None)  # a busy machine must not fail a test
settings.load_profile("no_deadline")

shares = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("constant", {0.0: 1.0, 0.3: 1.0, 1.0: 1.0}),
        ("cosine", {0.0: 1.0, 0.5: 0.55, 1.0: 0.1}),
        ("two_phase", {0.0: 0.0, 0.199: 0.0, 0.2: 0.0, 0.21: 0.2, 0.225: 0.5, 0.25: 1.0, 0.9: 1.0}),
        ("linear_warmup", {0.0: 0.0, 0.05: 0.25, 0.1: 0.5, 0.2: 1.0, 1.0: 1.0}),
        ("quadratic_warmup", {0.0: 0.0, 0.05: 0.0625, 0.1: 0.25, 0.2: 1.0, 1.0: 1.0}),
    ],
)
def test_by_hand(name, points):
    for progress, expected in points.items():
        assert schedule_weight(name, 0.4, progress) == pytest.approx(0.4 * expected, abs=1e-12), (name, progress)


def test_cosine_is_symmetric_around_its_middle():
    for t in (0.1, 0.25, 0.4):
        total = schedule_weight("cosine", 2.0, t) + schedule_weight("cosine", 2.0, 1 - t)
        assert total == pytest.approx(2.0 * 1.1)


@given(st.sampled_from(SCHEDULES), st.floats(0.0, 10.0), shares, shares, shares)
def test_stays_between_zero_and_the_base_weight(name, base, progress, warmup, ramp):
    assert 0.0 <= schedule_weight(name, base, progress, warmup=warmup, ramp=ramp) <= base


@given(st.sampled_from([n for n in SCHEDULES if n != "cosine"]), shares, shares, shares, shares)
def test_only_the_cosine_decreases(name, one, other, warmup, ramp):
    low, high = sorted((one, other))
    early, late = (schedule_weight(name, 1.0, t, warmup=warmup, ramp=ramp) for t in (low, high))
    assert early <= late


@pytest.mark.parametrize("name", SCHEDULES)
def test_progress_outside_the_range_counts_as_the_nearer_end(name):
    assert schedule_weight(name, 1.0, 1.3) == schedule_weight(name, 1.0, 1.0)
    assert schedule_weight(name, 1.0, -0.1) == schedule_weight(name, 1.0, 0.0)


@pytest.mark.parametrize("name", ["two_phase", "linear_warmup", "quadratic_warmup"])
def test_no_warmup_and_no_ramp_is_full_strength_from_the_start(name):
    assert schedule_weight(name, 0.7, 0.0, warmup=0.0, ramp=0.0) == 0.7


def test_a_ramp_of_length_zero_is_a_jump():
    before, after = (schedule_weight("two_phase", 1.0, t, warmup=0.5, ramp=0.0) for t in (math.nextafter(0.5, 0), 0.5))
    assert (before, after) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("two_fase", 1.0, 0.5), {}, "Did you mean 'two_phase'"),
        (("cosine", 1.0, math.nan), {}, "progress must be a number"),
        (("two_phase", 1.0, 0.5), {"warmup": 1.2}, "warmup must be a fraction of training, from 0 to 1, and it is 1.2"),
        (("two_phase", 1.0, 0.5), {"ramp": -0.1}, "ramp must be a fraction"),
    ],
)
def test_refuses(arguments, settings, message):
    with pytest.raises(BALoraError, match=message):
        schedule_weight(*arguments, **settings)
