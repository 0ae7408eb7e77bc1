"""Values of cells, and the reason why a row cannot be used."""

import math
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


class RowProblem(Exception):
    """A row cannot be used; the message gives the reason in a few words."""


class MissingLabel(RowProblem):
    """A row has no label or score: its cell is empty, or holds a mark for that."""

    def __init__(self, problem: str, value: Any = None) -> None:
        super().__init__(problem)
        self.value = value
        """The mark; None if the cell is empty."""


def is_missing(value: Any) -> bool:
    """Check for an empty cell. NaN is one, because pandas writes empty cells as NaN, also to JSON."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def encodable(text: str, name: str) -> str:
    r"""Refuse text that UTF-8 cannot encode: JSON allows one half (``\ud83d``) of a surrogate pair alone."""
    if text.isascii():
        return text
    lone = _SURROGATE.search(text)
    if lone:
        raise RowProblem(f"{name} holds half a character (\\u{ord(lone[0]):04x}) at character {lone.start() + 1}")
    return text
