"""The quickstart's runs, numbers and page: one method and a few steps here, everything in `make quickstart`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from balora.errors import BALoraError
from balora.experiments.quickstart import bias_probes, pipeline


def test_the_configs_differ_in_the_method_alone(tmp_path: Path) -> None:
    lora, balora = pipeline.config_of(tmp_path, "lora"), pipeline.config_of(tmp_path, "balora")
    assert lora.pop("method") == {**balora.pop("method"), "name": "lora"}
    assert lora.pop("output") != balora.pop("output")
    assert lora == balora


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BALoraError, match="contains other files"):
        pipeline.run_quickstart(tmp_path, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One method, four steps, few blocks, few facts."""
    complete = pipeline.config_of

    def config_of(output: Path, method: str) -> dict:
        config = complete(output, method)
        config["training"] |= {"max_steps": 4, "logging_steps": 1, "disable_tqdm": True}
        return config

    monkeypatch.setattr(pipeline, "config_of", config_of)
    monkeypatch.setattr(pipeline, "METHODS", ("balora",))
    monkeypatch.setattr(pipeline, "BLOCKS", 4)
    monkeypatch.setattr(bias_probes, "PERSON_RELATIONS", ("pet",))


def test_a_short_quickstart(tmp_path: Path, short: None, balora, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "qs"
    commands: list[list[str]] = []

    def run_here(command: list[str], check: bool) -> subprocess.CompletedProcess:
        """Run the command in this process, without the seconds of imports that a new one takes."""
        commands.append(command)
        return subprocess.CompletedProcess(command, balora(*command[3:]).status)

    monkeypatch.setattr(pipeline, "subprocess", SimpleNamespace(run=run_here))
    lines: list[str] = []
    rows = pipeline.run_quickstart(output, lines.append)
    assert commands == [[sys.executable, "-m", "balora.cli.main", "train", str(output / "balora.yaml")]]
    assert [row.method for row in rows] == ["pre-trained", "balora"]
    assert rows[0].drift == 0.0
    assert rows[1].drift > 1e-4, "training moves the model"
    assert rows[1].seconds is not None
    assert all(0.5 < row.known <= 1 for row in rows)
    page = (output / "report.html").read_text()
    assert page.count("<svg") == 1 + 3, "the task loss, and every term"
    for loads in ('src="http', "url(http", "<script", "<link"):
        assert loads not in page, "the page needs no network"
    assert f"{rows[1].drift:.4f}" in page
    assert any(f"{rows[1].drift:.4f}" in line for line in lines)
    assert json.loads((output / "results.json").read_text())[1]["drift"] == rows[1].drift
    lines.clear()
    pipeline._train(output, "balora", lines.append)
    assert any("already trained" in line for line in lines), "a second call does not repeat a finished run"
    assert len(commands) == 1


def test_a_failed_run_stops_the_quickstart(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(run=lambda command, check: subprocess.CompletedProcess(command, returncode=2))
    monkeypatch.setattr(pipeline, "subprocess", failed)
    with pytest.raises(BALoraError, match="Training with balora stopped"):
        pipeline.run_quickstart(tmp_path / "qs", say=lambda line: None)
