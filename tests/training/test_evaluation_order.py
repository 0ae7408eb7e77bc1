"""Evaluation sorts a classifier's rows by length, for less padding; the metrics are those of any other order."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from balora.config.run_config import RunConfig
from balora.data.collate import shortest_first
from balora.training.run import prepare
from tiny import tiny_bert, tiny_llama, tiny_tokenizer

RANDOM = random.Random(0)
ROWS = [  # all different: of two equal scores, rounding would decide the rank
    {
        "text": "".join(RANDOM.choices("abcdefgh ", k=3 * RANDOM.randint(2, 12))),
        "label": RANDOM.randint(0, 2),
        "score": RANDOM.random(),
    }
    for _ in range(60)
]


def prepared(folder: Path, task: str, model, training=None, regularization=None, **data):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    settings = RunConfig.from_dict({
        "model": str(folder / "model"), "task": task, "output": str(folder / "run"), "method": {"name": "lora", "rank": 2},
        "data": {"train": str(rows), "eval": 0.4, **data},
        "training": {"use_cpu": True, "report_to": [], "per_device_eval_batch_size": 7, "disable_tqdm": True, **(training or {})},
        **({"regularization": regularization} if regularization else {}),
    })  # fmt: skip
    return prepare(settings)[0]


def lengths(trainer) -> list[int]:
    return [len(row["input_ids"]) for row in trainer.eval_dataset]


@pytest.mark.parametrize(("task", "label"), [("classification", "label"), ("regression", "score")])
def test_classifier_metrics_do_not_depend_on_the_row_order(task: str, label: str, tmp_path: Path):
    model = tiny_bert(num_labels=1 if task == "regression" else 3)
    trainer = prepared(tmp_path, task, model, text="text", **{label: label})
    found = lengths(trainer)
    assert found == sorted(found)
    assert len(set(found)) > 3
    by_length = trainer.evaluate()
    mixed = trainer.evaluate(trainer.eval_dataset.shuffle(seed=1))
    scores = [name for name in by_length if not re.search("time|second|epoch", name)]
    assert len(scores) == 4
    for name in scores:
        assert by_length[name] == pytest.approx(mixed[name], rel=1e-5, abs=1e-6), name


def test_generation_rows_keep_their_order(tmp_path: Path):
    trainer = prepared(tmp_path, "generation", tiny_llama(), text="text")
    assert lengths(trainer) != sorted(lengths(trainer))


GROUPED = {"train_sampling_strategy": "group_by_length"}


def widths(trainer) -> list[int]:
    """Return the widths of the evaluation batches."""
    return [batch["input_ids"].shape[1] for batch in trainer.get_eval_dataloader()]


def test_group_by_length_in_training_does_not_reorder_evaluation_rows(tmp_path: Path):
    """transformers also groups evaluation rows by length if training does."""
    trainer = prepared(tmp_path, "classification", tiny_bert(num_labels=3), GROUPED, text="text", label="label")
    rows = trainer.eval_dataset.shuffle(seed=1)
    labels = trainer.predict(rows).label_ids
    assert labels.tolist() == [row["labels"] for row in rows]
    assert widths(trainer) == sorted(widths(trainer))
    drawn = [index for batch in trainer.get_train_dataloader().batch_sampler for index in batch]
    assert drawn != list(range(len(drawn))), "training is still shuffled"


def test_the_linear_probe_reads_rows_by_length(tmp_path: Path, monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(
        "balora.training.trainer.fit_head",
        lambda model, batches, regression, gather: seen.extend(b["input_ids"].shape[1] for b in batches) or 1.0,
    )
    model = tiny_bert(num_labels=3)
    probe = {"teacher_head": "probe"}
    prepared(tmp_path, "classification", model, GROUPED, probe, text="text", label="label")
    assert len(set(seen)) > 2
    assert seen == sorted(seen)


def test_rows_without_tokens_or_length_are_unchanged():
    assert shortest_first([{"pixels": [1]}, {"pixels": []}]) == [{"pixels": [1]}, {"pixels": []}]
    stream = iter([{"input_ids": [1, 2]}, {"input_ids": [1]}])
    assert shortest_first(stream) is stream
    found = shortest_first([{"input_ids": [1, 2]}, {"input_ids": [3]}, {"input_ids": [4]}])
    assert [row["input_ids"] for row in found] == [[3], [4], [1, 2]]
