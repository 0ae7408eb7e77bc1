from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import balora
from balora import BALoraError, RegularizationConfig
from balora.schedules import SCHEDULES


def test_the_papers_values_for_generation():
    config = RegularizationConfig.for_generation()
    assert (config.consistency, config.diversity, config.spectral) == (0.025, 0.005, 0.005)
    assert (config.temperature, config.top_k, config.spectral_rank) == (2.0, 20, 10)
    assert (config.consistency_schedule, config.focus_schedule) == ("cosine", "two_phase")
    assert (config.focus_warmup, config.focus_ramp, config.variance) == (0.2, 0.05, 0.0)
    assert config == RegularizationConfig()


def test_the_papers_values_for_classification():
    config = RegularizationConfig.for_classification()
    assert (config.consistency, config.diversity, config.spectral) == (0.15, 0.03, 0.03)
    assert (config.temperature, config.spectral_rank) == (2.0, 5)
    assert (config.consistency_schedule, config.focus_schedule) == ("constant", "constant")
    assert (config.teacher_head, config.diversity_target, config.spectral_target) == ("initial", "logits", "logits")
    assert config.batch_statistics == "local"


def test_changes_replace_the_papers_values():
    config = RegularizationConfig.for_classification(spectral=0.0, teacher_head="probe")
    assert (config.spectral, config.consistency, config.teacher_head) == (0.0, 0.15, "probe")


def test_off_is_inactive_and_any_one_weight_is_active():
    assert not RegularizationConfig.off().active
    for name in ("consistency", "diversity", "spectral", "variance"):
        assert dataclasses.replace(RegularizationConfig.off(), **{name: 0.1}).active


def test_it_is_frozen_and_takes_keywords_only():
    config = RegularizationConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.consistency = 1.0
    with pytest.raises(TypeError):
        RegularizationConfig(0.025)


def test_to_dict_and_from_dict_are_inverse():
    config = RegularizationConfig(consistency=0.3, focus_schedule="linear_warmup", variance=0.1)
    assert RegularizationConfig.from_dict(config.to_dict()) == config


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(BALoraError, match=r"Unknown key regularization\.consistancy\. Did you mean 'consistency'\?"):
        RegularizationConfig.from_dict({"consistancy": 0.1})
    with pytest.raises(BALoraError, match=r"regularization\.diversty"):
        RegularizationConfig.for_classification(diversty=0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("consistency", -0.1),
        ("diversity", -1),
        ("spectral", math.nan),
        ("variance", math.inf),
        ("consistency", "0.1"),
        ("consistency", True),
        ("consistency", None),
        ("temperature", 0),
        ("temperature", -2.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 1),
        ("top_k", 2.0),
        ("top_k", True),
        ("spectral_rank", 0),
        ("spectral_rank", 1.5),
        ("focus_warmup", -0.1),
        ("focus_warmup", 1.1),
        ("focus_ramp", 2),
        ("focus_ramp", "x"),
        ("consistency_schedule", "cosin"),
        ("focus_schedule", "none"),
        ("teacher_head", "prob"),
        ("batch_statistics", "globl"),
        ("diversity_target", "logit"),
        ("spectral_target", None),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name_and_value(name, value):
    with pytest.raises(BALoraError) as caught:
        RegularizationConfig(**{name: value})
    assert f"regularization.{name}" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("consistency", 0),
        ("top_k", 2),
        ("spectral_rank", 1),
        ("focus_warmup", 0),
        ("focus_ramp", 1),
        ("temperature", 1e-3),
    ],
)
def test_the_limit_of_a_range_is_allowed(name, value):
    assert getattr(RegularizationConfig(**{name: value}), name) == value


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_can_be_chosen(schedule):
    assert RegularizationConfig(consistency_schedule=schedule, focus_schedule=schedule).focus_schedule == schedule


def test_a_misspelt_choice_names_the_choices_and_the_nearest():
    with pytest.raises(BALoraError, match=r"must be one of initial, probe, not 'prob'\. Did you mean 'probe'\?"):
        RegularizationConfig(teacher_head="prob")


def test_all_problems_come_in_one_error():
    with pytest.raises(BALoraError) as caught:
        RegularizationConfig(consistency=-1, temperature=0, top_k=1, spectral_target="x")
    message = str(caught.value)
    assert "4 problems" in message
    for name in ("consistency", "temperature", "top_k", "spectral_target"):
        assert f"regularization.{name} " in message


def test_reading_the_settings_does_not_import_torch():
    code = "import sys; from balora.regularization import RegularizationConfig as C; C(); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(Path(balora.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
