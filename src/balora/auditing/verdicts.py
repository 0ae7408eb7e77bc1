"""One line for each question: unchanged, changed or doubtful.

A measure has a margin, the size from which a change matters. If its 95 % interval is inside the margin, it is unchanged; if
the interval is wholly outside, it is changed; else the data do not decide, and it is doubtful. A question is changed if one of
its measures is; unchanged if all are; else doubtful.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from balora.auditing.sentences import format_margin, format_number, reply, sentence

Verdict = Literal["unchanged", "changed", "doubtful", "not measured"]


@dataclasses.dataclass(frozen=True)
class Margin:
    """Size of a change that matters, in the measure's unit or as a fraction of the base's value."""

    size: float
    relative: bool = False
    wanted: Literal["any", "fall", "rise"] = "any"
    """Direction that counts: for a recall only a fall."""


_MARGINS: dict[str, Margin] = {
    "drift": Margin(0.01),
    "drift.changed_tokens": Margin(0.05),
    "drift.perplexity": Margin(0.02, relative=True),
    "collapse.entropy": Margin(0.05, relative=True),
    "collapse.hidden_rank": Margin(0.05, relative=True),
    "collapse.length": Margin(0.2, relative=True),
    "collapse.distinct_1": Margin(0.05),
    "collapse.distinct_2": Margin(0.05),
    "collapse.silhouette": Margin(0.05, wanted="fall"),
    "collapse.predicted": Margin(0.05),
    "collapse.recall": Margin(0.05, wanted="fall"),
    "noise.suspicious": Margin(0.01),
    "noise.ece": Margin(0.02, wanted="rise"),
    "noise.memorised": Margin(0.01, wanted="rise"),
    "bias": Margin(0.02),
    "weights.relative_change": Margin(0.05),
    "weights.intruders": Margin(0.05),
    "tasks": Margin(0.01),
}
"""Margins by measure; `margin_of` finds that of ``collapse.recall.CLASS`` or ``tasks.NAME`` by its beginning."""
QUESTIONS: dict[str, str] = {
    "drift": "Does it still say what it said on other text?",
    "collapse": "Are its answers as varied as before?",
    "noise": "Has it kept clear of wrong training rows and of learning rows by heart?",
    "bias": "Does it prefer stereotypes as often as before?",
    "weights": "Are its weights still close to the base's?",
    "tasks": "Does it solve the tasks as well as before?",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """Answer to one question."""

    question: str
    verdict: Verdict
    measure: str | None = None
    """The measure that decides."""
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"asks": QUESTIONS[self.question], **dataclasses.asdict(self)}


def margin_of(name: str) -> Margin | None:
    """Return the margin of a measure, None if it decides nothing.

    Example:
        >>> margin_of("collapse.recall.rare").size, margin_of("drift.p95")
        (0.05, None)
    """
    if name.startswith("samples.collapse."):
        name = name.removeprefix("samples.")
    elif name.split(".")[0] == "samples":  # drift on the base's own samples, beside documents
        name = name.replace("samples", "drift", 1)
    if name in _MARGINS:
        return _MARGINS[name]
    parts = name.split(".")
    if parts[0] in ("tasks", "bias"):
        return _MARGINS[parts[0]] if len(parts) == 2 else None
    return _MARGINS.get(".".join(parts[:2])) if parts[0] == "collapse" and len(parts) > 2 else None


def judge(name: str, measure: Mapping[str, Any]) -> Verdict | None:
    """Return the verdict of one measure; None if it has no margin or no number."""
    margin = margin_of(name)
    compared = measure.get("value") or measure.get("change")
    if margin is None or compared is None or compared.get("value") is None:
        return None
    value = compared["value"]
    size = margin.size
    if margin.relative:
        size *= abs((measure.get("base") or {}).get("value") or 0.0)
    low, high = compared.get("low"), compared.get("high")
    if low is None or high is None:  # a single document: the number alone decides nothing unless it is 0
        return "unchanged" if value == 0 else "doubtful"
    if margin.wanted == "fall":
        low, high = -high, -low
    if margin.wanted != "any":
        return "unchanged" if high <= size else "changed" if low > size else "doubtful"
    if -size <= low and high <= size:
        return "unchanged"
    return "changed" if low > size or high < -size else "doubtful"


def question_of(name: str) -> str:
    """Return the question that a measure belongs to.

    Example:
        >>> question_of("collapse.entropy"), question_of("samples.p95"), question_of("samples.collapse.entropy")
        ('collapse', 'drift', 'collapse')
    """
    parts = name.split(".")
    return (parts[1] if parts[1:2] == ["collapse"] else "drift") if parts[0] == "samples" else parts[0]


def answers(measures: Mapping[str, Mapping[str, Any]]) -> list[Answer]:
    """Answer every question from the measures."""
    found = []
    for question in QUESTIONS:
        judged = {n: v for n, m in measures.items() if question_of(n) == question and (v := judge(n, m)) is not None}
        if not judged:
            found.append(Answer(question, "not measured"))
            continue
        verdicts = set(judged.values())
        verdict: Verdict = "changed" if "changed" in verdicts else "doubtful" if "doubtful" in verdicts else "unchanged"
        name = next(n for n, v in judged.items() if v == verdict)
        margin = margin_of(name)
        assert margin is not None, "a measure without a margin is not judged"
        shown = sentence(name, measures[name], format_margin(margin.size, margin.relative, name, measures[name]))
        others = sum(v == verdict for v in judged.values()) - 1
        more = (
            ""
            if verdict == "unchanged" or not others
            else f" Other measures that are {verdict}: {others} of {len(judged) - 1}."
        )
        found.append(Answer(question, verdict, name, f"{reply(verdict)}: {shown}.{more}"))
    return found


def format_interval(interval: Mapping[str, Any], *, signed: bool = False) -> str:
    """Return a number with its interval.

    Example:
        >>> format_interval({"value": 0.0123, "low": 0.01, "high": 0.015})
        '0.0123 [0.01, 0.015]'
    """
    value, low, high = (format_number(interval.get(key), signed=signed) for key in ("value", "low", "high"))
    return value if interval.get("low") is None else f"{value} [{low}, {high}]"
