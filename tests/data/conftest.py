"""Small files and tokenizers for the tests of the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import tiny_tokenizer


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows (objects, or lines as they are) to a .jsonl file."""

    def write(*rows, name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def tokenizer():
    """One token per character; unlike a real one it adds nothing of its own."""
    return tiny_tokenizer()
