"""Options of a method: meaning, default and allowed values of each."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

LARGEST = 2**31 - 1
"""Largest number of rows, iterations or steps that an option takes."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of one method. ``None`` is allowed if it is the default: the method then chooses a value."""

    default: Any
    meaning: str
    allowed: str
    """Allowed values, as a phrase that completes "the value is ..."."""
    valid: Callable[[Any], bool]


def integer(default: int | None, meaning: str, *, least: int = 0) -> Option:
    """Return an option for integers of at least ``least``."""
    allowed = f"a whole number of at least {least}"
    return Option(default, meaning, allowed, lambda value: _is(int, value) and least <= value <= LARGEST)


def number(
    default: float, meaning: str, *, least: float = 0.0, most: float = math.inf, including_least: bool = False
) -> Option:
    """Return an option for numbers above ``least`` (or equal to it, if ``including_least``) and at most ``most``."""

    def valid(value: Any) -> bool:
        return (
            _is(int | float, value)
            and math.isfinite(value)
            and (least < value <= most or (including_least and value == least))
        )

    lower = f"of at least {least:g}" if including_least else f"above {least:g}"
    upper = "" if math.isinf(most) else f" and at most {most:g}"
    return Option(default, meaning, f"a number {lower}{upper}", valid)


def choice(default: str | int | None, meaning: str, values: Sequence[str | int]) -> Option:
    """Return an option for one of several names or numbers."""
    allowed = f"one of {', '.join(map(str, values))}"
    return Option(default, meaning, allowed, lambda value: _is(int | str, value) and value in values)


def boolean(default: bool, meaning: str) -> Option:
    """Return an option for true or false."""
    return Option(default, meaning, "true or false", lambda value: isinstance(value, bool))


def names(meaning: str) -> Option:
    """Return an option for a list of names; none by default."""
    return Option(None, meaning, "a list of names", lambda value: _is_list(value, str) and all(value))


def integers(meaning: str) -> Option:
    """Return an option for a list of integers of at least 0; none by default."""
    return Option(None, meaning, "a list of whole numbers", lambda value: _is_list(value, int) and min(value) >= 0)


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is(kind, item) for item in value)


def _is(kind: Any, value: Any) -> bool:
    """Return whether a value is of this type; Python counts true and false as integers, and this function does not."""
    return isinstance(value, kind) and not isinstance(value, bool)
