"""`balora init --from`: values of another kind than the other tool takes end in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from command import Command


@pytest.mark.parametrize(
    "change",
    [{"datasets": "train.jsonl"}, {"datasets": [7]}, {"val_set_size": "some"}, {"learning_rate": "fast"}],
    ids=str,
)
def test_values_of_another_kind_are_refused(balora: Command, tmp_path: Path, change: dict) -> None:
    values = {"base_model": "m", "datasets": [{"path": "a.jsonl"}], "adapter": "lora", "lora_r": 8, **change}
    path = tmp_path / "axolotl.yaml"
    path.write_text(yaml.safe_dump(values))
    outcome = balora("init", "--from", path, "--output", tmp_path / "run.yaml")
    assert outcome.status == 2 and "a value of another kind than its tool takes" in outcome.err
