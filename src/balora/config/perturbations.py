"""The data conditions of a config: what is done to the training rows before they are learnt from, checked key by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def check_subsample(value: Any) -> float | int | None:
    """A share above 0 and at most 1, or a number of rows: ``1.0`` is all of them, ``1`` is one.

    Example:
        >>> check_subsample("0.5"), check_subsample(200), check_subsample(1.0), check_subsample(1)
        (0.5, 200, 1.0, 1)
    """
    if value is None or value is False:
        return None
    number = _number(value)
    share = isinstance(value, float) or (isinstance(value, str) and not value.strip().isdecimal())
    if number == 1 and share:
        return 1.0
    if number >= 1 and number == int(number):
        return int(number)
    if 0 < number < 1:
        return number
    raise ValueError(f"is a share between 0 and 1 (1.0 is all) or a number of rows, not {value!r}")


def check_imbalance(value: Any) -> dict[str, float] | None:
    """Shares above 0, at most 1, by class.

    Example:
        >>> check_imbalance({0: 1, "yes": 0.1})
        {'0': 1.0, 'yes': 0.1}
    """
    if value is None or value is False:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"names classes with the share of their rows to keep, such as {{entailment: 1.0, neutral: 0.1}}, not {value!r}"
        )
    shares = {str(name): _number(share) for name, share in value.items()}
    wrong = [name for name, share in shares.items() if not 0 < share <= 1]
    if wrong:
        raise ValueError(f"keeps a share above 0 and at most 1 of each class, not {value!r}")
    return shares


def check_duplicate(value: Any) -> dict[str, Any] | None:
    """A share of the rows, and how often they then occur: twice, or ``{share: 0.2, times: 5}``.

    Example:
        >>> check_duplicate(0.2), check_duplicate({"share": 0.1, "times": 5})
        ({'share': 0.2, 'times': 2}, {'share': 0.1, 'times': 5})
    """
    if value is None or value is False or value == 0:
        return None
    section = dict(value) if isinstance(value, Mapping) else {"share": value}
    share, times = _number(section.pop("share", None)), _number(section.pop("times", 2))
    if section or not 0 < share <= 1 or times != int(times) or times < 2:
        raise ValueError(
            f"is a share of the rows above 0 and at most 1, or {{share: 0.2, times: 5}} with times at least 2, not {value!r}"
        )
    return {"share": share, "times": int(times)}


def condition_problems(data: Mapping[str, Any], task: str, form: str) -> list[str]:
    """Conditions that mean nothing for a task or a form of examples, as sentences."""
    problems = []
    if data.get("imbalance") and task != "classification":
        problems.append(f"data.imbalance is for classification, which has classes; task {task} has none.")
    if data.get("label_noise") and form == "text":
        problems.append("data.label_noise means nothing for plain text, which has no labels; leave it out.")
    return problems


def _number(value: Any) -> float:
    """A finite number, NaN for anything else."""
    if isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan
