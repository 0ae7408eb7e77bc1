"""A measured quantity, and the interface of everything that measures."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from balora.auditing.intervals import Interval
from balora.evaluation.model_under_test import LoadedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A quantity of two models. It has a ``value`` if it compares them, else one for each model and their difference."""

    name: str
    """Name for JSON and bounds, such as ``collapse.entropy``."""
    label: str
    unit: str = ""
    count: int
    """Number of documents or items."""
    of: str = "documents"
    value: Interval | None = None
    base: Interval | None = None
    tuned: Interval | None = None
    change: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        sides = {name: getattr(self, name) for name in ("value", "base", "tuned", "change")}
        return {
            "label": self.label, "unit": self.unit, "count": self.count, "of": self.of,
            **{name: side.to_dict() for name, side in sides.items() if side is not None},
        }  # fmt: skip


@dataclasses.dataclass
class Found:
    """Measures and evidence of one part of the audit."""

    measures: list[Measure] = dataclasses.field(default_factory=list)
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Plain values for the page, by section."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sentences about how it was measured."""
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)
    """Reason by name of what could not be measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "measures": {measure.name: measure.to_dict() for measure in self.measures},
            "evidence": self.evidence, "notes": self.notes, "not_measured": self.not_measured,
        }  # fmt: skip


class Part(Protocol):
    """A part of the audit. The base runs first; what it leaves for the tuned model is kept on disk."""

    name: str

    def run_base(self, loaded: LoadedModel) -> None:
        """Measure the base."""

    def run_tuned(self, loaded: LoadedModel) -> None:
        """Measure the tuned model."""

    def result(self) -> Found:
        """Compare what was measured; needs no model."""
