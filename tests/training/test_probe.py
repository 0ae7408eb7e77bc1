"""The probe makes the first head mean something, in student and teacher alike (METHOD 6.5)."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

import balora
from balora.errors import BALoraError
from balora.pooled import final_linear
from balora.training.probe import fit_head
from tiny import tiny_bert, tiny_roberta


def batches(classes: int, count: int = 12, size: int = 16):
    """The first token decides the class, so that a linear reading of the features can find it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        tokens = torch.randint(40, 97, (size, 6), generator=generator)
        labels = torch.randint(classes, (size,), generator=generator)
        tokens[:, 0] = 5 + labels
        yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("build", [tiny_bert, tiny_roberta])
def test_the_fitted_head_predicts_as_reported(build, classes: int) -> None:
    model = balora.adapt(build(num_labels=classes), rank=4)
    score = fit_head(model, batches(classes), regression=False)
    rows = list(batches(classes))
    with torch.no_grad():
        right = [model(**{k: v for k, v in b.items() if k != "labels"}).logits.argmax(-1) == b["labels"] for b in rows]
    assert score > 0.9
    assert float(torch.cat(right).float().mean()) == pytest.approx(score)


def test_regression_is_fitted_too() -> None:
    model = balora.adapt(tiny_bert(num_labels=1), rank=4)
    rows = [{**b, "labels": b["labels"].float() * 2.5} for b in batches(3)]
    assert fit_head(model, rows, regression=True) > 0.8
    assert final_linear(model).weight.abs().max() > 0.01


def test_one_class_is_refused() -> None:
    rows = [{**b, "labels": torch.zeros_like(b["labels"])} for b in batches(2)]
    with pytest.raises(BALoraError, match="two classes"):
        fit_head(balora.adapt(tiny_bert(num_labels=2), rank=4), rows, regression=False)


@pytest.mark.parametrize("teacher_head", ["initial", "probe"])
def test_the_trainer_gives_the_head_to_student_and_teacher(teacher_head: str, tmp_path) -> None:
    rows = [{k: v[i] for k, v in b.items()} for b in batches(2) for i in range(16)]
    model = balora.adapt(tiny_bert(num_labels=2), rank=4)
    before = final_linear(model).weight.detach().clone()
    trainer = balora.BALoraTrainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), use_cpu=True, report_to=[], max_steps=3, disable_tqdm=True, save_strategy="no"
        ),
        train_dataset=rows,
        regularization=balora.RegularizationConfig.for_classification(teacher_head=teacher_head),
    )
    assert torch.equal(final_linear(model).weight, before) == (teacher_head == "initial")
    trainer.train()
    inputs = {k: v for k, v in next(iter(batches(2))).items() if k != "labels"}
    labels = next(iter(batches(2)))["labels"]
    with trainer.teacher.active():
        accuracy = float((model(**inputs).logits.argmax(-1) == labels).float().mean())
    assert (accuracy > 0.9) == (teacher_head == "probe")
