"""The training loss of a resumed run is that of all its steps, or it is not given."""

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
    """Leave a finished run as a kill after that step's checkpoint does."""
    shutil.rmtree(run / "adapter")
    for later in range(step + 2, 7, 2):
        shutil.rmtree(run / f"checkpoint-{later}")
    known = {name: value for name, value in record_of(run).items() if name not in ("error", "metrics", "parameters")}
    (run / "run.json").write_text(json.dumps({**known, "status": "running"}))


def test_it_is_the_loss_of_the_run_that_was_not_interrupted(balora, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert balora("train", config, "training.learning_rate=0.05").status == 0  # so that the loss falls
    whole = record_of(run)["metrics"]["train_loss"]
    for step in (2, 4):  # killed twice, the second time after a resume
        kill_after(step, run)
        limit = f"training.save_total_limit={3 if step == 2 else 1}"  # in the end its own checkpoint is rotated away
        assert "Resuming" in balora("train", config, "training.learning_rate=0.05", limit).out
        assert record_of(run)["resumed"]
        assert record_of(run)["metrics"]["train_loss"] == pytest.approx(whole, rel=1e-6)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]["train_loss"]
    assert abs(last - whole) > 0.01 * whole, "the last part's own is another number"
    card = (run / "README.md").read_text()
    assert f"| train_loss | {whole:.4g} |" in card
    assert "interrupted and resumed" in card and "| train_runtime" not in card


def test_without_every_step_in_the_log_there_is_none(balora, config: Path, tmp_path: Path) -> None:
    run, odd = tmp_path / "run", "training.logging_steps=3"
    assert balora("train", config, odd).status == 0
    assert "train_loss" in record_of(run)["metrics"]
    kill_after(4, run)  # step 4 is in no line
    assert balora("train", config, odd).status == 0
    assert "train_loss" not in record_of(run)["metrics"]
    assert "| train_loss" not in (run / "README.md").read_text()
    kill_after(6, run)  # at the end of a line, but what was lost before stays lost
    assert balora("train", config, odd).status == 0
    assert "train_loss" not in record_of(run)["metrics"]


def test_a_comparison_says_whose_loss_is_missing() -> None:
    def row(seed: int, **more) -> Row:
        about = {"variant": "lora", "method": "lora", "regularized": False, "axes": {}, "status": "finished"}
        return Row(run=f"lora-{seed}", seed=seed, provenance={}, **about, **more)

    lost = row(1, scores={})
    for rows in ([lost], [lost, row(2, scores={"train_loss": 1.0}, seconds=3.0)]):
        assert any(note.startswith("1 finished run(s) have no training loss") for note in _notes(rows, LocalEngine()))
    assert not any("no training loss" in note for note in _notes([row(1, scores={"accuracy": 0.5})], LocalEngine()))
