"""End of a run with a budget: a drift above it is taken off, and reported on anchors that steered nothing."""

from __future__ import annotations

import math

import pytest
import torch
from test_anchored_training import ROWS, Tokenizer, adapted, anchors, moved

import balora
from balora import Anchors, BALoraError, RegularizationConfig
from balora.anchoring.correction import Drift, part_within
from balora.anchoring.rows import AnchorRows
from balora.teacher.pretrained import PretrainedTeacher
from small_runs import OFF, flat, trainer
from tiny import labelled_rows, tiny_bert, tiny_llama


@pytest.mark.parametrize("method", ["pissa", "dora", "full"])
def test_parts_of_a_change_go_from_the_pretrained_to_the_trained_model(method):
    model = balora.adapt(tiny_llama(), method, **({} if method == "full" else {"rank": 4}))
    teacher, before = PretrainedTeacher(model), flat(model).clone()
    trained = flat(moved(model)).clone()
    keep = teacher.parts_of_change()
    for part in (0.5, 0.0, 0.25, 1.0):
        keep(part)
        torch.testing.assert_close(flat(model), before + part * (trained - before), rtol=1e-6, atol=1e-7)
    assert torch.equal(flat(model), trained)
    keep(0.0)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(
    "drift", [lambda a: 0.5 * a**2, lambda a: 0.5 * a**6, lambda a: 0.5 * math.sin(a), lambda a: a if a > 0.3 else 0]
)
def test_the_part_is_found_for_any_growing_drift(drift):
    part, found = part_within(0.05, drift(1.0), drift)
    assert found == drift(part) <= 0.0505
    if drift(0.29):
        assert found >= 0.0495


def test_the_error_of_a_drift_is_that_of_its_mean():
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(2000, 25, generator=generator, dtype=torch.float64)
    means = [Drift.of_groups(row.tolist(), [1.0] * 25) for row in values]
    spread = torch.tensor([drift.mean for drift in means]).std()
    assert sum(drift.error for drift in means) / 2000 == pytest.approx(float(spread), rel=0.05)
    assert math.isnan(Drift.of_groups([1.0], [2.0]).error)


def test_rows_that_steer_are_neither_trained_on_nor_reported():
    rows = AnchorRows([{"input_ids": [1, n, 3]} for n in range(20)], 0.1, 3, control=5)
    parts = [set(rows.train), set(rows.control), set(rows.held_out)]
    assert [len(part) for part in parts] == [10, 5, 5] and len(set.union(*parts)) == 20
    with pytest.raises(BALoraError, match="A budget needs at least 3 anchors"):
        AnchorRows(ROWS[:2], 0.1, 3, control=1)


def test_a_drift_above_the_budget_is_taken_off(tmp_path):
    # The weight is far too low for this budget, and the run too short to raise it.
    held = Anchors.generated(16, tokens=8, weight=1e-3, budget=0.02, control=64)
    run = trainer(adapted(), tmp_path, config=OFF, anchors=held, max_steps=9, processing_class=Tokenizer())
    metrics = run.train().metrics
    rows = run.anchor_term.rows
    assert len(rows.control) == len(rows.held_out) == 64
    assert metrics["anchor_scale"] < 0.9
    assert run.anchor_term.drift(run.model, rows.control).mean == pytest.approx(0.02, rel=0.011)
    assert metrics["anchor_drift"] == pytest.approx(0.02, abs=4 * metrics["anchor_drift_error"])
    assert any("keeps 0." in notice for notice in run.objective.notices)


def test_a_drift_below_the_budget_is_said_and_changes_nothing(tmp_path):
    runs = [
        trainer(
            adapted(), tmp_path / str(n), config=OFF, anchors=anchors(budget=budget, measure_only=n > 0), max_steps=2
        )
        for n, budget in enumerate((50.0, 50.0))
    ]
    metrics = [run.train().metrics for run in runs]
    assert metrics[0]["anchor_scale"] == 1.0
    assert any("Less was used than allowed" in notice for notice in runs[0].objective.notices)
    assert "anchor_scale" not in metrics[1] and not runs[1].objective.notices


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_the_consistency_budget_is_kept_too(tmp_path, kind):
    if kind == "generation":
        model, data = adapted(), {}
        config = RegularizationConfig(
            consistency=1e-3, consistency_budget=0.02, diversity=0.0, spectral=0.0, temperature=1.0
        )
    else:
        model, data = balora.adapt(tiny_bert(), "pissa", rank=4), {"rows": labelled_rows(16)}
        config = RegularizationConfig.for_classification(
            teacher_head="probe", consistency=1e-3, consistency_budget=0.002
        )
    run = trainer(model, tmp_path, config=config, max_steps=12, **data)
    metrics = run.train().metrics
    assert metrics["consistency_scale"] < 1
    # The rows that steered and those that report are a few rows each, all of them trained on.
    assert metrics["consistency_reached"] == pytest.approx(metrics["consistency_budget"], rel=0.6)
