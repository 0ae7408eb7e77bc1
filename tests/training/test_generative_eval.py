"""Generative evaluation: answers are generated, decoded, read as labels and scored; training makes them right."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import EvalPrediction

from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.estimation.validate import validate
from balora.training.generative_eval import GenerativeMetrics
from balora.training.run import prepare, run
from tiny import tiny_t5, tiny_tokenizer


def ending_tokenizer():
    """Return a tokenizer that adds an end token to every text, as T5's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    tiny_t5().save_pretrained(folder)
    ending_tokenizer().save_pretrained(folder)
    return folder


SCORES = (1.2, 3.5, 4.8)
"""Scores by class. Their answers 1.2, 3.6 and 4.8 share no digit, so that a tiny decoder can tell its position."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for _ in range(160):
        label, noise = generator.randint(0, 2), "".join(generator.choices("uvwxyz", k=4))
        lines.append(
            {"a": f"{('bad', 'okay', 'good')[label]} {noise}", "b": noise, "label": label, "score": SCORES[label]}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(model: Path, rows: Path, output: Path, *, method: str = "full", **data) -> RunConfig:
    return RunConfig.from_dict({
        "model": str(model), "task": "seq2seq", "output": str(output), "method": {"name": method},
        "data": {"train": str(rows), "eval": 0.2, "text": ["a", "b"], "prompt_template": "rate 1: {text} 2: {text_pair}", **data},
        "training": {
            "use_cpu": True, "max_steps": 120, "learning_rate": 2e-2, "per_device_train_batch_size": 16, "report_to": [],
            "per_device_eval_batch_size": 7, "eval_strategy": "steps", "eval_steps": 60, "save_strategy": "no",
            "disable_tqdm": True,
        },
    })  # fmt: skip


TEXT_LABELS = {"label": "label", "labels": ["no", "a bit", "yes"]}


def test_a_trained_model_answers_with_text_labels(model: Path, rows: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    metrics = run(settings(model, rows, tmp_path / "run", **TEXT_LABELS), lines.append).metrics
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["eval_matthews"] > 0.85
    assert metrics["eval_unreadable"] == 0
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "eval_accuracy" in line] == [60, 120, 120], (
        "during training, and at its end"
    )
    assert any("eval_accuracy" in line and line.startswith("step 60/120") for line in lines), "and on the screen"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["labels"] == ["no", "a bit", "yes"]


def test_a_trained_model_answers_with_scores(model: Path, rows: Path, tmp_path: Path) -> None:
    """Rows without the second text are learnt with room to spare: with each of nine seeds the correlation was 1."""
    shorter = {"text": "a", "prompt_template": "{text}"}
    metrics = run(settings(model, rows, tmp_path / "run", score="score", **shorter)).metrics
    assert metrics["eval_pearson"] > 0.9
    assert metrics["eval_unreadable"] == 0


def test_answers_are_decoded_greedily_and_the_loss_is_unchanged(model: Path, rows: Path, tmp_path: Path) -> None:
    """Compare with greedy decoding token by token, and with the loss of an evaluation without answers."""
    trainer, tokenizer, _ = prepare(settings(model, rows, tmp_path / "run", method="balora", **TEXT_LABELS))
    batch = trainer.data_collator(list(trainer.eval_dataset)[:5])
    trainer.model.eval()
    loss, answers, labels = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=False)
    assert torch.equal(labels, batch["labels"])
    assert torch.allclose(loss, trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)[0])
    longest = max(len(tokenizer(word)["input_ids"]) for word in TEXT_LABELS["labels"])
    for number in range(5):
        row = batch["input_ids"][number : number + 1, : int(batch["attention_mask"][number].sum())]
        ids = [trainer.model.config.decoder_start_token_id]
        for _ in range(longest):
            with torch.no_grad():
                logits = trainer.model(input_ids=row, decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert answers[number, : len(ids)].tolist() == ids


def test_prompt_and_response_rows_have_no_generative_metrics(model: Path, rows: Path, tmp_path: Path) -> None:
    plain = {"text": None, "prompt_template": None, "prompt": "a", "response": "b"}
    trainer, _, _ = prepare(settings(model, rows, tmp_path / "run", **plain))
    assert trainer.compute_metrics is None


# --- metrics -----------------------------------------------------------------------------------------------------------


def tokens(*answers: str) -> np.ndarray:
    """Return answers as a batch of tokens, padded with -100 as the Trainer pads to the width of other batches."""
    rows = [[0, *row] for row in ending_tokenizer()(list(answers))["input_ids"]]
    return np.array([row + [-100] * (20 - len(row)) for row in rows])


def test_an_unreadable_answer_is_wrong_and_counted() -> None:
    metrics = GenerativeMetrics(class_names=("no", "yes"), tokenizer=ending_tokenizer(), max_new_tokens=4)
    scores = metrics.compute(EvalPrediction(tokens("yes", "no", "ye", ""), tokens("yes", "no", "yes", "no")))
    assert scores["accuracy"] == 0.5
    assert scores["unreadable"] == 0.5
    # Two classes, each with precision 1 and recall 1/2. An average over a third "class" would be 4/9.
    assert scores["f1_macro"] == pytest.approx(2 / 3)
    assert metrics.compute(EvalPrediction(tokens("yes", "no"), tokens("yes", "no")))["matthews"] == 1


def test_metrics_of_scores() -> None:
    metrics = GenerativeMetrics(class_names=None, tokenizer=ending_tokenizer(), max_new_tokens=4)
    right = tokens("0.0", "2.0", "5.0")
    exact, off = (
        metrics.compute(EvalPrediction(tokens(*texts), right)) for texts in (("0.0", "2.0", "5.0"), ("0.0", "x", "5.0"))
    )
    assert (exact["pearson"], exact["mse"], exact["unreadable"]) == (pytest.approx(1), 0, 0)
    assert off["mse"] == pytest.approx(3)
    assert off["unreadable"] == pytest.approx(1 / 3)


# --- text labels that cannot be generated ----------------------------------------------------------------------------------------


def test_a_text_label_that_the_tokenizer_changes_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    wrong = settings(model, rows, tmp_path / "run", label="label", labels=["né", "ok", "yes"])
    with pytest.raises(BALoraError, match=r"writes the answer 'né' as .* Choose other text labels") as error:
        prepare(wrong)
    assert validate(wrong).problems == [str(error.value)], "validate reports the same"


def test_text_labels_that_do_not_fit_are_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(BALoraError, match=r"raise data\.max_target_length"):
        prepare(settings(model, rows, tmp_path / "run", max_target_length=2, **TEXT_LABELS))


def test_a_tokenizer_without_an_end_token_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    """Without an end token, "no" would continue to the length of "a bit" and never be right."""
    tiny_tokenizer().save_pretrained(tmp_path / "endless")
    changed = settings(model, rows, tmp_path / "run", **TEXT_LABELS).model_copy(
        update={"tokenizer": str(tmp_path / "endless")}
    )
    with pytest.raises(BALoraError, match="puts no end token after a response"):
        prepare(changed)
