"""Class labels: from names or numbers in the data to class numbers 0 … D-1."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from balora.errors import BALoraError, suggest

_SHOWN = 10
_MAX_CLASSES = 1000
_WHOLE_WITH_POINT = re.compile(r"-?\d{1,20}\.0+")


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Classes of a task."""

    names: tuple[str, ...]
    """Names in the order of the class numbers."""

    def id_of(self, value: Any) -> int | None:
        """Return the number of a class given by name or number, or None if there is no such class.

        A number means the class of that name. If no name is a number, it means the class with that index.

        Example:
            >>> labels = LabelSet(("negative", "positive"))
            >>> labels.id_of("positive"), labels.id_of("0"), labels.id_of(2)
            (1, 0, None)
        """
        key = label_key(value)
        for name in (str(value).strip(), key):  # a class may be named "1.0", which differs from "1"
            if name in self.names:
                return self.names.index(name)
        if _is_whole(key) and not any(_is_whole(name) for name in self.names):
            return int(key) if 0 <= int(key) < len(self.names) else None
        return None

    def unknown(self, value: Any) -> str:
        """Describe a value that is not a class, for the message about a row."""
        shown = ", ".join(self.names[:_SHOWN]) + (", ..." if len(self.names) > _SHOWN else "")
        hint = suggest(label_key(value), self.names).rstrip("?").replace("Did you mean", "did you mean")
        return f"the label {value!r} is not one of {shown}{' -' + hint + '?' if hint else ''}"


def find_labels(values: Iterable[Any], column: str, source: str) -> LabelSet:
    """Collect the classes of the training rows: numbers in numerical order, names in alphabetical order.

    Raises:
        BALoraError: There is only one class or far too many, or the values look like scores.
    """
    keys = {label_key(value) for value in values}
    whole = [key for key in keys if _is_whole(key)]
    if len(whole) < len(keys) and all(_is_number(key) for key in keys):
        raise BALoraError(f"data.label: the column {column} of {source} holds scores; for them use task: regression.")
    if len(keys) > _MAX_CLASSES:
        raise BALoraError(
            f"data.label: the column {column} of {source} has {len(keys):,} different values; is it a label?"
        )
    if len(keys) < 2:
        only = f" ({next(iter(keys))!r})" if keys else ""
        raise BALoraError(
            f"data.label: all rows of {source} have the same {column}{only}, but classification needs two classes. If there "
            "are more, name them in data.labels."
        )
    return LabelSet(tuple(sorted(keys, key=int) if len(whole) == len(keys) else sorted(keys)))


def label_key(value: Any) -> str:
    """Convert a label to text. ``1``, ``1.0``, ``"1"`` and ``"1.0"`` are the same class.

    pandas writes ``"1.0"`` to CSV for whole numbers if a row of the column is empty.

    Example:
        >>> label_key(1.0), label_key("1.0"), label_key("-1.0"), label_key("1.5"), label_key("v1.0")
        ('1', '1', '-1', '1.5', 'v1.0')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return str(int(text.partition(".")[0])) if _WHOLE_WITH_POINT.fullmatch(text) else text


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdecimal()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
