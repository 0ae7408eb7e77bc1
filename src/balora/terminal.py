"""Text for the screen: wrapped between words, without control characters, and coloured only where colours are wanted."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from typing import Any, TextIO

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BAR = "█"


def printable(text: str) -> str:
    r"""Show control characters as escapes: text of data or models must not change the terminal.

    New lines and tabs stay.

    Example:
        >>> printable("a\x1b[31mb\n")
        'a\\x1b[31mb\n'
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def wants_colour(stream: TextIO) -> bool:
    """Decide if a stream gets colours: a terminal that knows them, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bar(value: float, largest: float, width: int, encoding: str | None = None) -> str:
    """Draw a value as a bar; a value above 0 has at least one block.

    Example:
        >>> bar(5, 10, 6, "utf-8"), bar(5, 10, 6, "ascii"), bar(0, 10, 6)
        ('███', '###', '')
    """
    block = _BAR if (encoding or "utf-8").lower().startswith("utf") else "#"
    return block * (max(1, round(width * value / largest)) if value and largest else 0)


def wrap(message: str, width: int | None = None) -> str:
    """Wrap a text between words; a line keeps its indent. A word that is longer than the line is not broken.

    Args:
        message: Text of one or more lines.
        width: Columns; default those of the terminal.

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
