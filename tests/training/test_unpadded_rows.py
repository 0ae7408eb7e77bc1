"""Rows of different lengths with a collator that does not pad are refused in one sentence, wherever batches are made."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

import balora
from balora.errors import BALoraError
from tiny import tiny_bert, tiny_llama

ROWS = [{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": [5] * n} for n in (3, 5)]
EVEN = [{"input_ids": [5] * 4, "attention_mask": [1] * 4, "labels": [5] * 4}] * 2


def trainer(tmp_path, model, rows, **more):
    arguments = TrainingArguments(output_dir=tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    return balora.BALoraTrainer(model=model, args=arguments, train_dataset=rows, **more)


def test_unpadded_rows_are_refused_in_training_evaluation_and_prediction(tmp_path) -> None:
    message = (
        r"different lengths \(labels: 3, 5\), and .* \(default_data_collator\) does not pad labels\. Pass.*Seq2Seq"
    )
    run = trainer(tmp_path, balora.adapt(tiny_llama(), rank=2), EVEN, eval_dataset=ROWS)
    collator = run.data_collator
    for step in (run.evaluate, lambda: run.predict(ROWS)):
        with pytest.raises(BALoraError, match=message):
            step()
    run.train_dataset = ROWS
    with pytest.raises(BALoraError, match=message):
        run.train()
    assert run.data_collator is collator


def test_unpadded_rows_of_a_classifier_are_refused_before_its_head_is_fitted(tmp_path) -> None:
    rows = [{**row, "labels": number} for number, row in enumerate(ROWS)]
    with pytest.raises(BALoraError, match=r"input_ids: 3, 5.*DataCollatorWithPadding\(tokenizer\)"):
        trainer(tmp_path, balora.adapt(tiny_bert(), rank=2), rows, regularization={"teacher_head": "probe"}).train()


def test_another_error_of_a_collator_is_not_changed(tmp_path) -> None:
    def broken(rows):
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        trainer(tmp_path, balora.adapt(tiny_llama(), rank=2), EVEN, data_collator=broken).train()


def test_labels_of_another_length_than_their_tokens_are_refused(tmp_path) -> None:
    rows = [{**row, "labels": row["labels"][:2]} for row in EVEN]
    with pytest.raises(BALoraError, match=r"labels of a batch have the shape \(2, 2\), and its input_ids \(2, 4\)"):
        trainer(tmp_path, balora.adapt(tiny_llama(), rank=2), rows).train()
