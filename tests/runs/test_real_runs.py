"""Runs through the command on real models and data: short ones always, the full examples on request (slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import balora as library

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def train(balora, shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs an example in a directory next to the shared data, where its relative paths are valid."""
    (tmp_path / "shared").symlink_to(shared_dir)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(example: str, *overrides: str) -> tuple[dict, list[dict], Path]:
        outcome = balora("train", EXAMPLES / f"{example}.yaml", "training.use_cpu=true", *overrides)
        assert outcome.status == 0, outcome.err
        folder = tmp_path / "here" / "runs" / example
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return json.loads((folder / "run.json").read_text()), lines, folder

    return run


def task_losses(lines: list[dict]) -> list[float]:
    return [line["task"] for line in lines if "task" in line]


SHORT = [
    "training.max_steps=12",
    "training.per_device_train_batch_size=16",
    "training.logging_steps=4",
    "training.save_steps=50",
]


def test_generation_learns_and_is_exported_as_plain_models(train, balora, stories: Path) -> None:
    _, lines, run = train("gsm8k", *SHORT, "data.max_length=128", "data.train=../shared/data/gsm8k/test.jsonl")
    losses = task_losses(lines)
    assert losses[-1] < losses[0] - 0.5
    assert {"consistency", "diversity", "spectral", "consistency_weighted", "consistency_weight"} <= set(lines[-3])
    tokens = torch.randint(3, 500, (2, 30))
    trained = library.load(run)(tokens).logits
    untouched = AutoModelForCausalLM.from_pretrained(stories)(tokens).logits
    assert (trained - untouched).abs().max() > 0.5
    for to in ("lora", "merged"):
        outcome = balora("export", run, "--to", to, "--output", run.parent / to)
        assert outcome.status == 0, outcome.err
    merged = AutoModelForCausalLM.from_pretrained(run.parent / "merged")(tokens).logits
    assert (merged - trained).abs().max() < 1e-4 * trained.abs().max()


def test_sequence_to_sequence_starts_from_a_small_loss(train) -> None:
    record, lines, _ = train("g2p", *SHORT, "data.split=train[:800]", "data.eval=0.1")
    # The model already spells words: 0.09 nats per phoneme. With shifted labels the loss would be above 3.
    assert task_losses(lines)[0] < 0.3
    assert record["metrics"]["eval_loss"] < 0.3
    assert {"consistency", "diversity", "spectral"} <= set(lines[-3])


def test_classification_learns(train, minilm: Path) -> None:
    record, lines, _ = train("sst2", *SHORT, f"model={minilm}", "data.split=train[:400]", "data.eval=0.25")
    assert record["metrics"]["eval_accuracy"] > 0.65
    assert "logit_variance" in lines[0]


def test_regression_learns(train, minilm: Path) -> None:
    record, _, _ = train(
        "stsb", *SHORT, "training.max_steps=8", f"model={minilm}", "data.split=train[:240]", "data.eval=0.25"
    )
    assert record["metrics"]["eval_pearson"] > 0.4


@pytest.mark.slow
def test_generation_at_length(train) -> None:
    record, lines, _ = train("gsm8k")
    assert task_losses(lines)[-1] < task_losses(lines)[0] - 1.0
    assert record["metrics"]["train_runtime"] < 240


@pytest.mark.slow
@pytest.mark.parametrize("teacher_head", ["probe", "initial"])
def test_classification_at_length(train, minilm: Path, teacher_head: str) -> None:
    record, _, _ = train("sst2", f"model={minilm}", f"regularization.teacher_head={teacher_head}")
    assert record["metrics"]["eval_accuracy"] > 0.80


@pytest.mark.slow
def test_regression_at_length(train, minilm: Path) -> None:
    record, _, _ = train("stsb", f"model={minilm}")
    assert record["metrics"]["eval_pearson"] > 0.75


@pytest.mark.slow
def test_sequence_to_sequence_at_length(train) -> None:
    _, lines, _ = train("g2p")
    assert task_losses(lines)[-1] < task_losses(lines)[0]
