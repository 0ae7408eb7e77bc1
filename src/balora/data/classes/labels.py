"""Class labels: from names or numbers in the data to class numbers 0 … D-1."""

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from balora.errors import BALoraError, suggest

_SHOWN = 10
_MAX_CLASSES = 1000
_WHOLE = re.compile(r"-?\d{1,20}")
_WHOLE_WITH_POINT = re.compile(r"-?\d{1,20}\.0+")
_SIGNED = re.compile(r"\+\d{1,20}(\.0+)?")
_DOUBLE_MINUS = re.compile(r"[-\u2010-\u2015\u2212]{2,}\s*\d+")
_DASHES = re.compile(r"[-_\u2010-\u2015\u2212]*")  # also the empty text
_PLACEHOLDERS = frozenset(("nan", "<na>", "nat", "n/a", "#n/a", "null"))
_DOUBTFUL = frozenset(("none", "na", "?", "unknown", "unlabeled", "unlabelled", "undefined", "missing"))
_PYTHON_NONE = "None"  # "none" and "NONE" are classes of some tasks, such as stance detection


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Classes of a task."""

    names: tuple[str, ...]
    """Names in the order of the class numbers."""
    indexed: tuple[str, ...] | None = None
    """Names in the order that a number in the data counts in, if it differs from the order of the class numbers."""
    positions: bool = False
    """True if a number in the data is always a position, also if the names are numbers: the source declares its classes."""

    def id_of(self, value: Any) -> int | None:
        """Return the number of a class given by name or number, or None if there is no such class.

        A number means the class of that name. If no name is a number, it means the class with that index.

        Example:
            >>> labels = LabelSet(("negative", "positive"))
            >>> labels.id_of("positive"), labels.id_of("0"), labels.id_of(2)
            (1, 0, None)
        """
        key, indexed = label_key(value), self.indexed or self.names
        if self.positions and isinstance(value, int) and not isinstance(value, bool):
            return self.names.index(indexed[value]) if 0 <= value < len(indexed) else None
        for name in (str(value).strip(), key):  # a class may be named "1.0", which differs from "1"
            if name in self.names:
                return self.names.index(name)
        keys = [label_key(name) for name in self.names] if _is_whole(key) else []
        if key in keys:  # the class is named "+1" or "1.0"
            return keys.index(key)
        if _is_whole(key) and not any(map(_is_whole, keys)):
            return self.names.index(indexed[int(key)]) if 0 <= int(key) < len(indexed) else None
        return None

    def unknown(self, value: Any) -> str:
        """Describe a value that is not a class, for the message about a row."""
        shown = ", ".join(self.names[:_SHOWN]) + (", ..." if len(self.names) > _SHOWN else "")
        problem, key = f"the label {value!r} is not one of {shown}", label_key(value)
        if is_mark(key):
            return f"{problem} - it usually marks a row without a label"
        hint = suggest(key, self.names).rstrip("?").replace("Did you mean", "did you mean")
        return f"{problem}{' -' + hint + '?' if hint else ''}"


def find_labels(values: Iterable[Any], column: str, source: str) -> LabelSet:
    """Collect the classes of the training rows: numbers in numerical order, names in alphabetical order.

    Raises:
        BALoraError: There is only one class or far too many, the values look like scores, or names are spelled in two ways.
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
    spellings = defaultdict(list)
    for key in sorted(keys):
        spellings[str(int(key)) if _is_whole(key) else unicodedata.normalize("NFC", key).casefold()].append(key)
    twice = [same for same in spellings.values() if len(same) > 1]
    if twice:
        raise BALoraError(
            f"data.label: the column {column} of {source} writes a class in several ways: "
            f"{'; '.join(', '.join(map(repr, same)) for same in twice[:3])}. Write each class in one way, or, if these are "
            "different classes, name all classes in data.labels."
        )
    return LabelSet(tuple(sorted(keys, key=int) if len(whole) == len(keys) else sorted(keys)))


def placeholders(values: Iterable[Any]) -> dict[str, str]:
    """Find labels that mark rows without a label, and mistyped numbers. Return what is wrong with each.

    A negative number is a placeholder among words, and also among other numbers, if it is the only negative one. Exceptions
    are the common classes -1 and 1, and -1, 0 and 1.

    Example:
        >>> list(placeholders([0, 1, 2, -1])), list(placeholders([-1, 0, 1])), list(placeholders(["yes", "no", "-"]))
        (['-1'], [], ['-'])
    """
    keys = {label_key(value) for value in values}
    marks = {key for key in keys if _is_placeholder(key)}
    whole = {key: int(key) for key in keys if _is_whole(key)}
    words = {key for key in keys - marks - set(whole) if not _is_number(key)}
    scores = keys - marks - set(whole) - words
    negative = {key for key, number in whole.items() if number < 0}
    if len(negative) == 1 and not scores:
        lowest = min(whole.values())
        others = set(whole.values()) - {lowest}
        if words or not others or not others <= {0, -lowest}:
            marks |= negative
    problems = dict.fromkeys(marks, "usually marks a row without a label")
    if whole:
        problems |= {key: "looks like a mistyped number" for key in words if _DOUBLE_MINUS.fullmatch(key)}
    return problems


def doubts(labels: LabelSet, column: str, source: str) -> list[str]:
    """Return a sentence for each doubt about classes that were found in the rows."""
    names, start = labels.names, f"The column {column} of {source}"
    found = []
    numbers = [name for name in names if _is_whole(name)]
    if set(names) <= {"-1", "0", "1"} and {"-1", "0"} <= set(names):
        found.append(f"{start}: -1 is taken for a class, and not for a mark of rows without a label.")
    if numbers and len(numbers) < len(names):
        words = [repr(name) for name in names if name not in numbers]
        shown = ", ".join(words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")
        found.append(f"{start} holds numbers and also {shown}; all are taken for classes.")
    found += [
        f"{start}: {name!r} is taken for a class, and not for a mark of rows without a label."
        for name in names
        if name.casefold() in _DOUBTFUL
    ]
    return found


def label_key(value: Any) -> str:
    """Convert a label to text. ``1``, ``1.0``, ``"1"``, ``"1.0"`` and ``"+1"`` are the same class.

    pandas writes ``"1.0"`` to CSV for whole numbers if a row of the column is empty.

    Example:
        >>> label_key(1.0), label_key("1.0"), label_key("-1.0"), label_key("+1"), label_key("1.5"), label_key("v1.0")
        ('1', '1', '-1', '1', '1.5', 'v1.0')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if _SIGNED.fullmatch(text):  # as in the files of LIBSVM
        text = text[1:]
    return str(int(text.partition(".")[0])) if _WHOLE_WITH_POINT.fullmatch(text) else text


def is_mark(key: str) -> bool:
    """Decide if a label (`label_key`) that is no class usually marks a row without a label: a placeholder or a negative number."""
    return _is_placeholder(key) or (key.startswith("-") and _is_whole(key))


def _is_placeholder(key: str) -> bool:
    return key == _PYTHON_NONE or key.lower() in _PLACEHOLDERS or _DASHES.fullmatch(key) is not None


def _is_whole(text: str) -> bool:
    return _WHOLE.fullmatch(text) is not None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
