"""Anchors that only measure, and anchors read from a file that another run kept."""

from __future__ import annotations

import pytest
import torch
from test_anchored_training import ROWS, Tokenizer, adapted, anchors

from balora import Anchors, BALoraError
from balora.anchoring.rows import FILE, AnchorRows
from small_runs import OFF, flat, history, trainer


def test_measuring_changes_nothing_of_the_training(tmp_path):
    free = trainer(adapted(), tmp_path / "a", config=OFF, max_steps=3)
    measured = trainer(
        adapted(), tmp_path / "b", config=OFF, max_steps=3, anchors=anchors(measure_only=True, budget=0.1)
    )
    free.train()
    metrics = measured.train().metrics
    assert torch.equal(flat(free.model), flat(measured.model))
    assert metrics["anchor_drift"] > 1e-4
    assert "anchor_final_weight" not in metrics and "anchor_budget" not in metrics
    assert not history(measured, "anchor")


def test_the_same_anchors_are_held_out_whether_they_hold_or_measure(tmp_path):
    held = trainer(adapted(), tmp_path / "a", config=OFF, max_steps=1, anchors=anchors())
    measured = trainer(adapted(), tmp_path / "b", config=OFF, max_steps=1, anchors=anchors(measure_only=True))
    for run in (held, measured):
        run.train()
    assert held.anchor_term.rows.held_out == measured.anchor_term.rows.held_out


def test_a_kept_file_of_anchors_is_read(tmp_path):
    AnchorRows(ROWS, 0.125, 1).save(tmp_path / FILE)
    settings = Anchors(text=str(tmp_path / FILE), sequences=8)
    run = trainer(adapted(), tmp_path / "run", config=OFF, max_steps=1, anchors=settings, processing_class=Tokenizer())
    run.train()
    own = AnchorRows.load(tmp_path / "run" / FILE, 0.125, 42)
    assert len(own.rows) == 8 and all(dict(row) in [dict(r) for r in ROWS] for row in own.rows)


@pytest.mark.parametrize(
    ("rows", "part"), [(None, "no file"), (({"input_ids": [1, 5000]}, {"input_ids": [1, 2]}), "another model's")]
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, rows, part):
    if rows is not None:
        AnchorRows(rows, 0.125, 1).save(tmp_path / FILE)
    run = trainer(
        adapted(), tmp_path / "run", config=OFF, max_steps=1, anchors=Anchors(text=str(tmp_path / FILE)),
        processing_class=Tokenizer(),
    )  # fmt: skip
    with pytest.raises(BALoraError, match=part):
        run.train()


def test_measure_only_is_true_or_false():
    with pytest.raises(BALoraError, match="measure_only"):
        Anchors.generated(16, measure_only="yes")
