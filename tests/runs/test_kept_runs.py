"""Runs, checkpoints, caches, evaluations and comparisons of an earlier version must keep working.

The files were written by commit c857017 (see tests/fixtures/kept_runs/README.md), and so were the expected numbers.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import balora as library
from command import Command

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "kept_runs"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
TOKENS = torch.arange(4, 16).reshape(2, 6)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kept files, which is the working directory: their configs name relative paths."""
    folder = tmp_path / "kept"
    shutil.copytree(FIXTURE, folder)
    monkeypatch.chdir(folder)
    return folder


def first_logits(model: torch.nn.Module) -> list[float]:
    with torch.no_grad():
        logits = model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    return logits.reshape(-1)[:40].tolist()


@pytest.mark.parametrize("run", ["finished", "classifier"])
def test_a_finished_run_loads_as_the_same_model(kept: Path, run: str):
    assert first_logits(library.load(kept / run)) == pytest.approx(EXPECTED[run], abs=1e-4)


def test_an_interrupted_run_resumes_to_the_same_adapter(kept: Path, balora: Command):
    outcome = balora("train", "interrupted.yaml")
    assert outcome.status == 0, outcome.err
    assert "checkpoint-2" in outcome.out
    metrics = json.loads((kept / "interrupted" / "run.json").read_text())["metrics"]
    assert metrics["train_loss"] == pytest.approx(EXPECTED["interrupted"]["train_loss"], rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(EXPECTED["interrupted"]["eval_loss"], rel=1e-5)
    adapter = load_file(kept / "interrupted" / "adapter" / "adapter_model.safetensors")
    norms = {name: float(value.double().pow(2).sum()) for name, value in adapter.items()}
    assert norms == pytest.approx(EXPECTED["interrupted"]["adapter"], rel=1e-4)


def test_a_teacher_cache_is_used_as_it_is(kept: Path, balora: Command):
    before = {path.name: path.read_bytes() for path in (kept / "teacher-cache").iterdir()}
    outcome = balora("train", "cached.yaml")
    assert outcome.status == 0, outcome.err
    assert {path.name: path.read_bytes() for path in (kept / "teacher-cache").iterdir()} == before
    metrics = json.loads((kept / "cached" / "run.json").read_text())["metrics"]
    assert metrics["train_loss"] == pytest.approx(EXPECTED["cached"], rel=1e-5)


def test_an_evaluation_is_continued_and_nothing_is_answered_again(kept: Path, balora: Command):
    journal = kept / "finished" / "evaluation" / "gsm8k.samples.jsonl"
    before = journal.read_bytes()
    outcome = balora(
        "evaluate", "finished", "--tasks", "gsm8k", "--data", "gsm8k=gsm8k.jsonl", "--max-new-tokens", 8, "--device", "cpu"
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert journal.read_bytes() == before


def test_a_run_exports_as_a_lora_and_as_a_merged_model(kept: Path, balora: Command):
    assert balora("export", "finished", "--to", "lora", "--output", "lora").status == 0
    assert balora("export", "classifier", "--to", "merged", "--output", "merged").status == 0
    merged = AutoModelForSequenceClassification.from_pretrained(kept / "merged")
    assert first_logits(merged) == pytest.approx(EXPECTED["classifier"], abs=1e-3)


def test_a_comparison_is_known_as_finished_and_is_reported(kept: Path, balora: Command):
    outcome = balora("compare", "comparison.yaml", "--methods", "lora,balora", "--seeds", "1,2")
    assert outcome.status == 0, outcome.err
    assert "4 of which" not in outcome.out
    assert "4 are finished" in outcome.out
    rows, expected = (
        list(csv.DictReader(io.StringIO(text)))
        for text in ((kept / "comparison-compare" / "table.csv").read_text(), EXPECTED["compared"])
    )
    # Standard errors have been added since; everything else stays.
    assert [{name: row[name] for name in old} for row, old in zip(rows, expected, strict=True)] == expected
    assert balora("report", "comparison-compare").status == 0
    assert (kept / "comparison-compare" / "report.html").stat().st_size > 10_000


def test_a_finished_run_is_not_overwritten(kept: Path, balora: Command):
    outcome = balora("train", "finished.yaml")
    assert outcome.status == 2
    assert "finished" in outcome.err
