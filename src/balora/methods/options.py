"""Options of a method: meaning, default and allowed values of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from balora.errors import suggest


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of one method. ``None`` is allowed if it is the default: the method then chooses a value."""

    default: Any
    meaning: str
    allowed: str
    """Allowed values, as a phrase that completes "the value is ..."."""
    valid: Callable[[Any], bool]


def integer(default: int | None, meaning: str, *, least: int = 0) -> Option:
    """Return an option whose value is an integer of at least ``least``."""

    def valid(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return Option(default, meaning, f"a whole number of at least {least}", valid)


def number(
    default: float, meaning: str, *, least: float = 0.0, most: float = math.inf, including_least: bool = False
) -> Option:
    """Return an option whose value is a number above ``least`` (or equal, if ``including_least``) and at most ``most``."""

    def valid(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return least < value <= most or (including_least and value == least)

    lower = f"of at least {least:g}" if including_least else f"above {least:g}"
    upper = "" if math.isinf(most) else f" and at most {most:g}"
    return Option(default, meaning, f"a number {lower}{upper}", valid)


def choice(default: str | int | None, meaning: str, values: Sequence[str | int]) -> Option:
    """Return an option whose value is one of several names or numbers."""

    def valid(value: Any) -> bool:
        return value in values and not isinstance(value, bool)

    return Option(default, meaning, f"one of {', '.join(map(str, values))}", valid)


def boolean(default: bool, meaning: str) -> Option:
    """Return an option whose value is true or false."""
    return Option(default, meaning, "true or false", lambda value: isinstance(value, bool))


def check_values(
    method: str,
    options: Mapping[str, Option],
    given: Mapping[str, Any],
    methods_with: Callable[[str], Sequence[str]] = lambda option: (),
) -> list[str]:
    """List the problems with the values given to a method's options.

    Args:
        method: Name of the method, for the messages.
        options: Options of the method by name.
        given: Values by option name.
        methods_with: Function that returns the names of the methods with a given option.

    Example:
        >>> check_values("loraplus", {"lr_ratio": number(16.0, "rate of B over that of A")}, {"lr_rato": 4, "lr_ratio": 0})
        ["Method 'loraplus' has no option 'lr_rato'. Did you mean 'lr_ratio'?", 'method.lr_ratio is a number above 0, not 0.']
    """
    problems = []
    for key in given:
        if key not in options:
            others = ", ".join(methods_with(key))
            hint = f" Methods that have it: {others}." if others else suggest(key, options)
            problems.append(f"Method {method!r} has no option {key!r}.{hint}")
    return problems + [
        f"method.{key} is {options[key].allowed}, not {value!r}."
        for key, value in given.items()
        if key in options and not (value is None and options[key].default is None) and not options[key].valid(value)
    ]
