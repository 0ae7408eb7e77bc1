"""Data of a figure: points with their spread over seeds, grouped into panels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol


class Estimate(Protocol):
    """Mean over seeds with its standard deviation."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one seed."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Mean over seeds at one place on the x axis."""

    x: float
    mean: float
    deviation: float | None = None
    """Sample standard deviation; None for one seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Coordinate system with one line per series."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    """Points by method, in the order of the legend."""
    ticks: Sequence[str] | None = None
    """Names of x = 0, 1, 2, … when x has no numbers."""
    level: tuple[str, Estimate] | None = None
    """Name and value of a reference, drawn as a horizontal dashed line."""
