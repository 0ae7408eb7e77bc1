"""Statistics over seeds: mean, standard deviation, and the difference to a baseline, paired by seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from balora.experiments.compare.rows import Row

RESAMPLES = 10_000
COVERAGE = 0.95


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over the seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1); None for one value."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Over the values that are finite; None when there is none.

        Example:
            >>> Spread.of([1.0, 3.0, None])
            Spread(mean=2.0, deviation=1.4142135623730951, count=2)
        """
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if not finite:
            return None
        deviation = statistics.stdev(finite) if len(finite) > 1 else None
        return cls(statistics.fmean(finite), deviation, len(finite))


@dataclasses.dataclass(frozen=True)
class Difference:
    """A variant minus the baseline, seed by seed."""

    mean: float
    low: float | None
    """Ends of the bootstrap interval of the mean; None for one pair."""
    high: float | None
    pairs: int
    deviation: float | None = None
    """Standard deviation of the differences; None for one pair."""

    @property
    def student(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean difference, which few pairs make wide; None for one pair."""
        if self.deviation is None:
            return None
        reach = float(scipy.stats.t.ppf((1 + COVERAGE) / 2, self.pairs - 1)) * self.deviation / math.sqrt(self.pairs)
        return self.mean - reach, self.mean + reach


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one variant on one point of the axes: a line of the table."""

    variant: str
    axes: dict[str, Any]
    planned: int
    finished: int
    scores: dict[str, Spread]
    differences: dict[str, Difference]
    """To the baseline, by score; empty for the baseline itself and where no seed is shared."""
    seconds: Spread | None
    peak_memory_mib: Spread | None
    trainable: Spread | None


def summarise(rows: Sequence[Row], scores: Sequence[str], baseline: str | None = None) -> list[Group]:
    """Bring the rows of a comparison together, variant by variant in their order.

    Args:
        rows: Of all runs.
        scores: Names to report.
        baseline: The variant that differences are taken to. On each point of the axes it is compared with its own runs there;
            an axis that means nothing to the baseline is passed over.
    """
    members: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        members.setdefault((row.variant, repr(row.axes)), []).append(row)
    groups = []
    for group in members.values():
        first, done = group[0], [row for row in group if row.status == "finished"]
        against = _partners(rows, first, baseline)
        spreads = {name: Spread.of([row.scores.get(name) for row in done]) for name in scores}
        compared = {name: _difference(done, against, name) for name in scores if first.variant != baseline}
        groups.append(
            Group(
                variant=first.variant,
                axes=first.axes,
                planned=len(group),
                finished=len(done),
                scores={name: spread for name, spread in spreads.items() if spread is not None},
                differences={name: difference for name, difference in compared.items() if difference is not None},
                seconds=Spread.of([row.seconds for row in done]),
                peak_memory_mib=Spread.of([row.peak_memory_mib for row in done]),
                trainable=Spread.of([row.trainable for row in done]),
            )
        )
    return groups


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, coverage: float = COVERAGE) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, seeded.

    With few values it is narrow: of three there are only ten different resamples, and the true coverage is nearer 3/4 than 95 %.

    Args:
        values: At least two.
        resamples: How many draws with replacement.
        coverage: Of the interval.

    Returns:
        Its lower and upper end.

    Example:
        >>> bootstrap([1.0, 1.0, 1.0])
        (1.0, 1.0)

    Reference: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    drawn_RN = np.random.default_rng(0).choice(np.asarray(values, dtype=np.float64), size=(resamples, len(values)))
    tail = (1 - coverage) / 2
    low, high = np.quantile(drawn_RN.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _partners(rows: Sequence[Row], row: Row, baseline: str | None) -> dict[int, Row]:
    """The baseline's finished runs by seed, on the same point of the axes as far as the baseline has them."""
    return {
        other.seed: other
        for other in rows
        if other.variant == baseline and other.status == "finished" and _agrees(other.axes, row.axes)
    }


def _agrees(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(key in other and other[key] == value for key, value in own.items())


def _difference(done: Sequence[Row], against: Mapping[int, Row], name: str) -> Difference | None:
    values = []
    for row in done:
        partner = against.get(row.seed)
        ours, theirs = row.scores.get(name), partner.scores.get(name) if partner else None
        if ours is not None and theirs is not None and math.isfinite(ours - theirs):
            values.append(ours - theirs)
    if not values:
        return None
    if len(values) == 1:
        return Difference(values[0], None, None, 1)
    return Difference(statistics.fmean(values), *bootstrap(values), len(values), statistics.stdev(values))
