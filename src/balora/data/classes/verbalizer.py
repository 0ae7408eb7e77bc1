"""Verbalizer: classes and scores as text, for models that read a text and write one (GLUE as text to text).

A class becomes its name. A score becomes a number with one decimal, rounded to the nearest 0.2 as T5 does for STS-B, so the model
has only 26 texts to learn, from "0.0" to "5.0". `read_class` and `read_score` read the model's answer back.

Reference: Raffel et al., T5, 2020, sections 2.3 and 2.4.
"""

import math
from collections.abc import Sequence

from balora.config.data_columns import number_or_nan

UNREADABLE = -1
"""Value of an answer that is not a class or not a number. It equals no label, so it counts as wrong, as in T5's evaluation."""


def score_word(score: float) -> str:
    """Write a score as text: the nearest multiple of 0.2, ties to the even one.

    Example:
        >>> score_word(3.8), score_word(2.666), score_word(5)
        ('3.8', '2.6', '5.0')
    """
    return f"{round(score * 5) / 5 + 0.0:.1f}"  # + 0.0: no "-0.0"


def read_class(answer: str, names: Sequence[str]) -> int:
    """Return the number of the class that an answer names, or `UNREADABLE`.

    Spaces are ignored, because some tokenizers add or drop them when they decode.

    Example:
        >>> read_class(" not_entailment", ["entailment", "not_entailment"]), read_class("perhaps", ["yes", "no"])
        (1, -1)
    """
    known = [_without_spaces(name) for name in names]
    text = _without_spaces(answer)
    return known.index(text) if text in known else UNREADABLE


def read_score(answer: str) -> float:
    """Return the number in an answer, or `UNREADABLE`.

    Example:
        >>> read_score("3.8"), read_score("three")
        (3.8, -1.0)
    """
    score = number_or_nan(_without_spaces(answer))
    return float(UNREADABLE) if math.isnan(score) else score


def _without_spaces(text: str) -> str:
    return "".join(text.split())
