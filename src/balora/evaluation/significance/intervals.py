r"""Paired comparisons of two methods over seeds and items, and what a number of comparisons does to them.

A difference of two methods varies for two reasons: other seeds would give other models, and another test set would have other
items. The standard error has a part for each. The items' part comes from a bootstrap that draws the items once for both methods and
all seeds (crossed, because every model answers the same items). The seeds' part is the variance between the seeds' differences.
Resampling three seeds understates that variance by a third, so it is taken from its unbiased estimate instead, and what the
items alone explain of it is taken off once. The degrees of freedom follow Satterthwaite: near the number of seeds
minus 1 where seeds decide, larger where items do.

Shapes: S seeds, R resamples, F features of an item.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.stats

from balora.evaluation.significance.items import Items

RESAMPLES = 1000
COVERAGE = 0.95
_CHUNK = 100  # resamples drawn at once: 16 MB for 20,000 items
_SEED = 1319
_ROUNDING = 1e-9  # differences of equal scores differ by rounding
Basis = Literal["seeds", "items", "seeds and items"]
"""What the standard error covers: other seeds on this test set, other items for these models, or both."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its standard error."""

    mean: float
    error: float
    """Standard error."""
    degrees: float
    """Degrees of freedom of the error; infinite for a normal distribution."""
    basis: Basis

    def interval(self, coverage: float = COVERAGE) -> tuple[float, float]:
        """Return Student's interval.

        Example:
            >>> low, high = Estimate(1.0, 0.5, math.inf, "items").interval()
            >>> round(low, 2), round(high, 2)
            (0.02, 1.98)
        """
        reach = float(scipy.stats.t.ppf((1 + coverage) / 2, self.degrees)) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """Probability of a difference at least as large if there is none: the interval of coverage 1 - p ends at 0."""
        if self.error == 0.0:
            return 1.0 if self.mean == 0.0 else 0.0
        return float(2 * scipy.stats.t.sf(abs(self.mean) / self.error, self.degrees))


def estimate(
    values: Sequence[float], own: Sequence[Items] = (), other: Sequence[Items] = (), score: str = ""
) -> Estimate | None:
    """Estimate the mean of a score over seeds, or of the paired differences of two methods.

    Args:
        values: Score, or difference, of each seed.
        own: Items of each seed's model, in the order of ``values``. Empty, or with other names than the first: seeds alone.
        other: Items of the other method's models, for a difference.
        score: Name of the score among the items' scores.

    Returns:
        The mean with its standard error; None if nothing gives an error: one value without items, or equal values that are not 0,
        which say nothing about the next seed.

    Reference: Owen, The pigeonhole bootstrap, 2007; Satterthwaite, An approximate distribution of estimates of variance
    components, 1946.
    """
    if not values:
        return None
    mean, count = statistics.fmean(values), len(values)
    between = statistics.variance(values) / count if count > 1 else 0.0
    if between <= (_ROUNDING * mean) ** 2:
        between = 0.0
    if not comparable([*own, *other], score) or len(own) != count or (other and len(other) != count):
        if count < 2 or (between == 0.0 and mean != 0.0):
            return None
        return Estimate(mean, math.sqrt(between), count - 1, "seeds")
    of_mean, of_seed = _item_variances(own, other, score)
    items = len(own[0].ids)
    if count < 2:
        return Estimate(mean, math.sqrt(of_mean), items - 1, "items") if items > 1 else None
    # of_seed = (b + e) / N and of_mean = b / N + e / (S N), with the variances b of items and e of their interaction with seeds.
    interaction = max(0.0, (of_seed - of_mean) / (count - 1))
    variance = of_mean + max(0.0, between - interaction)
    if variance == 0.0:
        return Estimate(mean, 0.0, count - 1, "seeds and items") if mean == 0.0 else None
    degrees = variance**2 / (between**2 / (count - 1) + of_mean**2 / max(1, items - 1))
    return Estimate(mean, math.sqrt(variance), max(degrees, count - 1), "seeds and items")


def comparable(items: Sequence[Items], score: str) -> bool:
    """Return True if there are items, all with this score and with the same names in the same order."""
    return bool(items) and all(one.ids == items[0].ids and score in one.scores for one in items)


def _item_variances(own: Sequence[Items], other: Sequence[Items], score: str) -> tuple[float, float]:
    """Return the variances, over resampled items, of the mean over seeds, and of one seed (averaged over seeds)."""
    count = len(own[0].ids)
    drawn_RS = []
    for chunk in range(RESAMPLES // _CHUNK):
        times_RN = _times_drawn(count, chunk)
        columns = [items.scores[score](times_RN @ items.features_NF) for items in own]
        columns = [
            column - items.scores[score](times_RN @ items.features_NF)
            for column, items in zip(columns, other, strict=True)
        ] if other else columns  # fmt: skip
        drawn_RS.append(np.stack(columns, axis=-1))
    all_RS = np.concatenate(drawn_RS)
    all_RS = all_RS[np.isfinite(all_RS).all(-1)]  # a correlation of resampled items can be undefined
    if len(all_RS) < 2:
        return 0.0, 0.0
    scale = count / max(1, count - 1)  # the bootstrap divides by N in place of N - 1
    return float(all_RS.mean(-1).var(ddof=1)) * scale, float(all_RS.var(axis=0, ddof=1).mean()) * scale


@functools.lru_cache(maxsize=RESAMPLES // _CHUNK)
def _times_drawn(count: int, chunk: int) -> np.ndarray:
    """Return how often each of ``count`` items is drawn, in each resample of a chunk. The same for every comparison."""
    rng = np.random.default_rng((_SEED, chunk))
    return rng.multinomial(count, np.full(count, 1 / count), size=_CHUNK).astype(np.float64)


def mcnemar(own: Sequence[bool], other: Sequence[bool]) -> tuple[int, int, float]:
    """Compare two models, answer by answer, by McNemar's exact test.

    Returns:
        Number of items that only the first model has right, number that only the second has right, and p.

    Example:
        >>> mcnemar([True, True, True, False], [False, False, True, False])
        (2, 0, 0.5)

    Reference: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    gained = sum(bool(a) and not b for a, b in zip(own, other, strict=True))
    lost = sum(bool(b) and not a for a, b in zip(own, other, strict=True))
    p = float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return gained, lost, p


def holm_levels(p_values: Sequence[float], alpha: float = 1 - COVERAGE) -> list[float]:
    """Return the level of each comparison, such that its interval of coverage 1 - level excludes 0 exactly if Holm rejects it.

    The smallest p of m is compared with alpha / m, the next with alpha / (m - 1), and so on. From the first that is not below
    its level, all others get that level.

    Example:
        >>> [round(level, 4) for level in holm_levels([0.001, 0.2, 0.02])]
        [0.0167, 0.05, 0.025]
        >>> [round(level, 4) for level in holm_levels([0.03, 0.04])]
        [0.025, 0.025]

    Reference: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    levels, stopped = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        levels[index] = stopped or alpha / (len(p_values) - rank)
        if not p_values[index] < levels[index]:
            stopped = levels[index]
    return levels


def seeds_needed(effect: float, deviation: float, *, power: float = 0.8, comparisons: int = 1, most: int = 1000) -> str:
    """Return the number of seeds at which a paired test over seeds finds an effect with this power, or that it is above ``most``.

    Args:
        effect: True mean difference, above 0.
        deviation: Standard deviation of the differences over seeds.
        power: Probability that the interval excludes 0.
        comparisons: Number of comparisons that the level is divided by (Bonferroni, Holm's first step).
        most: Largest number that is tried.

    Example:
        >>> seeds_needed(1.0, 1.0), seeds_needed(1.0, 1.0, comparisons=10)
        ('10', '18')

    Reference: Cohen, Statistical power analysis for the behavioral sciences, 1988, chapter 2 (noncentral t).
    """
    for count in range(2, most + 1):
        critical = scipy.stats.t.ppf(1 - (1 - COVERAGE) / (2 * comparisons), count - 1)
        shift = effect * math.sqrt(count) / deviation if deviation > 0 else math.inf
        if math.isinf(shift) or scipy.stats.nct.sf(critical, count - 1, shift) >= power:
            return str(count)
    return f"more than {most:,}"
