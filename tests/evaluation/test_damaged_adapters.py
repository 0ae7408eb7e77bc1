"""An adapter in peft's format that is damaged or belongs to another model is refused; peft would leave out what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from balora import BALoraError
from balora.evaluation.model_under_test import ModelUnderTest
from tiny import tiny_llama, tiny_tokenizer

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(base: Path, folder: Path, **settings) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    config = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
    get_peft_model(model, LoraConfig(r=2, **config)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "base"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(base: Path) -> Path:
    return save_adapter(base, base.with_name("adapter"))


def change_weights(folder: Path, change) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def without_one(weights: dict) -> dict:
    weights.pop(min(weights))
    return weights


def with_nan(weights: dict) -> dict:
    weights[min(weights)][0] = torch.nan
    return weights


DAMAGES = {
    "a tensor is missing": (lambda f: change_weights(f, without_one), "its file lacks model.layers.0"),
    "a layer that the model lacks": (
        lambda f: change_weights(
            f, lambda w: {**w, "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(2, 32)}
        ),
        "no place for model.layers.9",
    ),
    "a weight is NaN": (lambda f: change_weights(f, with_nan), "not finite"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "the config is a list": (lambda f: (f / CONFIG).write_text("[]"), "it is no JSON object"),
    "an unknown kind": (
        lambda f: (f / CONFIG).write_text(json.dumps({**json.loads((f / CONFIG).read_text()), "peft_type": "WARP"})),
        "does not know: 'WARP'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(whole: Path, tmp_path: Path, damage: str):
    folder = Path(shutil.copytree(whole, tmp_path / "adapter"))
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(BALoraError, match=message):
        ModelUnderTest(str(folder)).load("cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"], "use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": [5, 6], "lora_bias": True},
    ],
    ids=str,
)
def test_a_whole_adapter_is_loaded(base: Path, tmp_path: Path, settings: dict):
    ModelUnderTest(str(save_adapter(base, tmp_path / "adapter", **settings))).load("cpu")


def test_the_base_can_be_given_where_the_adapter_names_none(whole: Path, base: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "adapter"))
    config = {**json.loads((folder / CONFIG).read_text()), "base_model_name_or_path": None}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(BALoraError, match="does not say which model it is for"):
        ModelUnderTest(str(folder))
    assert ModelUnderTest(str(folder), base=str(base)).base.directory == base
