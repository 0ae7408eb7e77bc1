"""`hyperparameter_search`: each trial has a fresh adapter, its own teacher and its own directory."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.trainer_utils import HPSearchBackend

import balora
from balora import BALoraTrainer
from balora.errors import BALoraError
from small_runs import arguments
from tiny import pad_rows, tiny_llama, token_rows


def make_trainer(folder: Path, **changes: Any) -> BALoraTrainer:
    """A trainer whose ``model_init`` adapts the same pre-trained model with the rank of the trial."""
    pretrained = tiny_llama()

    def model_init(trial: Any = None) -> Any:
        rank = 2 if trial is None else trial["rank"] if isinstance(trial, dict) else trial.params.get("rank", 2)
        return balora.adapt(copy.deepcopy(pretrained), method="balora", rank=rank)

    rows = token_rows()
    more = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        **changes,
    }
    return BALoraTrainer(
        model_init=model_init, args=arguments(folder, **more), train_dataset=rows, eval_dataset=rows[:3],
        data_collator=pad_rows, regularization={"consistency": 0.1},
    )  # fmt: skip


def test_a_trial_changes_model_arguments_and_regularization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a search without its library: a stand-in for a trial of Optuna."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    run = make_trainer(tmp_path, save_strategy="no")
    first = run.teacher
    run.hp_search_backend, run.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    run.compute_objective = lambda metrics: metrics["eval_loss"]
    run._report_to_hp_search = lambda *_: None
    values = {"rank": 3, "learning_rate": 1e-4, "regularization.consistency": 0.7}
    run.train(trial=SimpleNamespace(number=0, params=values))
    run.hp_search_backend = None
    assert run.model.peft_config["default"].r == 3 and run.args.learning_rate == 1e-4
    assert run.regularization.consistency == 0.7 and run.objective.config.consistency == 0.7
    assert run.teacher is not first and run.step.model is run.model, "the teacher is that of the new model"
    callbacks = [type(callback).__name__ for callback in run.callback_handler.callbacks]
    assert callbacks.count("GradientCheck") == 1
    run.hp_search_backend = HPSearchBackend.OPTUNA
    with pytest.raises(BALoraError, match=r"regularization\.consistancy.*Did you mean .*consistency"):
        run.train(trial=SimpleNamespace(number=1, params={**values, "regularization.consistancy": 1.0}))


def test_train_without_a_search_makes_a_fresh_model_too(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, eval_strategy="no")
    run.train()
    assert run.step.model is run.model and run.state.global_step == 2
    assert (tmp_path / "checkpoint-2" / "initial.safetensors").is_file()


def test_optuna_finds_the_best_trial(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="optuna is not installed (pip install optuna)")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def space(trial: Any) -> dict[str, Any]:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            "rank": trial.suggest_categorical("rank", [2, 4]),
            "regularization.consistency": trial.suggest_float("regularization.consistency", 0.01, 0.5),
        }

    run = make_trainer(tmp_path)
    best = run.hyperparameter_search(
        hp_space=space, n_trials=2, backend="optuna", compute_objective=lambda metrics: metrics["eval_loss"],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    assert best.objective > 0 and set(best.hyperparameters) == set(space(optuna.trial.FixedTrial(best.hyperparameters)))
    for number in (0, 1):
        assert (tmp_path / f"run-{number}" / "checkpoint-2" / "initial.safetensors").is_file(), "each trial has its own"


@pytest.mark.slow
@pytest.mark.timeout(1500)  # Ray starts processes that import torch anew
def test_ray_tune_finds_the_best_trial(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'ray[tune]')")
    tune = pytest.importorskip("ray.tune")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        best = make_trainer(tmp_path, save_strategy="no").hyperparameter_search(
            hp_space=lambda _: {"rank": tune.choice([2, 4]), "regularization.consistency": tune.uniform(0.01, 0.5)},
            n_trials=2, backend="ray", compute_objective=lambda metrics: metrics["eval_loss"],
            storage_path=str(tmp_path / "ray"),
        )  # fmt: skip
    finally:
        ray.shutdown()
    assert best.objective > 0 and best.hyperparameters["rank"] in (2, 4)
