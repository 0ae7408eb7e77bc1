"""Evaluation within a comparison: after training, with its scores in the rows, and continued instead of repeated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from balora.config.yaml_loader import read_config
from balora.errors import BALoraError
from balora.experiments.compare import EvaluationPlan, Variant, compare
from balora.experiments.compare.evaluation import read_scores

VARIANTS = [Variant.parse("lora"), Variant.parse("full")]


@pytest.fixture
def values(config: Path) -> dict:
    read = read_config(config)
    return {**read, "training": {**read["training"], "max_steps": 1, "report_to": "none", "save_strategy": "no"}}


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_failed_evaluation_is_a_failed_row_and_finished_samples_are_not_repeated(
    values: dict, problems: Path, tmp_path: Path
):
    short = {"limit": 3, "max_new_tokens": 3, "device": "cpu"}
    known = EvaluationPlan(tasks=("gsm8k",), options={**short, "data": {"gsm8k": str(problems)}})
    absent = dataclasses.replace(known, options={**short, "data": {"gsm8k": str(tmp_path / "absent.jsonl")}})
    directory = tmp_path / "out"

    comparison = compare(values, VARIANTS, [1], output=directory, evaluation=absent)
    assert [row.status for row in comparison.rows] == ["failed", "failed"]
    assert all("trained, but not evaluated" in row.reason and "absent.jsonl" in row.reason for row in comparison.rows)
    records = {row.run: (directory / "runs" / row.run / "run.json").read_bytes() for row in comparison.rows}

    comparison = compare(values, VARIANTS, [1], baseline="lora", output=directory, evaluation=known)
    assert [row.status for row in comparison.rows] == ["finished", "finished"]
    assert {row.run: (directory / "runs" / row.run / "run.json").read_bytes() for row in comparison.rows} == records
    result = directory / "runs" / "lora_seed-1" / "evaluation" / "gsm8k.json"
    scores = json.loads(result.read_text())["scores"]
    assert scores["rows"] == 3
    assert comparison.rows[0].scores["gsm8k/accuracy"] == scores["accuracy"]
    assert comparison.scores == ["gsm8k/accuracy", "gsm8k/answered"]
    assert set(comparison.groups[1].differences) == {"gsm8k/accuracy", "gsm8k/answered"}
    assert "gsm8k/accuracy" in (directory / "table.md").read_text()

    written = result.stat().st_mtime_ns
    said: list[str] = []
    compare(values, VARIANTS, [1], output=directory, evaluation=known, say=said.append)
    assert "2 are finished already" in said[0].replace("of which ", "")
    assert result.stat().st_mtime_ns == written

    more = dataclasses.replace(known, options={**known.options, "limit": 4})
    comparison = compare(values, VARIANTS[:1], [1], output=directory, evaluation=more)
    assert json.loads(result.read_text())["scores"]["rows"] == 4
    assert comparison.rows[0].status == "finished"
    log = (directory / "logs" / "lora_seed-1.log").read_text()
    assert "3 of 4 answers are there already" in log


@pytest.mark.parametrize(
    ("options", "word"),
    [({"limits": 3}, "limits"), ({"limit": 0}, "at least 1"), ({"judge": {"url": "x"}}, "url")],
)
def test_an_invalid_evaluation_plan_is_refused_before_any_run(values: dict, tmp_path: Path, options: dict, word: str):
    plan = EvaluationPlan(tasks=("gsm8k",), options=options)
    with pytest.raises(BALoraError, match=word):
        compare(values, VARIANTS, [1], output=tmp_path / "out", evaluation=plan)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tasks", "options", "kept"),
    [
        (("gsm8k",), {}, True),
        (("humaneval",), {}, False),
        (("gsm8k", "mbpp"), {"code_prompt": "harness"}, False),
        (("humaneval",), {"code_prompt": "dataset"}, True),
    ],
)
def test_scores_of_an_earlier_version_are_not_mixed_with_those_of_another_prompt(
    tmp_path: Path, tasks: tuple[str, ...], options: dict, kept: bool
) -> None:
    plan = EvaluationPlan(tasks=tasks, options=options)
    (tmp_path / "evaluation").mkdir()
    record = {**plan.to_dict(), "values": {"x/pass@1": 0.5}}
    (tmp_path / "evaluation" / "comparison.json").write_text(json.dumps(record))
    assert (read_scores(tmp_path, plan) is not None) is kept
