"""docs/reference/methods-by-family.md agrees with a trial of every method on every model family."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "method_table.py"


# By default check only the layers, as `balora validate` does; the slow test initializes every pair and makes one step.
@pytest.mark.parametrize("sizes_only", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_committed_table_is_up_to_date(sizes_only: bool):
    spec = importlib.util.spec_from_file_location("method_table", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    committed, found = script.PAGE.read_text(encoding="utf-8"), script.page(sizes_only=sizes_only)
    for left, right in zip(committed.splitlines(), found.splitlines(), strict=True):
        assert left == right, "run scripts/method_table.py"
