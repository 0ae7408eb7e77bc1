"""The commands of docs/tutorial.md print what the page shows, apart from numbers and times."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import tiny_llama, tiny_tokenizer

DOCS = Path(__file__).parents[2] / "docs"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHATML = "{% for m in messages %}[{{ m.role }}]{{ m.content }}^{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def steps() -> dict[str, list[str]]:
    """Return the commands of the page, each with the lines that it prints."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for block in re.findall(r"```console\n(.*?)```", page, re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                command = line[2:]
                found[command] = []
            else:
                found[command].append(line)
    return found


def skeleton(lines: list[str]) -> list[str]:
    """Return lines without their numbers, times and bars, and without empty ones."""
    text = re.sub(r"█+", "█", "\n".join(line.rstrip() for line in lines))
    text = re.sub(r"[0-9][0-9,.:]*(e[-+]?[0-9]+)?", "#", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def place(folder: Path) -> None:
    """Put the page's data file and its config in the folder."""
    shutil.copy(DOCS / "assets" / "shop.jsonl", folder)
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    for name, content in re.findall(r'```yaml title="(.*?)"\n(.*?)```', page, re.S):
        (folder / name).write_text(content, encoding="utf-8")


def test_the_page_has_at_most_ten_commands():
    commands = list(steps())
    assert 5 <= len(commands) <= 10
    assert all(command.startswith("balora ") for command in commands)
    assert all(steps().values()), "each command is shown with what it prints"


def test_the_first_commands_with_another_model(balora, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    place(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    (tmp_path / MODEL).parent.mkdir()
    tiny_llama().save_pretrained(tmp_path / MODEL)
    tokenizer.save_pretrained(tmp_path / MODEL)
    for command, shown in list(steps().items())[:2]:
        done = balora(*shlex.split(command)[1:])
        assert done.status == 0, done.err
        printed, expected = skeleton(done.out.splitlines()), skeleton(shown)
        if " init " in command:
            assert printed == expected
        else:  # the tokens are others
            headings = [line for line in expected if line.endswith(":") or line.startswith(("cut", "left out"))]
            assert len(headings) >= 4
            assert [line for line in printed if line in headings] == headings
            assert any(line.startswith("| ") for line in printed)


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path):
    folder = os.environ.get("BALORA_SMOLLM2")
    if not folder:
        pytest.skip(f"BALORA_SMOLLM2 does not name a folder with {MODEL}")
    place(tmp_path)
    (tmp_path / MODEL).parent.mkdir()
    (tmp_path / MODEL).symlink_to(Path(folder).resolve())
    environment = {**os.environ, "COLUMNS": "80"}
    for command, shown in steps().items():
        arguments = [sys.executable, "-m", "balora", *shlex.split(command)[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        for line, expected in itertools.zip_longest(skeleton(done.stdout.splitlines()), skeleton(shown), fillvalue=""):
            assert line.startswith(expected.removesuffix("...").rstrip()) if expected else not line, command
