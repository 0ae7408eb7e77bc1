"""Write the command-line reference from the command itself, so that the page cannot fall behind the code.

A line `[command: train]` becomes the usage, the description and the options of `balora train`. Importing the command needs
neither torch nor transformers.
"""

from __future__ import annotations

import re
from typing import Any

import typer.main
from mkdocs.exceptions import PluginError

from balora.cli.main import app

_MARK = re.compile(r"^\[command: (?P<name>[\w-]+)\]$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the description of a command in place of every mark."""
    return _MARK.sub(lambda mark: describe(mark["name"], page.file.src_path), markdown)


def describe(name: str, where: str) -> str:
    """Describe one command in Markdown."""
    group: Any = typer.main.get_command(app)
    command = group.commands.get(name)
    if command is None:
        raise PluginError(f"{where}: balora has no command {name}.")
    context = group.make_context("balora", [name], resilient_parsing=True)
    usage = " ".join(["balora", name, *command.collect_usage_pieces(context)])
    lines = [" ".join((command.help or "").split()), "", f"```\n{usage}\n```"]
    records = [parameter.get_help_record(context) for parameter in command.params if parameter.name != "help"]
    rows = [f"| `{_cell(name)}` | {_cell(meaning)} |" for name, meaning in filter(None, records)]
    if rows:
        lines += ["", "| argument or option | meaning |", "|---|---|", *rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
