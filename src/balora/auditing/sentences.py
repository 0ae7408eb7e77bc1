"""The answer to a question of the audit as a sentence for people who do not train models: yes or no, then the number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PHRASES: dict[str, str] = {
    "drift": "its predictions are {value} per token away from the base's",
    "drift.rows": "its class probabilities are {value} per row away from the base's",
    "drift.changed_tokens": "at {value} of the tokens it expects another next token than the base",
    "drift.changed_tokens.rows": "it puts {value} of the rows into another class than the base",
    "drift.perplexity": "its perplexity was {base} and is {tuned}",
    "collapse.entropy": "the entropy of its predictions was {base} and is {tuned}",
    "collapse.hidden_rank": "its hidden states used {base} directions and use {tuned}",
    "collapse.length": "its answers were {base} long and are {tuned}",
    "collapse.distinct_1": "different words were {base} of all words of its answers and are {tuned}",
    "collapse.distinct_2": "different pairs of words were {base} of all pairs in its answers and are {tuned}",
    "collapse.silhouette": "the separation of the classes in its features (silhouette) was {base} and is {tuned}",
    "collapse.predicted": "the share of rows that it calls {name} was {base} and is {tuned}",
    "collapse.predicted.value": "it calls {tuned} of the rows {name}, and the difference to those that are is {value}",
    "collapse.recall": "it found {base} of the rows that are {name} and finds {tuned}",
    "noise.suspicious": "{value} of the training rows look wrong or learnt by heart",
    "noise.ece": "the gap between its confidence and its accuracy was {base} and is {tuned}",
    "noise.memorised": "it could recite {base} of the training rows and can recite {tuned}",
    "bias": "the base preferred the stereotypical sentence in {base} of the pairs of {name}, and it does in {tuned}",
    "weights.relative_change": "its weights moved by {value} of their size",
    "weights.intruders": "its matrices have {value} leading directions each that the base lacks (of 10)",
    "tasks": "{name}: the base scores {base} and it scores {tuned}",
}
_SHARES = frozenset({"bias", "weights.relative_change"})
"""Phrases whose number is a share though its unit does not say so."""
_REPLIES = {"unchanged": "Yes", "changed": "No", "doubtful": "The data do not decide"}


def reply(verdict: str) -> str:
    """Return the reply to a question of the audit, each of which asks whether something stayed as it was."""
    return _REPLIES[verdict]


def sentence(name: str, measure: Mapping[str, Any], margin: str) -> str:
    """Return a measure as a phrase with its number, its interval and its margin.

    Args:
        name: Name of the measure, such as ``collapse.recall.rare``.
        measure: Its values.
        margin: The margin, as `format_margin` writes it.

    Example:
        >>> sentence("drift", {"unit": "nats", "of": "documents", "value": {"value": 0.5, "low": 0.25, "high": 0.75}}, "0.01 nats")
        "its predictions are 0.5 nats per token away from the base's (95 % interval 0.25 to 0.75 nats; margin 0.01 nats)"
    """
    own = name.startswith("samples.") or name == "samples"
    key, subject = _phrase(name, measure)
    unit = "share" if key.split(".value")[0] in _SHARES else measure["unit"]
    values = {side: _quantity((measure.get(side) or {}).get("value"), unit) for side in ("value", "base", "tuned")}
    text = _PHRASES[key].format(name=subject, **values)
    compared = measure.get("value") or measure.get("change") or {}
    notes = []
    if compared.get("low") is not None:
        signed = measure.get("value") is None
        ends = [_quantity(compared[end], unit, signed=signed) for end in ("low", "high")]
        ends[0] = ends[0].removesuffix(f" {_word(unit)}") if _word(unit) else ends[0]
        notes.append(f"95 % interval{' of the change' if signed else ''} {' to '.join(ends)}")
    notes.append(f"margin {margin}")
    return f"{'on texts of the base, ' if own else ''}{text} ({'; '.join(notes)})"


def format_margin(size: float, relative: bool, name: str, measure: Mapping[str, Any]) -> str:
    """Return the size of a change that matters, in the words of `sentence`."""
    if relative:
        return f"{100 * size:g} % of the base's"
    key, _ = _phrase(name, measure)
    return _quantity(size, "share" if key in _SHARES else measure["unit"])


def _phrase(name: str, measure: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key of a measure's phrase, and the class, set or task that it is about."""
    if name.startswith("samples.collapse."):
        name = name.removeprefix("samples.")
    elif name.split(".")[0] == "samples":
        name = name.replace("samples", "drift", 1)
    if measure["of"] == "rows" and f"{name}.rows" in _PHRASES:
        return f"{name}.rows", ""
    if name in _PHRASES:
        return name, ""
    parts = name.split(".")
    key = parts[0] if parts[0] in _PHRASES and parts[0] in ("bias", "tasks") else ".".join(parts[:2])
    subject = name.removeprefix(f"{key}.")
    return (f"{key}.value" if measure.get("value") and f"{key}.value" in _PHRASES else key), subject


def _word(unit: str) -> str:
    return "%" if unit == "share" else unit


def _quantity(value: float | None, unit: str, *, signed: bool = False) -> str:
    if value is None:
        return "undefined"
    number = format_number(100 * value if unit == "share" else value, signed=signed)
    return f"{number} {_word(unit)}" if unit else number


def format_number(value: float | None, *, signed: bool = False) -> str:
    """Return a number with three significant digits, or "undefined".

    Example:
        >>> format_number(1234.5), format_number(0.000123), format_number(0.5, signed=True), format_number(None)
        ('1,234', '0.000123', '+0.5', 'undefined')
    """
    if value is None:
        return "undefined"
    if abs(value) >= 1000:
        return f"{value:+,.0f}" if signed else f"{value:,.0f}"
    text = f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.2e}"
    return f"+{text}" if signed and value > 0 else text
