"""Statistics over seeds: mean, standard deviation, and the difference to a baseline, paired by seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from balora.experiments.compare.rows import Row

RESAMPLES = 10_000
COVERAGE = 0.95


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean over seeds with its sample standard deviation (n - 1; None for one value)."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> MeanStd | None:
        """Average the finite values; return None if there are none.

        Example:
            >>> MeanStd.of([1.0, 3.0, None])
            MeanStd(mean=2.0, deviation=1.4142135623730951, count=2)
        """
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if not finite:
            return None
        deviation = statistics.stdev(finite) if len(finite) > 1 else None
        return cls(statistics.fmean(finite), deviation, len(finite))


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of the differences to the baseline, paired by seed.

    ``low`` and ``high`` are the ends of its bootstrap interval; ``deviation`` is the sample standard deviation of the differences.
    All three are None for one pair.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    deviation: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference | None:
        """Average the differences of all pairs; return None if there are none."""
        if len(values) < 2:
            return cls(values[0], None, None, 1) if values else None
        return cls(statistics.fmean(values), *bootstrap(values), len(values), statistics.stdev(values))

    @property
    def t_interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean difference, wide for few pairs; None for one pair."""
        return None if self.deviation is None else t_interval(self.mean, self.deviation, self.pairs)


def t_interval(mean: float, deviation: float, count: int) -> tuple[float, float]:
    """Return Student's 95 % interval of a mean, from the sample standard deviation of at least two values."""
    import scipy.stats  # slow to import, and few tables need it

    reach = float(scipy.stats.t.ppf((1 + COVERAGE) / 2, count - 1)) * deviation / math.sqrt(count)
    return mean - reach, mean + reach


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one variant with one combination of varied values, over all seeds: a line of the table."""

    variant: str
    axes: dict[str, Any]
    planned: int
    finished: int
    scores: dict[str, MeanStd]
    differences: dict[str, Difference]
    """Differences to the baseline by score; empty for the baseline itself and if no seed has both."""
    seconds: MeanStd | None
    peak_memory_mib: MeanStd | None
    trainable: MeanStd | None


def summarise(rows: Sequence[Row], scores: Sequence[str], baseline: str | None = None) -> list[Group]:
    """Average ``scores`` over the seeds of each variant and take differences to the baseline, in the order of the rows.

    The baseline is compared at the same varied values, except for keys that it ignores.
    """
    members: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        members.setdefault((row.variant, repr(row.axes)), []).append(row)
    groups = []
    for group in members.values():
        first, finished = group[0], [row for row in group if row.status == "finished"]
        partners = {} if first.variant == baseline else _baseline_runs(rows, first.axes, baseline)
        means = {name: MeanStd.of([row.scores.get(name) for row in finished]) for name in scores}
        differences = {name: Difference.of(_paired_differences(finished, partners, name)) for name in scores}
        groups.append(
            Group(
                variant=first.variant,
                axes=first.axes,
                planned=len(group),
                finished=len(finished),
                scores={name: mean for name, mean in means.items() if mean is not None},
                differences={name: difference for name, difference in differences.items() if difference is not None},
                seconds=MeanStd.of([row.seconds for row in finished]),
                peak_memory_mib=MeanStd.of([row.peak_memory_mib for row in finished]),
                trainable=MeanStd.of([row.trainable for row in finished]),
            )
        )
    return groups


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, coverage: float = COVERAGE) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a mean of at least two values, with a fixed seed.

    With few values it is too narrow: three values have only ten different resamples, and the true coverage of a 95 % interval is
    near 75 %.

    Example:
        >>> bootstrap([1.0, 1.0, 1.0])
        (1.0, 1.0)

    Reference: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    import numpy as np

    drawn_RN = np.random.default_rng(0).choice(np.asarray(values, dtype=np.float64), size=(resamples, len(values)))
    tail = (1 - coverage) / 2
    low, high = np.quantile(drawn_RN.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _baseline_runs(rows: Sequence[Row], axes: Mapping[str, Any], baseline: str | None) -> dict[int, Row]:
    """Return the baseline's finished runs by seed, at the same value of every varied key that the baseline has."""
    finished = [row for row in rows if row.variant == baseline and row.status == "finished"]
    return {row.seed: row for row in finished if all(k in axes and axes[k] == v for k, v in row.axes.items())}


def _paired_differences(rows: Sequence[Row], partners: Mapping[int, Row], score: str) -> list[float]:
    pairs = [(row.scores.get(score), partners[row.seed].scores.get(score)) for row in rows if row.seed in partners]
    differences = [own - other for own, other in pairs if own is not None and other is not None]
    return [difference for difference in differences if math.isfinite(difference)]
