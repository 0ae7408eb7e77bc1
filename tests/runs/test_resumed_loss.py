"""The training loss of a resumed run is the mean over all its steps, or it is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from balora.experiments.compare.compare import _notes
from balora.experiments.compare.engines import LocalEngine
from balora.experiments.compare.rows import Row


def record_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def kill_after(step: int, run: Path) -> None:
    """Change a finished run to one that was killed after the checkpoint of that step."""
    shutil.rmtree(run / "adapter")
    for later in range(step + 2, 7, 2):
        shutil.rmtree(run / f"checkpoint-{later}")
    known = {name: value for name, value in record_of(run).items() if name not in ("error", "metrics", "parameters")}
    (run / "run.json").write_text(json.dumps({**known, "status": "running"}))


def test_a_resumed_run_has_the_loss_of_the_uninterrupted_run(balora, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert balora("train", config, "training.learning_rate=0.05").status == 0  # the loss must fall
    whole = record_of(run)["metrics"]["train_loss"]
    for step in (2, 4):  # killed twice, the second time after a resume
        kill_after(step, run)
        limit = (
            f"training.save_total_limit={3 if step == 2 else 1}"  # at the end the checkpoint it resumed from is deleted
        )
        assert "Resuming" in balora("train", config, "training.learning_rate=0.05", limit).out
        assert record_of(run)["resumed"]
        assert record_of(run)["metrics"]["train_loss"] == pytest.approx(whole, rel=1e-6)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]["train_loss"]
    assert abs(last - whole) > 0.01 * whole, "the loss since the resume is another number"
    card = (run / "README.md").read_text()
    assert f"| train_loss | {whole:.4g} |" in card
    assert "interrupted and resumed" in card and "| train_runtime" not in card


def test_no_loss_is_given_if_the_log_lacks_a_step(balora, config: Path, tmp_path: Path) -> None:
    run, odd = tmp_path / "run", "training.logging_steps=3"
    assert balora("train", config, odd).status == 0
    assert "train_loss" in record_of(run)["metrics"]
    kill_after(4, run)  # no line covers step 4
    assert balora("train", config, odd).status == 0
    assert "train_loss" not in record_of(run)["metrics"]
    assert "| train_loss" not in (run / "README.md").read_text()
    kill_after(6, run)  # step 6 ends a line, but the steps lost before are still missing
    assert balora("train", config, odd).status == 0
    assert "train_loss" not in record_of(run)["metrics"]


def test_a_comparison_counts_the_runs_without_a_loss() -> None:
    def row(seed: int, **more) -> Row:
        about = {"variant": "lora", "method": "lora", "regularized": False, "axes": {}, "status": "finished"}
        return Row(run=f"lora-{seed}", seed=seed, provenance={}, **about, **more)

    lost = row(1, scores={})
    for rows in ([lost], [lost, row(2, scores={"train_loss": 1.0}, seconds=3.0)]):
        assert any(note.startswith("1 finished run(s) have no training loss") for note in _notes(rows, LocalEngine()))
    assert not any("no training loss" in note for note in _notes([row(1, scores={"accuracy": 0.5})], LocalEngine()))
