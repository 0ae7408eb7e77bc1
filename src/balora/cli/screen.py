"""Text on the screen: wrapped between words on a terminal, one line a message anywhere else."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

import typer


def say(message: str = "", *, err: bool = False) -> None:
    """Print a message, wrapped to the width of the terminal. A file or pipe gets the lines as they are."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(wrap(message) if stream.isatty() else message, err=err)


def wrap(message: str, width: int | None = None) -> str:
    """Wrap a text between words; a line keeps its indent. A word that is longer than the line is not broken.

    Example:
        >>> print(wrap("  - one two three", 12))
          - one two
            three
    """
    width = width or shutil.get_terminal_size().columns
    return "\n".join(_wrap_line(line, width) for line in message.split("\n"))


def _wrap_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    text = line.lstrip(" ")
    indent = line[: len(line) - len(text)]
    further = indent + ("  " if text.startswith("- ") else "")
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=further, **options))
