"""`validate` finds whatever `train` refuses before its first step, in the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tiny import tiny_llama, tiny_tokenizer


def more_tokens(model: Path, **_: Path) -> list[str]:
    folder = model.parent / "tokenizer"
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<new{i}>" for i in range(3)])
    tokenizer.save_pretrained(folder)
    return [f"tokenizer={folder}"]


def change_weights(model: Path, change: Callable[[dict], object]) -> list[str]:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return []


def random_head(model: Path, **_: Path) -> list[str]:
    return change_weights(model, lambda tensors: tensors.pop("lm_head.weight"))


def missing_layer(model: Path, **_: Path) -> list[str]:
    return change_weights(model, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))


def other_sizes(model: Path, **_: Path) -> list[str]:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, "intermediate_size": 56}))
    return []


def unfinished_cache(model: Path, train: Path, balora, config: Path) -> list[str]:
    cache = f"teacher_cache={model.parent / 'cache'}"
    assert balora("teacher", config, cache).status == 0
    train.write_text(train.read_text() + json.dumps({"question": "one more?", "answer": "yes."}) + "\n")
    return [cache]


def damaged_checkpoint(balora, config: Path, model: Path, **_: Path) -> list[str]:
    run = model.parent / "run"
    assert balora("train", config).status == 0
    shutil.rmtree(run / "adapter")
    (run / "run.json").write_text('{"status": "running"}')
    (run / "checkpoint-6" / "trainer_state.json").write_text("{}")
    return []


def other_rows(balora, config: Path, model: Path, train: Path) -> list[str]:
    damaged_checkpoint(balora, config, model)
    run = model.parent / "run"
    shutil.rmtree(run / "checkpoint-6")
    (run / "run.json").write_text('{"status": "running", "data": {"digest": "other"}}')
    return []


CASES = {
    "more tokens": (more_tokens, "has 100 tokens and the model"),
    "a random head": (random_head, "1 tensors would be random, such as lm_head.weight"),
    "a missing layer": (missing_layer, "1 tensors would be random, such as model.layers.0.mlp.up_proj.weight"),
    "other sizes": (other_sizes, "do not have the sizes"),
    "no such optimizer": (lambda **_: ["training.optim=galore_adamw", "training.optim_target_modules=all-linear"], "galore"),
    "an optimizer of another kind": (lambda **_: ["training.optim=sgd", "method={name: lorafa, rank: 4}"], "asks for SGD"),
    "rows that the cache lacks": (unfinished_cache, "lacks 1 of the 25 training rows"),
    "a damaged checkpoint": (damaged_checkpoint, "trainer_state.json is not as it was written"),
    "other rows": (other_rows, "training or evaluation examples have changed"),
    "no step": (
        lambda **_: ["training.dataloader_drop_last=true", "training.per_device_train_batch_size=32"], "would take no step"
    ),
    "a link": (lambda model, **_: (model.parent / "run").mkdir() or (model.parent / "run" / "run.json").symlink_to(model) or [],
               "is a symbolic link"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_validate_reports_what_train_refuses(
    name: str, balora, config: Path, model_dir: Path, train_file: Path
) -> None:
    import re

    prepare, words = CASES[name]
    overrides = prepare(model=model_dir, train=train_file, balora=balora, config=config)
    refused = balora("train", config, *overrides)
    assert refused.status == 2 and re.search(words, refused.err), refused.err
    found = balora("validate", config, *overrides)
    assert found.status == 2, found.out
    assert refused.err.removeprefix("balora: ").strip() in found.out, f"{refused.err}\n{found.out}"


def test_missing_files_are_reported_beside_mistakes_in_the_config(balora, config: Path) -> None:
    wrong = [
        "training.learning_rat=1",
        "model=./absent",
        "data.train=absent.jsonl",
        "tokenizer=./nowhere",
        "data.eval=no.csv",
    ]
    for verb in ("train", "validate", "teacher"):
        outcome = balora(verb, config, *wrong)
        assert outcome.status == 2
        for words in (
            "5 problems", "training.learning_rat", "The model folder ./absent does not exist",
            "no file or folder absent.jsonl (data.train)",
            "no file or folder no.csv (data.eval)",
            "The folder ./nowhere (tokenizer) does not exist",
        ):  # fmt: skip
            assert words in outcome.err


def test_a_classifiers_own_or_new_head_is_no_problem(balora, config: Path, tmp_path: Path) -> None:
    rows = tmp_path / "labels.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"row {i}", "label": "odd" if i % 2 else "even"}) + "\n" for i in range(8))
    )
    outcome = balora("validate", config, "task=classification", f"data={{train: '{rows}', text: text, label: label}}")
    assert outcome.status == 0, outcome.out


def test_the_rows_seen_twice_are_said(balora, config: Path, tmp_path: Path) -> None:
    settings = ("training.ignore_data_skip=true", "training.max_steps=4")
    assert balora("train", config, *settings).status == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoint-4")
    (run / "run.json").write_text('{"status": "running"}')
    words = "sees some rows twice"
    assert words in balora("validate", config, *settings).out
    assert words in balora("train", config, *settings).out
    assert any(words in notice for notice in json.loads((run / "run.json").read_text())["notices"])


def test_the_evaluation_in_half_precision_does_not_round_the_result(balora, config: Path, tmp_path: Path) -> None:
    results = []
    for name, setting in (("a", "false"), ("b", "true")):
        outcome = balora(
            "train", config, "data.eval=0.25", f"training.bf16_full_eval={setting}", f"output={tmp_path / name}"
        )
        assert outcome.status == 0, outcome.err
        results.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert results[0] == results[1]


def test_a_model_of_another_kind_is_named(balora, config: Path, model_dir: Path) -> None:
    tiny_llama(seed=3).model.save_pretrained(model_dir)
    for verb in ("train", "validate"):
        outcome = balora(verb, config)
        assert outcome.status == 2 and "lm_head.weight" in outcome.err + outcome.out
