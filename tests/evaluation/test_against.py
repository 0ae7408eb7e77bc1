"""`balora evaluate --against`: two finished evaluations, item by item, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from balora.errors import BALoraError
from balora.evaluation.evaluate import format_scores
from balora.evaluation.results import Journal
from balora.evaluation.significance.against import compare_evaluations


def evaluation(directory: Path, right: np.ndarray, task: str = "gsm8k", data: str = "digest") -> Path:
    """A run directory with a finished evaluation; returns it."""
    (directory / "evaluation").mkdir(parents=True, exist_ok=True)
    journal = Journal(directory / "evaluation", task, {"model": str(directory), "data": data})
    samples = [{"id": str(n), "correct": bool(own), "extracted": "1"} for n, own in enumerate(right)]
    journal.finish(samples, {"main": "accuracy", "accuracy": float(np.mean(right)), "rows": len(right)}, {})
    return directory


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    base = rng.random(500) < 0.4
    better = base | (rng.random(500) < 0.1)
    return evaluation(tmp_path / "a", better), evaluation(tmp_path / "b", base)


def test_two_models_are_compared_by_the_command(balora, two: tuple[Path, Path], tmp_path: Path):
    outcome = balora("evaluate", str(two[0]), "--against", str(two[1]), "--output", str(tmp_path / "out"))
    assert outcome.status == 0, outcome.err
    assert "higher" in outcome.out and "only the second on 0 of 500" in outcome.out
    assert "These two models, on items like those of the test set" in outcome.out
    (written,) = json.loads((tmp_path / "out" / "against.json").read_text())
    assert written["verdict"] == "higher" and written["difference"]["basis"] == "items"
    assert written["mcnemar"][2] < 0.001


def test_several_seeds_and_tasks_are_corrected(two: tuple[Path, Path], tmp_path: Path):
    rng = np.random.default_rng(5)
    for task in ("math", "aime"):
        for path in two:
            evaluation(path, rng.random(100) < 0.3, task)
    (alone,) = compare_evaluations([two[0]], [two[1]], ["gsm8k"])
    together = {one.task: one for one in compare_evaluations([two[0]], [two[1]])}
    assert set(together) == {"gsm8k", "math", "aime"}
    assert together["gsm8k"].low < alone.low
    seeds = compare_evaluations([two[0], two[0]], [two[1], two[1]], ["gsm8k"])
    assert seeds[0].difference.basis == "seeds and items" and seeds[0].mcnemar is None


def test_a_result_has_the_standard_errors_of_its_scores(two: tuple[Path, Path]):
    result = json.loads((two[0] / "evaluation" / "gsm8k.json").read_text())
    share = result["scores"]["accuracy"]
    assert result["standard_errors"]["accuracy"] == pytest.approx((share * (1 - share) / 500) ** 0.5, rel=0.08)
    assert f"accuracy {share:.4f} (se 0.02" in format_scores(result)


def test_evaluations_that_are_no_comparison_are_refused(balora, two: tuple[Path, Path], tmp_path: Path):
    other_data = evaluation(tmp_path / "c", np.ones(500, bool), data="another")
    fewer = evaluation(tmp_path / "d", np.ones(400, bool))
    cases = [
        ([two[0]], [other_data], "differ in data"),
        ([two[0]], [fewer], "other rows"),
        ([two[0]], list(two), "1 evaluations"),
    ]
    for own, other, words in cases:
        with pytest.raises(BALoraError, match=words):
            compare_evaluations(own, other)
    with pytest.raises(BALoraError, match="Not every evaluation has the task math"):
        compare_evaluations([two[0]], [two[1]], ["math"])
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((str(two[0]), "--against", str(tmp_path / "empty")), "no finished evaluation"),
        ((str(two[0]), "--against", str(tmp_path / "absent")), "no directory"),
        ((str(two[0]),), "--tasks"),
    ):
        outcome = balora("evaluate", *arguments)
        assert outcome.status == 2 and words in " ".join(outcome.err.split()), outcome.err
