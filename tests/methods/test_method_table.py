"""The page that says which method works on which family is what trying every pair says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "method_table.py"


# By default what `balora validate` knows; on request every start and a step of each.
@pytest.mark.parametrize("sizes_only", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_committed_table_is_what_the_code_does(sizes_only: bool):
    spec = importlib.util.spec_from_file_location("method_table", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    committed, found = script.PAGE.read_text(encoding="utf-8"), script.page(sizes_only=sizes_only)
    for left, right in zip(committed.splitlines(), found.splitlines(), strict=True):
        assert left == right, "run scripts/method_table.py"
