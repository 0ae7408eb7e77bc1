"""Reports of progress begin with the work, not with its first result."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation import progress as progress_module
from balora.evaluation.engines.transformers import Answer, TransformersGenerator
from balora.evaluation.progress import progress
from evaluation_models import generator_at


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_FIRST_REPORT", 0.1)
    monkeypatch.setattr(progress_module, "_LONGEST_PAUSE", 0.2)


def test_a_slow_first_batch_is_reported_before_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"question": "?" * (n + 1), "answer": "#### 1"}) + "\n" for n in range(3)))

    def slow(self, prompts, sampling, seeds) -> list[Answer]:
        time.sleep(0.5)
        return [Answer("1", 1, True)] * len(prompts)

    monkeypatch.setattr(TransformersGenerator, "_generate_batch", slow)
    lines: list[str] = []
    options = EvaluationOptions(data={"gsm8k": str(data)}, device="cpu", batch_size=2)
    evaluate(generator_at(tmp_path / "m"), ["gsm8k"], output=tmp_path / "out", options=options, say=lines.append)
    said = "\n".join(lines)
    assert "  0 of 3 answers after 0 s" in said
    assert "  2 of 3 answers after 1 s, about" in said


def test_quick_work_is_not_reported_and_no_thread_stays() -> None:
    lines: list[str] = []
    before = threading.active_count()
    with progress(lines.append, "answers", 2) as add:
        add(2)
    assert lines == [] and threading.active_count() == before


def test_a_failure_ends_the_reports() -> None:
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt), progress(lines.append, "loading the model"):
        time.sleep(0.15)
        raise KeyboardInterrupt
    count = len(lines)
    time.sleep(0.4)
    assert lines[0] == "  loading the model: 0 s" and len(lines) == count
