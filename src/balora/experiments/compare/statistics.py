"""Statistics over seeds and items: means, and differences to a baseline with intervals for all comparisons of a table."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from balora.experiments.compare.rows import Row

if TYPE_CHECKING:
    from balora.evaluation.significance.intervals import Basis, Estimate
    from balora.evaluation.significance.items import Items

ItemsOf = Callable[[Row], "Mapping[str, Items]"]
"""Function that returns the kept items of a run: those of its own evaluation under "", those of a task under its name."""


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean over seeds with its sample standard deviation (n - 1; None for one value)."""

    mean: float
    deviation: float | None
    count: int
    error: float | None = None
    """Standard error of the mean: over seeds and, if they were kept, items. None if nothing gives one."""

    @classmethod
    def of(cls, values: Sequence[float | None]) -> MeanStd | None:
        """Average the finite values; return None if there are none.

        Example:
            >>> MeanStd.of([1.0, 3.0, None])
            MeanStd(mean=2.0, deviation=1.4142135623730951, count=2, error=None)
        """
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if not finite:
            return None
        deviation = statistics.stdev(finite) if len(finite) > 1 else None
        return cls(statistics.fmean(finite), deviation, len(finite))


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of the differences to the baseline, paired by seed, with its interval.

    ``low`` and ``high`` are the ends of the 95 % interval, corrected for ``comparisons`` comparisons by Holm's method. They are
    None if nothing gives an error: one pair, or equal differences that are not 0.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    error: float | None = None
    """Standard error of the mean difference."""
    degrees: float | None = None
    """Degrees of freedom of the error."""
    p: float | None = None
    """Probability of such a difference if there is none, not corrected."""
    basis: Basis | None = None
    """Source of the error: other seeds on this test set, or other seeds and other items."""
    comparisons: int = 1
    name: str = ""
    """Name that tells the comparison from all others of a page; empty where it is not needed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference | None:
        """Average the differences of all pairs, with Student's interval over seeds; return None if there are none."""
        from balora.evaluation.significance.intervals import estimate

        return cls.from_estimate(values, estimate(values)) if values else None

    @classmethod
    def from_estimate(cls, values: Sequence[float], found: Estimate | None) -> Difference:
        """Return the difference with the interval of an estimate; an estimate of one seed is no statement about a method."""
        mean = statistics.fmean(values)
        if found is None or len(values) < 2:
            return cls(mean, None, None, len(values))
        return cls(mean, *found.interval(), len(values), found.error, found.degrees, found.p, found.basis)

    def interval(self, coverage: float) -> tuple[float, float] | None:
        """Return the interval of another coverage, not corrected; None if there is none."""
        from balora.evaluation.significance.intervals import Estimate

        if self.error is None or self.degrees is None or self.basis is None:
            return None
        return Estimate(self.mean, self.error, self.degrees, self.basis).interval(coverage)


def correct(differences: Sequence[Difference]) -> list[Difference]:
    """Correct the intervals of all comparisons of a table or page by Holm's method. Differences without an interval stay.

    Example:
        >>> alone, = correct([Difference.of([1.0, 2.0, 3.0])])
        >>> first, _ = correct([Difference.of([1.0, 2.0, 3.0]), Difference.of([0.0, 1.0, -1.0])])
        >>> alone.low > first.low, first.comparisons
        (True, 2)
    """
    from balora.evaluation.significance.intervals import holm_levels

    tested = [n for n, difference in enumerate(differences) if difference.p is not None]
    levels = dict(zip(tested, holm_levels([differences[n].p or 0.0 for n in tested]), strict=True))
    corrected = list(differences)
    for n, level in levels.items():
        low, high = differences[n].interval(1 - level) or (None, None)
        corrected[n] = dataclasses.replace(differences[n], low=low, high=high, comparisons=len(tested))
    return corrected


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


def summarise(
    rows: Sequence[Row], scores: Sequence[str], baseline: str | None = None, items: ItemsOf | None = None
) -> list[Group]:
    """Average ``scores`` over the seeds of each variant and take differences to the baseline, in the order of the rows.

    The baseline is compared at the same varied values, except for keys that it ignores. The intervals are corrected for all
    differences that are returned. With ``items``, errors cover items as well as seeds, where both models answered the same items.
    """
    members: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        members.setdefault((row.variant, repr(row.axes)), []).append(row)
    baseline_of = _baseline_runs(rows, baseline)
    groups = []
    for group in members.values():
        first, finished = group[0], [row for row in group if row.status == "finished"]
        partners = {} if first.variant == baseline else baseline_of(first.axes)
        means = {name: _mean(finished, name, items) for name in scores}
        differences = {name: difference_of(finished, partners, name, items) for name in scores}
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
    return correct_groups(groups)


def correct_groups(groups: Sequence[Group]) -> list[Group]:
    """Correct the intervals of all differences of some groups for their number."""
    corrected = iter(correct([difference for group in groups for difference in group.differences.values()]))
    return [
        dataclasses.replace(group, differences={name: next(corrected) for name in group.differences})
        for group in groups
    ]


def _baseline_runs(rows: Sequence[Row], baseline: str | None) -> Callable[[Mapping[str, Any]], dict[int, Row]]:
    """Return a function from varied values to the baseline's finished runs by seed, at the same value of every key it has.

    The runs are looked up by their values, because a search for each group would take a time that grows with the square of
    the number of runs.
    """
    found: dict[tuple[str, ...], dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row.variant == baseline and row.status == "finished":
            found.setdefault(tuple(row.axes), {}).setdefault(repr(list(row.axes.values())), {})[row.seed] = row

    def look_up(axes: Mapping[str, Any]) -> dict[int, Row]:
        runs: dict[int, Row] = {}
        for keys, by_values in found.items():
            if all(key in axes for key in keys):
                runs |= by_values.get(repr([axes[key] for key in keys]), {})
        return runs

    return look_up


def _mean(rows: Sequence[Row], score: str, items: ItemsOf | None) -> MeanStd | None:
    mean = MeanStd.of([row.scores.get(score) for row in rows])
    if mean is None:
        return None
    from balora.evaluation.significance.intervals import estimate

    own = [row for row in rows if math.isfinite(row.scores.get(score, math.nan))]
    kept, name = _items(own, score, items)
    found = estimate([row.scores[score] for row in own], kept, (), name)
    # An error of 0 (no answer is right, or all are) says only that the method cannot estimate it.
    return dataclasses.replace(mean, error=(found.error or None) if found else None)


def difference_of(
    rows: Sequence[Row], partners: Mapping[int, Row], score: str, items: ItemsOf | None
) -> Difference | None:
    """Return the mean difference of some rows to their partners, paired by seed; None if no pair has the score.

    Args:
        rows: Runs of one configuration.
        partners: Runs of the other configuration by seed.
        score: Name of the score.
        items: Reader of the runs' results by item; None for an error over seeds alone.
    """
    pairs = [
        (row, partners[row.seed])
        for row in rows
        if row.seed in partners and math.isfinite(_gap(row, partners[row.seed], score))
    ]
    if not pairs:
        return None
    from balora.evaluation.significance.intervals import estimate

    values = [_gap(own, other, score) for own, other in pairs]
    (kept, name), (base, _) = (_items([pair[side] for pair in pairs], score, items) for side in (0, 1))
    return Difference.from_estimate(values, estimate(values, kept, base, name))


def _gap(row: Row, partner: Row, score: str) -> float:
    return row.scores.get(score, math.nan) - partner.scores.get(score, math.nan)


def _items(rows: Sequence[Row], score: str, items: ItemsOf | None) -> tuple[list[Items], str]:
    """Return the kept items of some runs and the score's name among them; no items if a run lacks them."""
    task, _, name = score.rpartition("/")
    kept = [found.get(task) for found in map(items, rows)] if items else []
    return ([one for one in kept if one is not None] if None not in kept else []), name
