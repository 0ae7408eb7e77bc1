"""The commands of the tutorial on somebody else's adapter, run in their order; what they print is what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "audit-an-adapter.md"
_BLOCK = re.compile(r"```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)```", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(?:e-?\d+)?")


def run_page(text: str, folder: Path) -> list[tuple[str, str, str | None]]:
    """Run each command of a page; return it, what it printed with its exit status, and what the page says it prints."""
    shim = folder / "bin" / "balora"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m balora "$@"\n')
    (shim.parent / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for path in shim.parent.iterdir():
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    blocks = list(_BLOCK.finditer(text))
    found = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block["title"]:
            (folder / block["title"]).write_text(block["body"])
        if block["kind"] != "bash":
            continue
        done = subprocess.run(
            ["bash", "-c", block["body"]], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        said = following["body"] if following is not None and following["kind"] == "text" else None
        found.append((block["body"].strip(), f"{done.stdout}(status {done.returncode})", said))
    return found


def plain(output: str) -> list[str]:
    """Return the words of an output: numbers and line breaks differ between machines."""
    return _NUMBER.sub("#", output.replace("(status 0)", "")).split()


@pytest.mark.slow
def test_commands_print_what_the_page_says(tmp_path: Path) -> None:
    found = run_page(PAGE.read_text(encoding="utf-8"), tmp_path)
    assert len(found) == 5
    for command, printed, said in found:
        if said is None:
            assert printed.endswith("(status 0)"), (command, printed)
        else:
            expected, words = plain(said), plain(printed)
            ends = range(len(expected), len(words) + 1)
            assert any(words[end - len(expected) : end] == expected for end in ends), (command, printed)


def test_blocks_with_commands_have_their_output() -> None:
    blocks = [block["kind"] for block in _BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
    assert blocks == ["python", "bash", *["bash", "text"] * 4]
