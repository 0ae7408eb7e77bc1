"""Configs of other tools, translated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora.config.foreign import tool_of, translate
from balora.config.run_config import RunConfig, load_run_config
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
        "train": "org/chat", "messages": "talk", "max_length": 2048, "eval": 0.1, "packing": True,
    }  # fmt: skip
    assert values["method"] == {"name": "qlora", "bits": 4, "rank": 16, "alpha": 32}
    assert values["training"] == {
        "per_device_train_batch_size": 2, "num_train_epochs": 1, "optim": "adamw_bnb_8bit", "lr_scheduler_type": "cosine",
        "learning_rate": 2e-4, "warmup_steps": 0.1, "eval_strategy": "epoch",
    }  # fmt: skip
    assert values["early_stopping"] == 3
    assert found.left_out == [
        "datasets.shards: 3",
        "more.jsonl: its examples have another form (instruction, output) than the first source's (talk); convert it",
    ]
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
    assert "also" not in data
    assert found.values["method"] == {"name": "lora", "rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    assert found.values["output"] == "saves/x"
    other = "org/chats: its examples have another form (talk) than the first source's (instruction, output); convert it"
    assert found.left_out == [other, 'report_to: "wandb"']
    assert any("template: llama3" in remark for remark in found.remarks)


def test_trl_is_read_with_its_data(balora: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    Path("chat.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    Path("trl.yaml").write_text(TRL)
    outcome = balora("init", "--from", "trl.yaml")
    assert outcome.status == 0, outcome.err
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
    assert "\n  packing: true\n" in text
    assert Path("balora.schema.json").is_file()


ROLES = {"assistant": ["gpt", "agent"], "user": ["human", "customer"]}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "client",
    "assistant_tag": "agent",
    "system_tag": "system",
}
AX = {
    "base_model": "m",
    "sequence_len": 64,
    "datasets": [{"path": "d.jsonl", "type": "chat_template"}],
    "adapter": "lora",
}
LF = {"model_name_or_path": "m", "finetuning_type": "lora", "stage": "sft", "dataset": "a"}
INFO = {
    "a": {"file_name": "a.jsonl"},
    "b": {"file_name": "b.jsonl"},
    "talks": {
        "file_name": "t.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "turns", "system": "sys"},
        "tags": TAGS,
    },
}


@pytest.mark.parametrize(("given", "expected", "said"), [
    (AX | {"datasets": [{"path": "d.jsonl", "type": "chat_template", "roles": ROLES, "roles_to_train": ["assistant"]}]},
     {"data.roles": {"agent": "assistant", "customer": "user"}}, ""),
    (AX | {"sample_packing": True, "eval_sample_packing": False, "pad_to_sequence_len": True}, {"data.packing": True}, ""),
    (AX | {"sample_packing": True, "neftune_noise_alpha": 5}, {"data.packing": None}, "Packing is left out: the noise"),
    (AX | {"early_stopping_patience": 3, "val_set_size": 0}, {"early_stopping": None}, "early stopping needs data.eval"),
    (AX | {"early_stopping_patience": 3, "val_set_size": 0.1, "eval_steps": 5},
     {"early_stopping": 3, "training.eval_strategy": "steps"}, ""),
    (AX | {"streaming": True, "max_steps": 10, "val_set_size": 0.1}, {"data.streaming": True, "data.eval": None}, "evaluation on"),
    (AX | {"datasets": [{"path": "d", "type": {"field_instruction": "q", "field_input": "c", "field_output": "a",
                                               "format": "[{instruction}|{input}]"}}]},
     {"data.prompt_template": "[{prompt}|{input}]", "data.input": "c", "data.separator": ""}, ""),
    (LF | {"packing": True, "use_rslora": True}, {"data.packing": True, "method.name": "rslora"}, "mixes the examples"),
    (LF | {"neat_packing": True, "early_stopping_steps": 2, "val_size": 0.1},
     {"data.packing": True, "early_stopping": 2, "training.eval_strategy": "epoch"}, ""),
    (LF | {"streaming": True, "buffer_size": 99, "max_steps": 5}, {"data.streaming": True, "data.shuffle_buffer": 99}, ""),
    (LF | {"stage": "pt"}, {"data.text": "text", "data.prompt": None}, ""),
    (LF | {"dataset": "talks"},
     {"data.messages": "turns", "data.system": "sys", "data.roles": {"client": "user", "agent": "assistant"}}, ""),
    ({"model_name_or_path": "m", "dataset_name": "d", "dataset_text_field": "body", "use_peft": True, "lora_r": 4,
      "packing": True, "packing_strategy": "wrapped", "padding_free": True}, {"data.packing": True}, "cuts examples"),
])  # fmt: skip
def test_a_key_of_each_tool(tmp_path: Path, given: dict, expected: dict, said: str) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    found = translate(given, tmp_path)
    for key, value in expected.items():
        section, _, name = key.partition(".")
        assert (found.values.get(section, {}).get(name) if name else found.values.get(section)) == value, key
    assert any(said in line for line in (*found.remarks, *found.left_out, "")), (found.remarks, found.left_out)
    columns = {} if found.values["data"].get("messages") or found.values["data"].get("prompt") else {"text": "text"}
    RunConfig.from_dict({**found.values, "task": "generation", "data": {**columns, **found.values["data"]}})


def test_probabilities_become_weights(balora: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dataset_info.json").write_text(json.dumps(INFO))
    for name, count in (("a", 10), ("b", 40)):
        row = {"instruction": "say", "input": "", "output": name}
        Path(f"{name}.jsonl").write_text((json.dumps(row) + "\n") * count)
    values = LF | {"dataset": "a,b", "mix_strategy": "interleave_over", "interleave_probs": "0.5,0.5"}
    Path("lf.yaml").write_text(json.dumps(values))
    outcome = balora("init", "--from", "lf.yaml")
    assert outcome.status == 0, outcome.err
    assert load_run_config("run.yaml").data.also[0].weight == 0.25


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


def test_further_data_of_the_same_form_are_kept(tmp_path: Path) -> None:
    sources = [{"path": "a.jsonl", "type": "alpaca"}, {"path": "b.jsonl", "type": "alpaca"}]
    found = translate({"base_model": "m", "datasets": sources, "adapter": "lora"}, tmp_path)
    assert [entry["train"] for entry in found.values["data"]["also"]] == ["b.jsonl"] and not found.left_out


@pytest.mark.parametrize(
    "change",
    [{"datasets": "train.jsonl"}, {"datasets": [7]}, {"val_set_size": "some"}, {"learning_rate": "fast"}],
    ids=str,
)
def test_values_of_another_kind_are_refused(tmp_path: Path, change: dict) -> None:
    values = {"base_model": "m", "datasets": [{"path": "a.jsonl"}], "adapter": "lora", "lora_r": 8, **change}
    with pytest.raises(BALoraError, match="not of the kind that axolotl takes"):
        translate(values, tmp_path)
