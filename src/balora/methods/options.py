"""A method's own options: what each means, its default, and what it may be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from balora.errors import suggest


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of one method."""

    default: Any
    meaning: str
    allowed: str
    """What it may be, in words that follow "is"."""
    valid: Callable[[Any], bool]


def whole(default: int | None, meaning: str, *, least: int = 0) -> Option:
    """A whole number; ``None`` as default means that the method chooses."""

    def valid(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return Option(default, meaning, f"a whole number of at least {least}", valid)


def number(
    default: float, meaning: str, *, least: float = 0.0, most: float = math.inf, including_least: bool = False
) -> Option:
    """A number above ``least``, or from it on (``including_least``), and at most ``most``."""

    def valid(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return least < value <= most or (including_least and value == least)

    lower = f"of at least {least:g}" if including_least else f"above {least:g}"
    upper = "" if math.isinf(most) else f" and at most {most:g}"
    return Option(default, meaning, f"a number {lower}{upper}", valid)


def choice(default: str, meaning: str, known: Sequence[str]) -> Option:
    """One of several words."""
    return Option(default, meaning, f"one of {', '.join(known)}", lambda value: value in known)


def one_of(default: int | None, meaning: str, known: Sequence[int]) -> Option:
    """One of several numbers; ``None`` as default means none of them."""

    def valid(value: Any) -> bool:
        return value in known and not isinstance(value, bool)

    return Option(default, meaning, f"one of {', '.join(map(str, known))}", valid)


def switch(default: bool, meaning: str) -> Option:
    """True or false."""
    return Option(default, meaning, "true or false", lambda value: isinstance(value, bool))


def check_values(
    method: str,
    options: Mapping[str, Option],
    given: Mapping[str, Any],
    elsewhere: Callable[[str], Sequence[str]] = lambda key: (),
) -> list[str]:
    """What is wrong with the values given to a method's options.

    Args:
        method: Its name, for the sentences.
        options: Its options.
        given: Values by name.
        elsewhere: Names the methods that have an option of a name.

    Example:
        >>> check_values("loraplus", {"lr_ratio": number(16.0, "rate of B over that of A")}, {"lr_rato": 4, "lr_ratio": 0})
        ["Method 'loraplus' has no option 'lr_rato'. Did you mean 'lr_ratio'?", 'method.lr_ratio is a number above 0, not 0.']
    """
    problems = []
    for key in given:
        if key not in options:
            others = ", ".join(elsewhere(key))
            hint = f" Methods that have it: {others}." if others else suggest(key, options)
            problems.append(f"Method {method!r} has no option {key!r}.{hint}")
    return problems + [
        f"method.{key} is {options[key].allowed}, not {value!r}."
        for key, value in given.items()
        if key in options and not (value is None and options[key].default is None) and not options[key].valid(value)
    ]
