"""`balora train --nproc`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from balora.cli.launch import rank
from command import Command


def test_a_launcher_in_a_launcher_is_refused(balora: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = balora("train", config, "--nproc", "2")
    assert outcome.status == 2
    assert "already started by a launcher" in outcome.err


def test_a_mistake_is_found_before_processes_start(balora: Command, config: Path) -> None:
    outcome = balora("train", config, "--nproc", "2", "method.rnak=2")
    assert outcome.status == 2
    assert outcome.err.count("Did you mean 'rank'?") == 1


def test_a_process_knows_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert rank() == 0
    monkeypatch.setenv("RANK", "3")
    assert rank() == 3


@pytest.mark.slow
def test_two_processes_train_and_one_speaks(config: Path) -> None:
    def call(*changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "balora", "train", str(config), "--nproc", "2", *changes]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=dict(os.environ))

    outcome = call()
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("Trained 6 steps") == 1
    record = json.loads((Path(yaml.safe_load(config.read_text())["output"]) / "run.json").read_text())
    assert record["status"] == "finished"
    refused = call("method.rank=4000", f"output={config.parent / 'other'}")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
