"""`audit:` in a config: a run ends with its audit, and a comparison has its measures as columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from balora.checkpoints.model_card import read_audit
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
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.count("## What fine-tuning changed") == 1 and result["answers"]["drift"]["sentence"][:40] in card
    assert balora("export", tmp_path / "run", "--to", "lora", "--output", tmp_path / "lora").status == 0
    assert "## What fine-tuning changed" in (tmp_path / "lora" / "README.md").read_text()
    manifest = tmp_path / "run" / "adapter" / "manifest.json"
    assert read_audit(manifest.parent, tmp_path / "run") is not None
    manifest.write_text(manifest.read_text() + "\n")  # other weights: the audit is not about them
    assert read_audit(manifest.parent, tmp_path / "run") is None


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


def test_classification_run(balora: Command, tmp_path: Path) -> None:
    """A classifier is audited on its evaluation rows, and its noisy labels are known from the config."""
    import balora as package
    from balora.config.run_config import load_run_config
    from balora.data.examples import load_examples
    from tiny import tiny_bert, tiny_tokenizer

    tiny_bert(num_labels=2).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"{'ab'[n % 2]} row {n}", "label": ("no", "yes")[n % 2]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "config.yaml"
    values = {
        "model": str(tmp_path / "model"), "task": "classification", "output": str(tmp_path / "run"),
        "data": {"train": str(tmp_path / "rows.jsonl"), "text": "text", "label": "label", "eval": 0.25, "label_noise": 0.2},
        "method": {"name": "balora", "rank": 4},
        "training": {"max_steps": 3, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(values))
    assert balora("train", config).status == 0
    found = package.audit(tmp_path / "run")
    assert found.measures["drift"]["count"] == 10 and found.measures["noise.loss"]["count"] == 30
    assert {"collapse.recall.no", "collapse.predicted.yes", "collapse.silhouette", "noise.ece"} <= found.measures.keys()
    marked = [row for row in found.result["evidence"]["rows"] if row["wrong"]]
    examples = load_examples(load_run_config(config).data, "classification", 42)
    assert found.measures["noise.precision_of_list"]["count"] == examples.perturbations["labels_changed"] == 6
    for row in marked:  # the label on the page is not the one that the text says
        assert row["response"] != ("no", "yes")["ab".index(row["prompt"].replace(" ", "")[0])]
