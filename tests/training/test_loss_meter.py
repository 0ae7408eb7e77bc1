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
    loss_meter = LossMeter("generation")
    # Two steps of two micro-batches; the items of each step are already in the denominators.
    for task, near in ((1.0, 0.1), (2.0, 0.3), (3.0, 0.5), (5.0, 0.7)):
        loss_meter.add(parts(task=task, consistency=near), weights(consistency=2.0), 0.5)
    found = loss_meter.drain()
    assert found["task"] == pytest.approx((3.0 + 8.0) / 2)
    assert found["consistency"] == pytest.approx((0.4 + 1.2) / 2)
    assert found["consistency_weighted"] == pytest.approx(2.0 * 0.8)
    assert found["consistency_weight"] == pytest.approx(2.0)


def test_batch_statistics_are_averaged_within_a_step():
    loss_meter = LossMeter("generation")
    for value in (-1.0, -3.0):
        loss_meter.add(parts(task=0.0, spectral=value), weights(spectral=0.5), 0.5)
    found = loss_meter.drain()
    assert found["spectral"] == pytest.approx(-2.0)
    assert found["spectral_weighted"] == pytest.approx(-1.0)


def test_batch_statistics_depend_on_the_task():
    found = {}
    for task in ("generation", "classification"):
        loss_meter = LossMeter(task)
        for value in (1.0, 3.0):
            loss_meter.add(parts(task=0.0, diversity=value), weights(diversity=1.0), 0.5)
        found[task] = loss_meter.drain()["diversity"]
    assert found == pytest.approx({"generation": 4.0, "classification": 2.0})


def test_a_changing_weight_and_its_product_with_the_part_are_averaged():
    loss_meter = LossMeter("classification")
    for value, weight in ((1.0, 0.2), (3.0, 0.6)):
        loss_meter.add(parts(task=0.0, diversity=value), weights(diversity=weight), 1.0)
    found = loss_meter.drain()
    assert found["diversity_weight"] == pytest.approx(0.4)
    assert found["diversity_weighted"] == pytest.approx((0.2 + 1.8) / 2), "not the product of the means, which is 0.8"


def test_steps_without_a_part_count_only_in_its_weighted_mean():
    loss_meter = LossMeter("generation")
    loss_meter.add(parts(task=1.0), weights(), 1.0)
    loss_meter.add(parts(task=1.0, diversity=-4.0), weights(diversity=0.5), 1.0)
    found = loss_meter.drain()
    assert found["diversity"] == pytest.approx(-4.0)
    assert found["diversity_weight"] == pytest.approx(0.25)
    # The task and the weighted parts must add up to the logged loss, which is the mean over both steps.
    assert found["diversity_weighted"] == pytest.approx(-1.0)


def test_a_part_with_weight_0_is_logged_only_by_its_weight():
    loss_meter = LossMeter("classification")
    loss_meter.add(parts(task=1.0), weights(), 1.0)
    found = loss_meter.drain()
    assert "consistency" not in found
    assert found["consistency_weight"] == found["consistency_weighted"] == 0.0
    assert {"variance_weight", "variance_weighted"} <= found.keys()
    loss_meter = LossMeter("generation")
    loss_meter.add(parts(task=1.0), weights(), 1.0)
    assert not [name for name in loss_meter.drain() if "variance" in name]


def test_an_incomplete_last_step_has_the_same_weight():
    loss_meter = LossMeter("generation")
    for share, values in ((0.25, (1.0,) * 4), (1 / 3, (2.0,) * 3)):
        for value in values:
            loss_meter.add(parts(task=value, spectral=value), weights(spectral=1.0), share)
    found = loss_meter.drain()
    assert found["task"] == pytest.approx((4.0 + 6.0) / 2)
    assert found["spectral"] == pytest.approx((1.0 + 2.0) / 2)


def test_further_statistics_are_averaged():
    loss_meter = LossMeter("classification")
    loss_meter.add(parts(task=1.0), weights(), 0.5, logit_variance=torch.tensor(1.0, requires_grad=True))
    loss_meter.add(parts(task=1.0), weights(), 0.5, logit_variance=torch.tensor(3.0))
    assert loss_meter.drain()["logit_variance"] == pytest.approx(2.0)


def test_draining_resets_the_meter():
    loss_meter = LossMeter("generation")
    assert loss_meter.drain() == {}
    loss_meter.add(parts(task=7.0), weights(), 1.0)
    loss_meter.drain()
    assert loss_meter.drain() == {}
    loss_meter.add(parts(task=1.0), weights(), 1.0)
    assert loss_meter.drain()["task"] == 1.0


def test_drain_applies_the_average_over_processes():
    loss_meter = LossMeter("generation")
    loss_meter.add(parts(task=1.0), weights(consistency=2.0), 1.0)
    found = loss_meter.drain(lambda values: values * 3)
    assert found["task"] == 3.0 and found["consistency_weight"] == 6.0
