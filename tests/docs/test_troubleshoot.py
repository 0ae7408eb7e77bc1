"""The messages on the page docs/how-to/troubleshoot.md are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "troubleshoot.md").read_text(encoding="utf-8")
HEADINGS = [h for h in re.findall(r"^### (.+)$", PAGE, re.MULTILINE) if not h.startswith("The process ends")]


@pytest.fixture(scope="module")
def messages() -> str:
    """Every string of the sources, with … for the parts that are filled in."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_message_on_the_page_is_one_of_the_code(heading: str, messages: str) -> None:
    for part in re.split(r"\s*…\s*", heading):
        assert part in messages, part


def test_the_page_has_headings() -> None:
    assert len(HEADINGS) > 20
