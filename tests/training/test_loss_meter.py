from __future__ import annotations

import pytest
import torch

from balora.losses import LossParts
from balora.training.loss_meter import LossMeter


def parts(**values: float) -> LossParts:
    return LossParts(loss=torch.tensor(0.0), **{name: torch.tensor(value) for name, value in values.items()})


def weights(**values: float) -> dict[str, float]:
    return {"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0, **values}


def test_sums_over_items_are_added_within_a_step_and_averaged_over_steps():
    meter = LossMeter("generation")
    # Two steps of two micro-batches; the items of each step are already in the denominators.
    for task, near in ((1.0, 0.1), (2.0, 0.3), (3.0, 0.5), (5.0, 0.7)):
        meter.add(parts(task=task, consistency=near), weights(consistency=2.0), 0.5)
    found = meter.drain()
    assert found["task"] == pytest.approx((3.0 + 8.0) / 2)
    assert found["consistency"] == pytest.approx((0.4 + 1.2) / 2)
    assert found["consistency_weighted"] == pytest.approx(2.0 * 0.8)
    assert found["consistency_weight"] == pytest.approx(2.0)


def test_batch_statistics_are_averaged_within_a_step():
    meter = LossMeter("generation")
    for value in (-1.0, -3.0):
        meter.add(parts(task=0.0, spectral=value), weights(spectral=0.5), 0.5)
    found = meter.drain()
    assert found["spectral"] == pytest.approx(-2.0)
    assert found["spectral_weighted"] == pytest.approx(-1.0)


def test_which_part_is_which_depends_on_the_task():
    found = {}
    for task in ("generation", "classification"):
        meter = LossMeter(task)
        for value in (1.0, 3.0):
            meter.add(parts(task=0.0, diversity=value), weights(diversity=1.0), 0.5)
        found[task] = meter.drain()["diversity"]
    assert found == pytest.approx({"generation": 4.0, "classification": 2.0})


def test_a_moving_weight_is_averaged_and_so_is_the_product():
    meter = LossMeter("classification")
    for value, weight in ((1.0, 0.2), (3.0, 0.6)):
        meter.add(parts(task=0.0, diversity=value), weights(diversity=weight), 1.0)
    found = meter.drain()
    assert found["diversity_weight"] == pytest.approx(0.4)
    assert found["diversity_weighted"] == pytest.approx((0.2 + 1.8) / 2), "not the product of the means, which is 0.8"


def test_steps_without_a_part_count_for_its_weighted_mean_only():
    meter = LossMeter("generation")
    meter.add(parts(task=1.0), weights(), 1.0)
    meter.add(parts(task=1.0, diversity=-4.0), weights(diversity=0.5), 1.0)
    found = meter.drain()
    assert found["diversity"] == pytest.approx(-4.0)
    assert found["diversity_weight"] == pytest.approx(0.25)
    # So that the task and the weighted parts add up to the logged loss, which is the mean over both steps.
    assert found["diversity_weighted"] == pytest.approx(-1.0)


def test_a_part_that_is_off_is_there_with_its_weight_alone():
    meter = LossMeter("classification")
    meter.add(parts(task=1.0), weights(), 1.0)
    found = meter.drain()
    assert "consistency" not in found
    assert found["consistency_weight"] == found["consistency_weighted"] == 0.0
    assert {"variance_weight", "variance_weighted"} <= found.keys()
    meter = LossMeter("generation")
    meter.add(parts(task=1.0), weights(), 1.0)
    assert not [name for name in meter.drain() if "variance" in name]


def test_a_last_incomplete_step_weighs_as_much_as_any():
    meter = LossMeter("generation")
    for share, values in ((0.25, (1.0,) * 4), (1 / 3, (2.0,) * 3)):
        for value in values:
            meter.add(parts(task=value, spectral=value), weights(spectral=1.0), share)
    found = meter.drain()
    assert found["task"] == pytest.approx((4.0 + 6.0) / 2)
    assert found["spectral"] == pytest.approx((1.0 + 2.0) / 2)


def test_further_statistics_are_averaged():
    meter = LossMeter("classification")
    meter.add(parts(task=1.0), weights(), 0.5, logit_variance=torch.tensor(1.0, requires_grad=True))
    meter.add(parts(task=1.0), weights(), 0.5, logit_variance=torch.tensor(3.0))
    assert meter.drain()["logit_variance"] == pytest.approx(2.0)


def test_it_starts_afresh_after_each_reading():
    meter = LossMeter("generation")
    assert meter.drain() == {}
    meter.add(parts(task=7.0), weights(), 1.0)
    meter.drain()
    assert meter.drain() == {}
    meter.add(parts(task=1.0), weights(), 1.0)
    assert meter.drain()["task"] == 1.0


def test_the_processes_are_averaged_by_whoever_can():
    meter = LossMeter("generation")
    meter.add(parts(task=1.0), weights(consistency=2.0), 1.0)
    found = meter.drain(lambda values: values * 3)
    assert found["task"] == 3.0 and found["consistency_weight"] == 6.0
