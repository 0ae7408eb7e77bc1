"""`consistency_budget`: the paper's consistency weight follows the drift that may be reached."""

from __future__ import annotations

import json

import pytest
import torch
from test_anchored_training import adapted, anchors

from balora import BALoraError, RegularizationConfig
from balora.checkpoints.model_card import model_card
from balora.config.run_config import RunConfig
from balora.training.saving import CONSISTENCY_STATE
from small_runs import OFF, Do, flat, history, trainer

TERM = {"diversity": 0.0, "spectral": 0.0, "temperature": 1.0}


def budgeted(budget: float | None, **changes) -> RegularizationConfig:
    return RegularizationConfig(**{**TERM, "consistency": 1.0, "consistency_budget": budget, **changes})


def test_a_short_run_at_a_constant_rate_ends_near_the_budget(tmp_path):
    steps = {"max_steps": 60, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    free = trainer(adapted(), tmp_path / "a", config=budgeted(None, consistency=1e-6), **steps)
    free.train()
    budget = 0.3 * sum(history(free, "consistency")[-30:]) / 30
    run = trainer(adapted(), tmp_path / "b", config=budgeted(budget, consistency=0.5), **steps)
    metrics = run.train().metrics
    # The weight follows a target above the budget, and what is above the budget is taken off at the end.
    assert metrics["consistency_reached"] == pytest.approx(budget, rel=0.35)
    assert metrics["consistency_budget"] == budget and metrics["consistency_final_weight"] != 0.5


def test_the_weight_has_no_schedule_and_is_the_same_in_any_split_of_the_batch(tmp_path):
    weights = {}
    for accumulation in (1, 2):
        run = trainer(
            adapted().double(), tmp_path / str(accumulation), config=budgeted(0.01), max_steps=16,
            per_device_train_batch_size=4 // accumulation, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        run.train()
        weights[accumulation] = history(run, "consistency_weight")
    assert weights[1][:5] == [1.0] * 5, "no schedule, and the first window moves nothing"
    assert len(set(weights[1])) >= 2
    assert weights[2] == pytest.approx(weights[1], rel=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    settings = {"config": budgeted(0.02), "max_steps": 20, "save_strategy": "steps", "save_steps": 13}
    whole = trainer(adapted(), tmp_path / "a", **settings)
    whole.train()
    model = adapted()
    from balora.methods.initial_state import trainable_parameters

    initial = {name: p.detach().clone() for name, p in trainable_parameters(model)}

    def stop() -> None:
        raise KeyboardInterrupt

    broken = trainer(model, tmp_path / "b", **settings)
    broken.add_callback(Do("on_step_end", 16, stop))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    state = json.loads((tmp_path / "b" / "checkpoint-13" / CONSISTENCY_STATE).read_text())
    assert state["seen"] and state["weight"] != 1.0
    again = trainer(adapted(), tmp_path / "b", initial=initial, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-13"))
    assert torch.equal(flat(again.model), flat(whole.model))
    assert again.consistency_weight.state() == whole.consistency_weight.state()


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"consistency_budget": 0}, "nats per token above 0"),
        ({"consistency_budget": "low"}, "nats per token above 0"),
        ({"consistency_budget": 0.1, "consistency": 0.0}, "a weight to start from"),
    ],
)
def test_budgets_that_cannot_be_are_refused(values, part):
    with pytest.raises(BALoraError, match=part):
        RegularizationConfig(**values)


def test_the_card_says_the_budget():
    values = {
        "model": "m", "task": "generation", "output": "o", "data": {"train": "a.jsonl", "text": "t"},
        "regularization": {"consistency_budget": 0.03},
    }  # fmt: skip
    card = model_card(RunConfig.from_dict(values), {"consistency_reached": 0.031}, {})
    assert "follows a budget of 0.03 nats per token" in card and "0.031" in card


def test_all_micro_batches_of_a_step_have_the_same_weight_of_the_anchors(tmp_path):
    weights = {}
    for accumulation in (1, 2):
        run = trainer(
            adapted().double(), tmp_path / str(accumulation), config=OFF, anchors=anchors(weight=1e-3, budget=1e-3),
            max_steps=16, per_device_train_batch_size=4 // accumulation, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        run.train()
        weights[accumulation] = history(run, "anchor_weight")
    assert len(set(weights[1])) >= 2
    assert weights[2] == pytest.approx(weights[1], rel=1e-4)
