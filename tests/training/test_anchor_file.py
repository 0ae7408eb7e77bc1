"""`balora teacher --anchors FILE`: the model writes its anchors once, and runs read the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from balora.anchoring.rows import FILE, AnchorRows

SHORT = ["training.max_steps=1", "training.report_to=none"]


def test_anchors_written_once_are_read_by_runs(balora, config: Path, tmp_path: Path):
    path = tmp_path / "kept.safetensors"
    settings = "anchor={generate: 12, tokens: 8}"
    outcome = balora("teacher", config, settings, "--anchors", path)
    assert outcome.status == 0, outcome.err
    assert "Wrote 12 sequences" in outcome.out
    assert not (tmp_path / "run").exists()
    kept = AnchorRows.load(path, 0.125, 1)
    outcome = balora("train", config, *SHORT, f"anchor={path}")
    assert outcome.status == 0, outcome.err
    assert AnchorRows.load(tmp_path / "run" / FILE, 0.125, 1).rows == kept.rows
    again = balora("teacher", config, settings, "--anchors", path)
    assert again.status == 2 and "nothing is overwritten" in again.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["anchor=general.jsonl", "--anchors", "a.safetensors"], "other anchors or none"),
        (["--anchors", "a.safetensors"], "other anchors or none"),
        (["anchor=generated", "--anchors", "a.txt"], "ends in .safetensors"),
    ],
)
def test_mistakes_are_said(balora, config: Path, arguments, part):
    outcome = balora("teacher", config, *arguments)
    assert outcome.status == 2 and part in outcome.err
