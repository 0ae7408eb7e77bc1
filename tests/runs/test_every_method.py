"""Checks that every method passes on real models and data: it learns, its teacher is unchanged, its run loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import balora
from balora.config.run_config import RunConfig
from balora.loading.trained import load_untrained
from balora.methods import METHODS, find_method
from balora.regularizers import consistency
from balora.training.run import RunResult, run
from bench import SMALL, UNROUNDED

STEPS, ROWS = 36, 16
RATES = {"full": 1e-3, "bitfit": 1e-2, "adalora": 5e-2, "houlsby": 1e-2, "pfeiffer": 2e-2}
"""Learning rates that change a model of some hundred thousand parameters a lot in these steps; 5e-3 for the rest."""


def settings_for(method: str, shared: Path, folder: Path) -> RunConfig:
    """Train a Llama on GSM8K's questions. A Llama has no biases, so BitFit trains a BART that spells words."""
    data, model, task = "gsm8k/train.jsonl", "stories260K", "generation"
    columns = {"text": "question", "max_length": 40}
    if method == "bitfit":
        data, model, task = "g2p/pairs.jsonl", "bart-g2p", "seq2seq"
        target = str(shared / "models" / model / "target")
        columns = {"prompt": "word", "response": "phonemes", "target_tokenizer": target}
    rows = folder / "rows.jsonl"
    with (shared / "data" / data).open() as file:
        rows.write_text("".join(next(file) for _ in range(ROWS)))
    return RunConfig.from_dict({
        "model": str(shared / "models" / model), "task": task, "data": {"train": str(rows), **columns},
        "method": {"name": method, "rank": 4, **SMALL.get(method, {})},
        "regularization": {"consistency": 0.02, "diversity": 0.01, "spectral": 0.01, "focus_schedule": "constant"},
        "training": {
            "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": RATES.get(method, 5e-3), "use_cpu": True,
            "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "report_to": [],
        },
        "output": str(folder / "run"),
    })  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained:
    settings: RunConfig
    result: RunResult

    @property
    def model(self) -> nn.Module:
        return self.result.trainer.model

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        """Training rows as a batch."""
        trainer = self.result.trainer
        inputs = dict(trainer.data_collator([trainer.train_dataset[number] for number in range(4)]))
        if self.settings.task == "seq2seq":
            inputs["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        return inputs

    def pre_trained(self) -> nn.Module:
        """Load the model that training started from; in 4 bits that is the rounded one, so it is adapted again."""
        if self.settings.method.name not in UNROUNDED:
            return load_untrained(self.result.folder)
        kind = AutoModelForSeq2SeqLM if self.settings.task == "seq2seq" else AutoModelForCausalLM
        return kind.from_pretrained(self.settings.model).eval()


@pytest.fixture(scope="module", params=sorted(METHODS))
def trained(request, shared_dir: Path, tmp_path_factory) -> Trained:
    """Train each method once for all its tests."""
    settings = settings_for(request.param, shared_dir, tmp_path_factory.mktemp(request.param))
    return Trained(settings, run(settings))


def outputs(model: nn.Module, batch: dict[str, torch.Tensor]):
    model.eval()
    with torch.no_grad():
        return model(**batch)


def test_training_with_every_regularizer_lowers_the_loss(trained):
    lines = [json.loads(line) for line in (trained.result.folder / "metrics.jsonl").read_text().splitlines()]
    for term in ("consistency", "diversity", "spectral"):
        assert lines[STEPS // 2][f"{term}_weighted"] != 0, term
    before, after = (float(outputs(m, trained.batch).loss) for m in (trained.pre_trained(), trained.model))
    # dft and asft learn less from targets that are unlikely at first.
    least = 1.0 if find_method(trained.result.trainer.method.name).objective else 0.8
    assert after < least * before, (before, after)


def test_the_teacher_is_still_the_pre_trained_model(trained):
    teacher, batch = trained.result.trainer.teacher, trained.batch
    expected = outputs(trained.pre_trained(), batch).logits.double()
    away = float(consistency(outputs(trained.model, batch).logits.double(), expected, 1.0))
    assert away > 0.05, "the student has changed a lot"
    with teacher.active():
        found = outputs(trained.model, batch).logits.double()
    assert float(consistency(found, expected, 1.0)) < 1e-6
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    back = float(consistency(outputs(trained.model, batch).logits.double(), expected, 1.0))
    assert back == away, "the student is restored"


def test_a_run_loads_bit_for_bit(trained):
    batch = trained.batch
    loaded = balora.load(trained.result.folder)
    assert torch.equal(outputs(loaded, batch).logits, outputs(trained.model, batch).logits)
