"""`early_stopping` in a config."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import TrainerControl

from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.training.arguments import training_arguments
from balora.training.callbacks import EarlyStop
from command import Command


def stopped_at(scores: list[float], patience: int, min_delta: float = 0.0, *, greater: bool = False) -> int | None:
    """Return the number of the evaluation after which the callback stops a run with these scores."""
    callback = EarlyStop(patience, min_delta, lambda line: None)
    name = "eval_accuracy" if greater else "eval_loss"
    args = SimpleNamespace(metric_for_best_model=name, greater_is_better=greater)
    history: list[dict] = []
    for number, score in enumerate(scores, 1):
        control = TrainerControl()
        history.append({"step": number, name: score})
        state = SimpleNamespace(log_history=history, global_step=number, max_steps=99, is_world_process_zero=True)
        callback.on_evaluate(args, state, control)
        if control.should_training_stop:
            return number
    return None


def test_a_run_stops_after_the_patience() -> None:
    assert stopped_at([3, 2, 1, 1.5, 1.2], 2) == 5
    assert stopped_at([3, 2, 2.5, 1, 1.5], 2) is None
    assert stopped_at([0.1, 0.5, 0.4], 1, greater=True) == 3
    assert stopped_at([3.0, 2.95, 2.91], 2, min_delta=0.1) == 3


def config_values(config: Path, **changes) -> dict:
    values = yaml.safe_load(config.read_text())
    values["training"] |= {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2, **changes.pop("training", {})}
    values["data"]["eval"] = 0.25
    return {**values, **changes}


def test_the_needed_arguments_are_filled_in(config: Path) -> None:
    values = config_values(config, early_stopping=2)
    del values["training"]["save_steps"]
    arguments = training_arguments(RunConfig.from_dict(values))
    assert arguments.load_best_model_at_end
    assert (arguments.metric_for_best_model, arguments.save_steps) == ("loss", 2)
    off = training_arguments(RunConfig.from_dict({**values, "early_stopping": None}))
    assert not off.load_best_model_at_end


def test_early_stopping_without_evaluations_is_refused(config: Path) -> None:
    values = config_values(config, early_stopping=2, training={"eval_strategy": "no"})
    with pytest.raises(BALoraError, match="early_stopping needs evaluations"):
        training_arguments(RunConfig.from_dict(values))
    with pytest.raises(BALoraError, match=r"early_stopping\.patience"):
        RunConfig.from_dict(config_values(config, early_stopping=0))


def test_a_run_that_hardly_improves_stops_and_keeps_the_best(balora: Command, config: Path, tmp_path: Path) -> None:
    values = config_values(
        config,
        early_stopping={"patience": 1, "min_delta": 0.1},
        training={"max_steps": 40, "learning_rate": 3.0, "report_to": []},
    )
    config.write_text(yaml.safe_dump(values))
    outcome = balora("train", config)
    assert outcome.status == 0, outcome.err
    assert "Stopping early at step" in outcome.out
    record = json.loads((Path(values["output"]) / "run.json").read_text())
    losses = [
        line["eval_loss"]
        for line in map(json.loads, (Path(values["output"]) / "metrics.jsonl").read_text().splitlines())
        if "eval_loss" in line
    ]
    assert len(losses) < 21
    assert record["metrics"]["eval_loss"] == pytest.approx(min(losses))
