"""Bounds of ``--fail-if``: a measure, a sign and a number. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from balora.errors import BALoraError, suggest

_BOUND = re.compile(r"\s*(?P<name>[A-Za-z0-9_.:/-]+)\s*(?P<sign><=|>=|<|>)\s*(?P<limit>[-+0-9.eE]+)\s*")
_PARTS = ("value", "base", "tuned", "change")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A condition that makes an audit fail."""

    name: str
    """Measure, alone or followed by ``.base``, ``.tuned`` or ``.change``."""
    sign: str
    limit: float

    def broken_by(self, value: float) -> bool:
        """Return whether a value fulfils the condition."""
        tests = {"<": value < self.limit, ">": value > self.limit, "<=": value <= self.limit, ">=": value >= self.limit}
        return tests[self.sign]

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.limit:g}"


def parse_bounds(text: str | None) -> list[Bound]:
    """Read bounds that are separated by commas.

    Raises:
        BALoraError: A part is not a name, a sign and a number.

    Example:
        >>> [str(bound) for bound in parse_bounds("drift > 0.05, facts<0.9")]
        ['drift > 0.05', 'facts < 0.9']
    """
    bounds = []
    for part in (text or "").split(","):
        if not part.strip():
            continue
        match = _BOUND.fullmatch(part)
        try:
            limit = float(match["limit"]) if match else math.nan
        except ValueError:
            limit = math.nan
        if match is None or not math.isfinite(limit):
            raise BALoraError(
                f'fail_if: {part.strip()!r} is not a bound. Write a measure, <, <=, > or >=, and a number: "drift > 0.05".'
            )
        bounds.append(Bound(match["name"], match["sign"], limit))
    if text is not None and not bounds:
        raise BALoraError('fail_if is empty. Write a measure, <, <=, > or >=, and a number: "drift > 0.05".')
    return bounds


def broken_bounds(bounds: list[Bound], measures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each bound that is broken; the tuned model's value counts where there is one for each model.

    Raises:
        BALoraError: A bound names what was not measured. A bound that cannot be checked must not pass.
    """
    lines, problems = [], []
    for bound in bounds:
        name, part = bound.name, None
        found = _find(name, measures)
        if found is None and "." in name and name.rpartition(".")[2] in _PARTS:
            name, _, part = name.rpartition(".")
            found = _find(name, measures)
        if found is None:
            problems.append(
                f"fail_if: {name} was not measured.{suggest(name, measures)} Measured: {', '.join(sorted(measures))}."
            )
            continue
        part = part or ("value" if found.get("value") is not None else "tuned")
        value = (found.get(part) or {}).get("value")
        if value is None:
            problems.append(f"fail_if: {bound.name} has no number; it was undefined for this model or these data.")
        elif bound.broken_by(float(value)):
            lines.append(f"{bound}: it is {value:.4g} ({found['label']}, {part})")
    if problems:
        raise BALoraError("\n".join(problems))
    return lines


def _find(name: str, measures: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Find a measure by its name, or by the name of a task or set of pairs alone."""
    return measures.get(name) or measures.get(f"tasks.{name}") or measures.get(f"bias.{name}")
