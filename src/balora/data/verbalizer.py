"""Classes and scores as words: GLUE as text to text, for models that read a text and write one.

A class is said by its name. A score is said as T5 says STS-B's: rounded to the nearest 0.2, with one decimal, so that there are
26 words from "0.0" to "5.0" to learn and no others. What the model answers is read back by `read_class` and `read_score`.

Reference: Raffel et al., T5, 2020, sections 2.3 and 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

UNREADABLE = -1
"""What an answer that is no class, or no number, counts as. It is right for no row, as in T5's own evaluation."""


def score_word(score: float) -> str:
    """The word for a score: the nearest multiple of 0.2, halves to the even one.

    Example:
        >>> score_word(3.8), score_word(2.666), score_word(5)
        ('3.8', '2.6', '5.0')
    """
    return f"{round(score * 5) / 5 + 0.0:.1f}"  # + 0.0: no "-0.0"


def read_class(answer: str, names: Sequence[str]) -> int:
    """The number of the class that an answer names, or `UNREADABLE`. Spaces do not count: some tokenizers decode them anew.

    Example:
        >>> read_class(" not_entailment", ["entailment", "not_entailment"]), read_class("perhaps", ["yes", "no"])
        (1, -1)
    """
    known = [_bare(name) for name in names]
    return known.index(_bare(answer)) if _bare(answer) in known else UNREADABLE


def read_score(answer: str) -> float:
    """The number that an answer is, or `UNREADABLE`.

    Example:
        >>> read_score("3.8"), read_score("three")
        (3.8, -1.0)
    """
    try:
        score = float(_bare(answer))
    except ValueError:
        return float(UNREADABLE)
    return score if math.isfinite(score) else float(UNREADABLE)


def _bare(text: str) -> str:
    return "".join(text.split())
