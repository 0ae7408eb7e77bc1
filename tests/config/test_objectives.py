"""Methods with an objective of their own, and settings of the objective that are not the paper's."""

from __future__ import annotations

import pytest

import balora
from balora import BALoraError, RegularizationConfig
from balora.config.run_config import RunConfig
from balora.objective import Objective
from small_runs import OFF, flat, history, trainer
from tiny import tiny_llama

BASE = {"model": "m", "task": "generation", "output": "runs/a", "data": {"train": "d.jsonl", "text": "story"}}


def config(method: str, **regularization) -> RegularizationConfig:
    values = {**BASE, "method": {"name": method}}
    return RunConfig.from_dict(values | ({"regularization": regularization} if regularization else {})).regularization


def test_dft_and_asft_have_their_own_objective():
    assert config("dft") == RegularizationConfig(task_loss="dft", consistency=0.0, diversity=0.0, spectral=0.0)
    asft = config("asft")
    assert (asft.task_loss, asft.consistency, asft.temperature, asft.diversity) == ("dft", 0.1, 1.0, 0.0)
    assert config("asft", consistency=0.05).consistency == 0.05
    assert config("asft", consistency=0.05).task_loss == "dft"
    assert config("balora").task_loss == "nll"


@pytest.mark.parametrize("name", ["task_loss", "consistency_tokens"])
def test_classifiers_have_neither(name):
    settings = RegularizationConfig.for_classification(**{name: {"task_loss": "dft"}.get(name, "non_target")})
    with pytest.raises(BALoraError, match=f"regularization.{name}: .* is for generation and seq2seq"):
        Objective(settings, "classification", num_labels=3)


@pytest.mark.parametrize("method", ["dft", "asft"])
def test_the_trainer_takes_the_methods_objective(tmp_path, method):
    own = trainer(balora.adapt(tiny_llama(), method, rank=4), tmp_path / "a", config=None, max_steps=3)
    plain = trainer(
        balora.adapt(tiny_llama(), method, rank=4), tmp_path / "b", config=None, max_steps=3, loss_path="plain"
    )
    assert own.regularization.task_loss == "dft"
    own.train()
    plain.train()
    assert (flat(own.model) - flat(plain.model)).abs().max() < 1e-4
    likelihood = trainer(balora.adapt(tiny_llama(), "lora", rank=4), tmp_path / "c", config=OFF, max_steps=1)
    likelihood.train()
    assert history(own, "task")[0] < 0.5 * history(likelihood, "task")[0]  # times a probability


def test_an_evaluation_reports_the_likelihood(tmp_path):
    from tiny import token_rows

    losses = []
    for task_loss in ("dft", "nll"):
        settings = RegularizationConfig(task_loss=task_loss, consistency=0.0, diversity=0.0, spectral=0.0)
        run = trainer(
            balora.adapt(tiny_llama(), "lora", rank=4),
            tmp_path / task_loss,
            config=settings,
            eval_dataset=token_rows(8),
        )
        losses.append(run.evaluate()["eval_loss"])
    assert losses[0] == losses[1]
