"""The command inside the test's process: the same `main`, without the imports of a new process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from balora.cli.main import main
from tiny import tiny_llama, tiny_tokenizer


@dataclasses.dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def balora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["balora", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    rows = [{"question": f"what is {a} plus {b}?", "answer": f"it is {a + b}."} for a in range(6) for b in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path: Path, model_dir: Path, train_file: Path) -> Path:
    """Config of a run that takes a few seconds."""
    path = tmp_path / "config.yaml"
    values = {
        "model": str(model_dir),
        "task": "generation",
        "data": {"train": str(train_file), "prompt": "question", "response": "answer", "max_length": 64},
        "method": {"name": "balora", "rank": 4},
        "training": {
            "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "save_steps": 2, "use_cpu": True,
            "learning_rate": 1e-3, "disable_tqdm": True,
        },
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path
