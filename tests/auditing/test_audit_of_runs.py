"""`audit:` in a config: a run ends with its audit, and a comparison has its measures as columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from command import Command


@pytest.fixture
def audited(config: Path, tmp_path: Path) -> Path:
    """A config whose run is audited."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"a paragraph number {n}" for n in range(10)))
    values = yaml.safe_load(config.read_text())
    values["training"]["max_steps"] = 2
    values["audit"] = {"text": str(tmp_path / "text.txt"), "rows": 8, "weights": False, "fail_if": "drift > 1e-12"}
    config.write_text(yaml.safe_dump(values))
    return config


def test_train_ends_with_the_audit(balora: Command, audited: Path, tmp_path: Path) -> None:
    outcome = balora("train", audited)
    assert outcome.status == 3 and "Bound broken: drift > 1e-12" in outcome.err
    result = json.loads((tmp_path / "run" / "audit" / "audit.json").read_text())
    assert result["answers"]["drift"]["verdict"] in ("unchanged", "doubtful", "changed")
    assert result["measures"]["noise.loss"]["count"] == 8
    again = balora("train", audited, "audit.fail_if=drift > 100")  # the run is finished; only the bound is new
    assert again.status == 0 and "All parts were measured before" in again.out


def test_compare_has_the_measures_as_columns(balora: Command, audited: Path, tmp_path: Path) -> None:
    common = (
        "compare",
        audited,
        "audit.fail_if=null",
        "--methods",
        "lora,pissa",
        "--seeds",
        "1",
        "--output",
        tmp_path / "c",
    )
    outcome = balora(*common, "--scores", "audit/drift")
    assert outcome.status == 0, outcome.out + outcome.err
    rows = [json.loads(line) for line in (tmp_path / "c" / "rows.jsonl").read_text().splitlines()]
    assert all(row["scores"]["audit/drift"] > 0 and "audit/noise.loss" in row["scores"] for row in rows)
    assert "audit/drift" in (tmp_path / "c" / "table.md").read_text()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("audit=yes please", "audit must be on, off or a section"),
        ("audit.txt=file", "Unknown setting audit.txt"),
        ("audit.documents=0", "documents must be a whole number"),
        ("audit.fail_if=drift", "is not a bound"),
    ],
)
def test_mistakes_are_found_before_training(
    balora: Command, config: Path, tmp_path: Path, value: str, message: str
) -> None:
    outcome = balora("train", config, value)
    assert outcome.status == 2 and message in outcome.err
    assert not (tmp_path / "run").exists()
