"""Configs of other tools, translated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora.config.foreign import tool_of, translate
from balora.config.run_config import load_run_config
from balora.config.yaml_loader import parse_yaml
from balora.errors import BALoraError
from command import Command

AXOLOTL = """
base_model: org/model
load_in_4bit: true
adapter: qlora
datasets: [{path: org/chat, type: chat_template, field_messages: talk}, {path: more.jsonl, type: alpaca, shards: 3}]
val_set_size: 0.1
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_ratio: 0.1
evals_per_epoch: 4
bf16: auto
train_on_inputs: false
early_stopping_patience: 3
"""
LLAMA_FACTORY = """
model_name_or_path: org/model
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
dataset: mine,chats
template: llama3
cutoff_len: 1024
max_samples: 500
output_dir: saves/x
learning_rate: 1.0e-4
report_to: wandb
"""
TRL = """
model_name_or_path: org/model
dataset_name: chat.jsonl
use_peft: true
lora_r: 32
max_length: 512
eval_strategy: steps
eval_steps: 10
packing: true
push_to_hub: false
"""


def test_axolotl(tmp_path: Path) -> None:
    found = translate(parse_yaml(AXOLOTL), tmp_path)
    assert found.tool == "axolotl"
    values = found.values
    assert values["data"] == {
        "train": "org/chat", "messages": "talk", "max_length": 2048, "eval": 0.1,
        "also": [{
            "train": "more.jsonl", "prompt": "instruction", "input": "input", "response": "output", "prompt_template": "alpaca"}],
    }  # fmt: skip
    assert values["method"] == {"name": "qlora", "bits": 4, "rank": 16, "alpha": 32}
    assert values["training"] == {
        "per_device_train_batch_size": 2, "num_train_epochs": 1, "optim": "adamw_bnb_8bit", "lr_scheduler_type": "cosine",
        "learning_rate": 2e-4, "warmup_steps": 0.1, "eval_strategy": "epoch",
    }  # fmt: skip
    assert values["early_stopping"] == 3
    assert found.left_out == ["datasets.shards: 3", "sample_packing: true"]
    assert any("evals_per_epoch: 4" in remark for remark in found.remarks)


def test_llama_factory(tmp_path: Path) -> None:
    info = {
        "mine": {"file_name": "a.json"},
        "chats": {"hf_hub_url": "org/chats", "formatting": "sharegpt", "columns": {"messages": "talk"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    found = translate(parse_yaml(LLAMA_FACTORY), tmp_path)
    data = found.values["data"]
    assert (data["train"], data["prompt_template"]) == (str(tmp_path / "a.json"), "alpaca")
    assert data["also"] == [{"train": "org/chats", "messages": "talk"}]
    assert found.values["method"] == {"name": "lora", "rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    assert found.values["output"] == "saves/x"
    assert found.left_out == ['report_to: "wandb"']
    assert any("template: llama3" in remark for remark in found.remarks)


def test_trl_is_read_with_its_data(balora: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    Path("chat.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    Path("trl.yaml").write_text(TRL)
    outcome = balora("init", "--from", "trl.yaml")
    assert outcome.status == 0, outcome.err
    assert "  packing: true" in outcome.out
    assert "push_to_hub" not in outcome.out
    config = load_run_config("run.yaml")
    assert (config.data.messages, config.data.eval, config.method.name, config.method.alpha) == (
        "messages",
        "test",
        "lora",
        32,
    )
    text = Path("run.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=balora.schema.json\n")
    assert "# not translated: packing: true" in text
    assert Path("balora.schema.json").is_file()


def test_what_cannot_be_translated_is_refused(tmp_path: Path) -> None:
    assert tool_of({"model": "m", "data": {}}) is None
    for values, message in (
        ({"model": "m"}, "not one of TRL"),
        ({"stage": "dpo", "finetuning_type": "lora"}, "for dpo"),
        ({"base_model": "m", "rl": "dpo", "datasets": []}, "for dpo"),
        ({"finetuning_type": "lora", "dataset": "x"}, "names no model"),
        ({"base_model": "m", "datasets": [], "lora_r": 8}, "names no data"),
    ):
        with pytest.raises(BALoraError, match=message):
            translate(values, tmp_path)
