"""The quickstart's runs, numbers and page; one method and a few steps here, all of it in `make quickstart`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora.errors import BALoraError
from balora.experiments.quickstart import pipeline as story


def test_the_configs_differ_in_the_method_alone(tmp_path: Path) -> None:
    lora, balora = story.config_of(tmp_path, "lora"), story.config_of(tmp_path, "balora")
    assert lora.pop("method") == {**balora.pop("method"), "name": "lora"}
    assert lora.pop("output") != balora.pop("output")
    assert lora == balora


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BALoraError, match="other files"):
        story.tell(tmp_path, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_short_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = story.config_of

    def short(output: Path, method: str) -> dict:
        config = whole(output, method)
        config["training"] |= {"max_steps": 4, "logging_steps": 1, "disable_tqdm": True}
        return config

    monkeypatch.setattr(story, "config_of", short)
    monkeypatch.setattr(story, "METHODS", ("balora",))
    monkeypatch.setattr(story, "BLOCKS", 4)
    said: list[str] = []
    rows = story.tell(tmp_path / "qs", said.append)
    assert [row.method for row in rows] == ["pre-trained", "balora"]
    assert rows[0].drift == 0.0
    assert rows[1].drift > 1e-4, "training moves the model"
    assert rows[1].seconds is not None
    page = (tmp_path / "qs" / "report.html").read_text()
    assert page.count("<svg") == 1 + 3, "the task loss, and every part"
    for loads in ('src="http', "url(http", "<script", "<link"):
        assert loads not in page, "the page needs no network"
    assert f"{rows[1].drift:.4f}" in page
    assert any(f"{rows[1].drift:.4f}" in line for line in said)
    assert json.loads((tmp_path / "qs" / "results.json").read_text())[1]["drift"] == rows[1].drift
    said.clear()
    story._train(tmp_path / "qs", "balora", said.append)
    assert any("already trained" in line for line in said), "a second call does not repeat a finished run"
