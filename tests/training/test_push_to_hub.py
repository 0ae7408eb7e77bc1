"""`trainer.push_to_hub` after the training, against a fake of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import balora
from balora.errors import BALoraError
from balora.training import hub
from small_runs import trainer
from tiny import tiny_llama


class FakeHub:
    """Keeps what would be uploaded."""

    calls: dict[str, Any]

    def __init__(self, token: str | None = None) -> None:
        FakeHub.calls = {"token": token}

    def create_repo(self, name: str, **options: Any) -> Any:
        FakeHub.calls["create"] = (name, options)
        return type("Repo", (), {"repo_id": f"me/{name}"})

    def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
        FakeHub.calls["upload"] = options
        FakeHub.calls["files"] = {path.name: path.read_bytes() for path in folder_path.iterdir() if path.is_file()}
        return "the commit"


def test_a_plain_lora_with_its_card_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    run = trainer(balora.adapt(tiny_llama(), method="balora", rank=2), tmp_path / "my-model", max_steps=1)
    run.train()
    assert run.push_to_hub("Second try", token="secret") == "the commit"
    calls = FakeHub.calls
    assert calls["create"] == ("my-model", {"private": True, "exist_ok": True}) and calls["token"] == "secret"
    assert calls["upload"]["repo_id"] == "me/my-model" and calls["upload"]["commit_message"] == "Second try"
    config = json.loads(calls["files"]["adapter_config.json"])
    assert config["r"] == 4 and config["init_lora_weights"] is True, "plain peft reads it: the difference has rank 2r"
    assert b"balora" in calls["files"]["README.md"]
    with pytest.raises(BALoraError, match="no argument tags here"):
        run.push_to_hub(tags=["mine"])


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(FakeHub):
        def create_repo(self, name: str, **options: Any) -> Any:
            raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(hub, "HfApi", Away)
    run = trainer(balora.adapt(tiny_llama(), method="balora", rank=2), tmp_path, max_steps=1)
    with pytest.raises(
        BALoraError, match=r"could not be uploaded to .*: Temporary failure .* save it with trainer\.save_model"
    ):
        run.push_to_hub()
