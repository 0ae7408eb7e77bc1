"""A model with a classification head of its own keeps the order of its classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from balora.config.run_config import RunConfig
from balora.estimation.validate import validate
from balora.loading.head import head_classes
from balora.loading.source import ModelSource
from balora.training.run import prepare
from tiny import tiny_bert, tiny_llama, tiny_tokenizer

HEAD = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")


def settings(folder: Path, model, names: tuple[str, ...] | None = None, task: str = "classification") -> RunConfig:
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"text": f"row {name}", "label": name} for name in ("contradiction", "entailment", "neutral")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig.from_dict({
        "model": str(folder / "model"), "task": task, "output": str(folder / "run"), "method": {"name": "lora", "rank": 2},
        "data": {"train": str(folder / "rows.jsonl"), "text": "text", "label": "label"},
        "training": {"use_cpu": True, "report_to": [], "disable_tqdm": True, "max_steps": 1},
    })  # fmt: skip


def test_a_run_keeps_the_order_of_the_models_own_head(tmp_path, caplog):
    original = tiny_bert(num_labels=3)
    trainer, _, examples = prepare(settings(tmp_path, original, HEAD))
    assert examples.label_names == ("contradiction", "neutral", "entailment")
    assert trainer.model.config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    assert examples.train["labels"][:] == [0, 2, 1]
    head = trainer.model.base_model.model.classifier.original_module.weight
    assert torch.equal(head, original.classifier.weight)
    assert caplog.text.count("matched by name with those of the model's head") == 1


def test_validate_says_what_is_matched(tmp_path, caplog):
    assert not validate(settings(tmp_path, tiny_bert(num_labels=3), HEAD)).problems
    assert "entailment = ENTAILMENT" in caplog.text


@pytest.mark.parametrize(
    ("model", "names", "expected"),
    [(tiny_bert, HEAD, HEAD), (tiny_bert, None, ("LABEL_0", "LABEL_1", "LABEL_2")), (tiny_llama, None, None)],
)
def test_the_classes_of_a_head_are_read_from_the_config(tmp_path, model, names, expected):
    made = model(num_labels=3) if model is tiny_bert else model()
    assert head_classes(ModelSource.from_config(settings(tmp_path, made, names))) == expected


def test_a_missing_model_has_no_head(tmp_path):
    config = settings(tmp_path, tiny_bert(num_labels=3))
    (tmp_path / "model" / "config.json").unlink()
    assert head_classes(ModelSource.from_config(config)) is None
