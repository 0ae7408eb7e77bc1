"""The objective inside transformers' Trainer, for classification and regression."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForSequenceClassification, Trainer

import balora
from balora import BALoraError, RegularizationConfig
from balora.objective import Objective
from balora.regularizers import consistency, covariance, spectral_ratio, variance_hinge
from balora.training.steps.classification_step import ClassificationStep
from small_runs import CONSTANT, OFF, Batches, Gradients, flat, history, pissa, trainer
from tiny import labelled_rows, pad_rows, tiny_bert, tiny_llama, tiny_roberta

ROWWISE = RegularizationConfig(consistency=0.5, diversity=0.0, spectral=0.0, **CONSTANT)
FEATURES = RegularizationConfig(
    consistency=0.5, diversity=0.3, spectral=0.2, variance=0.1, spectral_rank=2, diversity_target="features",
    spectral_target="features", **CONSTANT,
)  # fmt: skip
SEQUENTIAL = {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0}


def scores() -> torch.nn.Module:
    return tiny_bert(num_labels=1)


def llama() -> LlamaForSequenceClassification:
    config = tiny_llama().config
    config.num_labels = 3
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


@pytest.mark.parametrize(
    "make", [tiny_bert, tiny_roberta, llama, scores], ids=["bert", "roberta", "llama", "regression"]
)
def test_with_all_weights_0_every_step_equals_the_stock_trainers(make, tmp_path):
    labels = 1 if make is scores else 3
    settings = {
        "rows": labelled_rows(labels=labels), "eval_dataset": labelled_rows(10, labels=labels, seed=9), "max_steps": 4,
        "eval_strategy": "steps", "eval_steps": 2,
    }  # fmt: skip
    if labels > 1:
        settings["compute_metrics"] = accuracy
    # transformers 5.23 adds up a classifier's micro-batch means instead of averaging them, so the stock run does not accumulate.
    ours = trainer(pissa(make), tmp_path, config=OFF, gradient_accumulation_steps=2, **settings)
    stock = trainer(pissa(make), tmp_path, kind=Trainer, per_device_train_batch_size=8, **settings)
    ours.train()
    stock.train()
    for name in ("loss", "eval_loss", "grad_norm", "eval_accuracy"):
        assert history(ours, name) == pytest.approx(history(stock, name), rel=1e-5), name
    assert len(history(stock, "eval_loss")) == 2
    torch.testing.assert_close(flat(ours.model), flat(stock.model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["classification", "regression", "some without a label"])
def test_any_split_into_micro_batches_gives_the_same_gradient(case, tmp_path):
    make = scores if case == "regression" else tiny_bert
    rows = labelled_rows(16, labels=1 if make is scores else 3)
    if case == "some without a label":  # some micro-batches of four and of one have no label
        rows = [{**row, "labels": -100} if at in (1, 4, 5, 6, 7, 12) else row for at, row in enumerate(rows)]
    found = {}
    for batch in (8, 4, 1):
        seen = Gradients()
        trainer(
            pissa(make), tmp_path, config=ROWWISE, rows=rows, callbacks=[seen], optim="sgd", learning_rate=0.5, max_steps=2,
            per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch, **SEQUENTIAL,
        ).train()  # fmt: skip
        found[batch] = seen.steps
    for batch in (4, 1):
        for left, right in zip(found[batch], found[8], strict=True):
            for name, gradient in right.items():
                assert (left[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_an_incomplete_last_batch_counts_its_own_rows(tmp_path):
    rows = labelled_rows(7)
    seen = Gradients()
    fixed = {"config": ROWWISE, "optim": "sgd", "learning_rate": 0.0, **SEQUENTIAL}
    # Batches of 4 and 3 rows in one step are seven rows with the same weight.
    trainer(
        pissa(tiny_bert), tmp_path, rows=rows, callbacks=[seen], max_steps=1, gradient_accumulation_steps=2, **fixed
    ).train()
    whole = Gradients()
    trainer(
        pissa(tiny_bert), tmp_path, rows=rows, callbacks=[whole], max_steps=1, per_device_train_batch_size=7, **fixed
    ).train()
    for name, gradient in whole.steps[0].items():
        assert (seen.steps[0][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("target", ["logits", "features"])
def test_two_steps_equal_the_plain_formulas(target, tmp_path):
    config = RegularizationConfig(
        consistency=0.5, diversity=0.3, spectral=0.2, variance=0.1, spectral_rank=2, diversity_target=target,
        spectral_target=target, consistency_schedule="cosine", focus_schedule="linear_warmup", focus_warmup=1.0,
    )  # fmt: skip
    batches, seen = Batches(), Gradients()
    run = trainer(
        pissa(tiny_bert), tmp_path, config=config, rows=labelled_rows(), data_collator=batches, callbacks=[seen], optim="sgd",
        learning_rate=0.5, lr_scheduler_type="constant", max_steps=2, max_grad_norm=0.0, per_device_train_batch_size=8,
    )  # fmt: skip
    run.train()
    model, original = pissa(tiny_bert), tiny_bert()
    head = model.get_base_model().classifier.modules_to_save["default"]
    for step, (t, lambda_1) in enumerate([(0.0, 0.5), (0.5, 0.5 * 0.55)]):
        batch = batches.used[step]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        pooled = model.get_base_model().bert(**inputs).pooler_output
        z = head(pooled)
        with torch.no_grad():
            p = original(**inputs).logits
        spread = pooled if target == "features" else z
        parts = {
            "consistency": consistency(z, p, 2.0),
            "diversity": covariance(spread),
            "spectral": spectral_ratio(spread, 2),
            "variance": variance_hinge(spread),
        }
        weights = {"consistency": lambda_1, "diversity": 0.3 * t, "spectral": 0.2 * t, "variance": 0.1 * t}
        task = F.cross_entropy(z, batch["labels"])
        total = task + sum(weights[name] * part for name, part in parts.items())
        model.zero_grad()
        total.backward()
        entry = run.state.log_history[step]
        assert entry["loss"] == pytest.approx(float(total.detach()), rel=1e-5)
        assert entry["task"] == pytest.approx(float(task.detach()), rel=1e-5)
        assert entry["logit_variance"] == pytest.approx(float(z.detach().var(0, correction=0).mean()), rel=1e-4)
        for name, part in parts.items():
            if weights[name]:
                assert entry[name] == pytest.approx(float(part.detach()), rel=1e-4, abs=1e-6), name
            assert entry[f"{name}_weight"] == pytest.approx(weights[name])
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(seen.steps[step][name], parameter.grad, atol=1e-6, rtol=1e-3)
                parameter.data -= 0.5 * parameter.grad


def test_regression_switches_off_constant_terms_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="balora"):
        run = trainer(pissa(scores), tmp_path, config=None, rows=labelled_rows(labels=1), max_steps=3)
        run.train()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert any("spectral term is constant" in m for m in messages) and any(
        "diversity term is switched off" in m for m in messages
    )
    entry = run.state.log_history[-2]
    assert entry["consistency"] > 0 and entry["consistency_weight"] == pytest.approx(0.15)
    assert entry["spectral_weight"] == entry["diversity_weight"] == 0.0
    assert "spectral" not in entry


@pytest.mark.parametrize(("statistics", "notices"), [("local", 1), ("global", 0)])
def test_global_statistics_count_the_rows_of_all_processes(statistics, notices, monkeypatch):
    for module in ("balora.objective", "balora.training.steps.classification_step"):
        monkeypatch.setattr(f"{module}.world_size", lambda: 2)
    config = RegularizationConfig.for_classification(spectral_target="features", batch_statistics=statistics)
    objective = Objective(config, "classification", num_labels=3)
    ClassificationStep(tiny_bert(), objective, teacher=None)._check_batch_size(4)
    assert len(objective.notices) == notices, "4 rows in each of two processes are 8, and spectral_rank is 5"


def test_batches_too_small_for_the_spectral_term_warn_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="balora"):
        config = RegularizationConfig.for_classification(spectral_target="features", diversity=0.0)
        run = trainer(pissa(tiny_bert), tmp_path, config=config, rows=labelled_rows(), max_steps=3)
        run.train()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "with 4 rows in a batch and spectral_rank 5" in message
    assert run.objective.notices == [message], "for run.json"
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="balora"):
        trainer(
            pissa(tiny_bert), tmp_path, config=config, rows=labelled_rows(), max_steps=1, per_device_train_batch_size=8
        ).train()
    assert not caplog.records


def test_consistency_keeps_the_scores_close_to_the_teachers(tmp_path):
    drift = {}
    inputs = {n: v for n, v in pad_rows(labelled_rows(32, labels=1, seed=5)).items() if n != "labels"}
    for weight in (0.0, 10.0):
        config = RegularizationConfig(consistency=weight, diversity=0.0, spectral=0.0, **CONSTANT)
        run = trainer(pissa(scores), tmp_path, config=config, rows=labelled_rows(labels=1), max_steps=12)
        run.train()
        with torch.no_grad():
            drift[weight] = float((run.model.eval()(**inputs).logits - scores()(**inputs).logits).square().mean())
    assert 0 < drift[10.0] < 0.5 * drift[0.0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_term_works_with_dropout(method, tmp_path):
    model = balora.adapt(
        tiny_bert(dropout=0.2), method=method, **({} if method == "full" else {"rank": 4, "dropout": 0.2})
    )
    run = trainer(model, tmp_path, config=FEATURES, rows=labelled_rows(), per_device_train_batch_size=8, max_steps=3)
    run.train()
    # Only the student has dropout: the initial check, in eval mode, has passed, and the first step shows the noise.
    assert history(run, "consistency")[0] > 1e-4
    for name in ("diversity", "spectral", "variance"):
        assert len(history(run, name)) == 3


def test_labels_of_the_wrong_kind_are_refused(tmp_path):
    floats = [{**row, "labels": float(row["labels"])} for row in labelled_rows(8)]
    with pytest.raises(BALoraError, match=r"one class number per row, and the labels of 4 rows are torch\.float32"):
        trainer(pissa(tiny_bert), tmp_path, config=OFF, rows=floats).train()
    several = [{**row, "labels": [0.5, 0.5]} for row in labelled_rows(8)]
    with pytest.raises(BALoraError, match="one score per row"):
        trainer(pissa(scores), tmp_path, config=OFF, rows=several).train()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"problem_type": "multi_label_classification"}, "Multi-label classification is not supported"),
        (
            {"problem_type": "regression"},
            "Regression to 3 scores per row is not supported; load the model with num_labels=1",
        ),
    ],
)
def test_unsupported_problem_types_are_refused(settings, sentence, tmp_path):
    with pytest.raises(BALoraError, match=sentence):
        trainer(pissa(lambda: tiny_bert(**settings)), tmp_path, config=OFF, rows=labelled_rows())


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    found = []
    for on in (False, True):
        seen = Gradients()
        trainer(
            pissa(tiny_bert), tmp_path, config=FEATURES, rows=labelled_rows(), callbacks=[seen], max_steps=1,
            gradient_checkpointing=on, **SEQUENTIAL,
        ).train()  # fmt: skip
        found.append(seen.steps[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)
    assert sum(float(g.norm()) for g in found[1].values()) > 0.1


def test_predictions_are_the_logits(tmp_path):
    rows = labelled_rows(6)
    run = trainer(pissa(tiny_bert), tmp_path, config=OFF, rows=rows)
    expected = run.model(**{n: v for n, v in pad_rows(rows).items() if n != "labels"}).logits.detach()
    torch.testing.assert_close(torch.tensor(run.predict(rows).predictions), expected, atol=1e-5, rtol=1e-5)
