"""Small data files and a tiny tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import tiny_tokenizer


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Function that writes rows (objects, or complete lines) to a .jsonl file and returns its path."""

    def write(*rows, name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def tokenizer():
    """Tokenizer with one token per character; unlike a real one it adds no special tokens."""
    return tiny_tokenizer()
