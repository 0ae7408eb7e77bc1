"""Evaluation takes a classifier's rows by length, for less padding, and says the same of the model as in any other order."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from balora.training.run import prepare
from balora.training.settings import RunSettings
from tiny import tiny_bert, tiny_llama, tiny_tokenizer

DRAW = random.Random(0)
ROWS = [  # no two alike: rounding would decide which of them is ahead
    {
        "text": "".join(DRAW.choices("abcdefgh ", k=3 * DRAW.randint(2, 12))),
        "label": DRAW.randint(0, 2),
        "score": DRAW.random(),
    }
    for _ in range(60)
]


def prepared(folder: Path, task: str, model, **data):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    settings = RunSettings.from_dict({
        "model": str(folder / "model"), "task": task, "output": str(folder / "run"), "method": {"name": "lora", "rank": 2},
        "data": {"train": str(rows), "eval": 0.4, **data},
        "training": {"use_cpu": True, "report_to": [], "per_device_eval_batch_size": 7, "disable_tqdm": True},
    })  # fmt: skip
    return prepare(settings)[0]


def lengths(trainer) -> list[int]:
    return [len(row["input_ids"]) for row in trainer.eval_dataset]


@pytest.mark.parametrize(("task", "label"), [("classification", "label"), ("regression", "score")])
def test_a_classifiers_scores_are_those_of_any_order(task: str, label: str, tmp_path: Path):
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


def test_a_generators_rows_stay_where_they_are(tmp_path: Path):
    trainer = prepared(tmp_path, "generation", tiny_llama(), text="text")
    assert lengths(trainer) != sorted(lengths(trainer))
