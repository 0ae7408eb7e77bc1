"""Forms of the Trainer's argument ``regularization``."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import balora
from balora import RegularizationConfig
from balora.errors import BALoraError
from balora.training.trainer import regularization_of
from small_runs import trainer
from tiny import labelled_rows, tiny_bert, tiny_llama, token_rows


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, RegularizationConfig.for_generation()),
        ("on", RegularizationConfig.for_generation()),
        (True, RegularizationConfig.for_generation()),
        ("off", RegularizationConfig.off()),
        (False, RegularizationConfig.off()),
        ({"consistency": 0.5}, RegularizationConfig.for_generation(consistency=0.5)),
        (RegularizationConfig(diversity=0.25), RegularizationConfig(diversity=0.25)),
    ],
)
def test_every_form_reaches_the_trainer(tmp_path: Path, value: object, expected: RegularizationConfig) -> None:
    run = trainer(balora.adapt(tiny_llama(), rank=4), tmp_path, config=value)
    assert run.regularization == expected
    assert run.objective.config.consistency == expected.consistency


def test_a_classifier_gets_the_papers_values_for_classification(tmp_path: Path) -> None:
    run = trainer(balora.adapt(tiny_bert(), rank=4), tmp_path, rows=labelled_rows(), config={"variance": 0.5})
    assert run.regularization == RegularizationConfig.for_classification(variance=0.5)


def test_a_wrong_value_is_one_sentence() -> None:
    with pytest.raises(BALoraError, match=r"Unknown key regularization\.consistancy.*consistency"):
        regularization_of({"consistancy": 1}, "generation")
    with pytest.raises(BALoraError, match="on or off, not 'maybe'"):
        regularization_of("maybe", "generation")


def test_a_methods_own_objective_stays_the_default() -> None:
    own = {"task_loss": "dft"}
    assert regularization_of(None, "generation", own) == RegularizationConfig.of_objective(own)


def test_a_small_vocabulary_is_said(tmp_path: Path) -> None:
    run = trainer(balora.adapt(tiny_llama(vocab=12), rank=2), tmp_path, rows=token_rows(4, vocab=12), config="on")
    assert any("20 likeliest tokens" in notice and "the model has 12" in notice for notice in run.objective.notices)


def test_tab_completion_offers_the_public_names() -> None:
    assert {*balora.__all__, "methods", "regularizers", "losses"} <= set(dir(balora))


@pytest.mark.parametrize("name", balora.__all__)
def test_a_public_name_has_help_and_a_signature(name: str) -> None:
    found = getattr(balora, name)
    assert len(inspect.getdoc(found) or "") > 60 and inspect.signature(found).parameters
