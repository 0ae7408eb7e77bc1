"""The linear probe fits the initial head of student and teacher (method.md, departure 5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import balora
from balora.errors import BALoraError
from balora.models.classifier_head import final_linear
from balora.training.steps.linear_probe import fit_head
from tiny import tiny_bert, tiny_roberta


def batches(classes: int, count: int = 12, size: int = 16):
    """Yield batches with the class in the first token, so that a linear classifier on the features can find it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        tokens = torch.randint(40, 97, (size, 6), generator=generator)
        labels = torch.randint(classes, (size,), generator=generator)
        tokens[:, 0] = 5 + labels
        yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("build", [tiny_bert, tiny_roberta])
def test_the_fitted_head_has_the_reported_accuracy(build, classes: int) -> None:
    model = balora.adapt(build(num_labels=classes), rank=4)
    score = fit_head(model, batches(classes), regression=False)
    rows = list(batches(classes))
    with torch.no_grad():
        right = [model(**{k: v for k, v in b.items() if k != "labels"}).logits.argmax(-1) == b["labels"] for b in rows]
    assert score > 0.9
    assert float(torch.cat(right).float().mean()) == pytest.approx(score)


def test_regression_is_fitted() -> None:
    model = balora.adapt(tiny_bert(num_labels=1), rank=4)
    rows = [{**b, "labels": b["labels"].float() * 2.5} for b in batches(3)]
    assert fit_head(model, rows, regression=True) > 0.8
    assert final_linear(model).weight.abs().max() > 0.01


def replace_features(monkeypatch, features, labels) -> None:
    """Replace the model's features and labels."""
    found = features.astype(np.float64), labels
    monkeypatch.setattr("balora.training.steps.linear_probe._collect", lambda model, batches, gather: found)


def features_and_labels(rows: int = 400, width: int = 32, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return features, and scores that depend on one feature, with as much noise as signal."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((rows, width)) + 3.0
    scores = features[:, 0] - 3.0 + generator.standard_normal(rows)
    return features, scores if classes == 1 else np.digitize(
        scores, np.quantile(scores, np.arange(1, classes) / classes)
    )


def outputs_of(model, features) -> torch.Tensor:
    head = final_linear(model)
    with torch.no_grad():
        return torch.nn.functional.linear(torch.from_numpy(features), head.weight.double(), head.bias.double())


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_scale_of_the_features_does_not_matter(classes: int, monkeypatch) -> None:
    """With scikit-learn's default penalty, features that differ by a thousandth gave a head close to zero."""
    features, labels = features_and_labels(classes=classes)
    outputs, scores = [], []
    for size in (1.0, 1e-3, 1e3):
        model = tiny_bert(num_labels=classes)
        replace_features(monkeypatch, size * features, labels)
        scores.append(fit_head(model, [], regression=classes == 1))
        outputs.append(outputs_of(model, size * features))
    assert scores[1:] == pytest.approx(scores[:1] * 2, rel=1e-3)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("classes", [1, 2])
def test_pure_noise_gives_a_small_head(classes: int, monkeypatch) -> None:
    features, labels = features_and_labels(classes=classes)
    spreads = []
    for found in (labels, np.random.default_rng(5).permutation(labels)):
        model = tiny_bert(num_labels=classes)
        replace_features(monkeypatch, features, found)
        fit_head(model, [], regression=classes == 1)
        spreads.append(float(outputs_of(model, features).std(0).mean()))
    assert spreads[0] > 0.3
    assert spreads[1] < 0.3 * spreads[0]


def test_a_class_with_one_row_and_rows_sorted_by_class(monkeypatch) -> None:
    features, labels = features_and_labels(rows=3000, classes=2)
    order = np.argsort(labels, kind="stable")
    labels[0] = 2
    replace_features(monkeypatch, features[order], labels[order])
    model = tiny_bert(num_labels=4)
    assert fit_head(model, [], regression=False) > 0.7
    assert torch.isfinite(final_linear(model).weight).all()
    bias = final_linear(model).bias.detach()
    assert float(bias[3]) < float(bias[:3].min()), "a class without rows"


def test_rows_beyond_the_limit_are_sampled_from_all(tmp_path, monkeypatch) -> None:
    """The first rows of a file sorted by class have one class only."""
    rows = [{k: v[i] for k, v in b.items()} for b in batches(2) for i in range(16)]
    rows.sort(key=lambda row: int(row["labels"]))
    monkeypatch.setattr("balora.training.trainer.MAX_ROWS", 64)
    model = balora.adapt(tiny_bert(num_labels=2), rank=4)
    balora.BALoraTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True),
        train_dataset=rows,
        regularization=balora.RegularizationConfig.for_classification(teacher_head="probe"),
    )
    inputs = {k: v for k, v in next(iter(batches(2))).items() if k != "labels"}
    with torch.no_grad():
        assert (model(**inputs).logits.argmax(-1) == next(iter(batches(2)))["labels"]).float().mean() > 0.9


def test_one_class_is_refused() -> None:
    rows = [{**b, "labels": torch.zeros_like(b["labels"])} for b in batches(2)]
    with pytest.raises(BALoraError, match="two classes"):
        fit_head(balora.adapt(tiny_bert(num_labels=2), rank=4), rows, regression=False)


@pytest.mark.parametrize("teacher_head", ["initial", "probe"])
def test_student_and_teacher_start_with_the_fitted_head(teacher_head: str, tmp_path) -> None:
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
