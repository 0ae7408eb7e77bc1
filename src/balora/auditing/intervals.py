"""95 % intervals over documents or items: the bootstrap, and the jackknife for what is no mean.

Shapes: D documents, R resamples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; both ends are None if fewer than two documents give none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values; what is not finite is None."""
        return {
            name: None if value is None or not math.isfinite(value) else float(value)
            for name, value in (("value", self.value), ("low", self.low), ("high", self.high))
        }


class Bootstrap:
    """Resamples of documents with replacement, the same for every quantity, so that differences are paired.

    Args:
        documents: D.
        seed: Seed of the resamples.

    Example:
        >>> found = Bootstrap(4, seed=0).ratio([1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0])
        >>> found.value, found.low, found.high
        (0.5, 0.5, 0.5)
    """

    def __init__(self, documents: int, seed: int, resamples: int = RESAMPLES) -> None:
        self.documents = documents
        rng = np.random.default_rng([seed, documents])
        count = resamples if documents >= 2 else 0
        self.counts_RD: Floats = rng.multinomial(documents, [1 / max(documents, 1)] * documents, size=count).astype(
            float
        )

    def ratio(self, sums_D: ArrayLike, counts_D: ArrayLike) -> Interval:
        """Return Σ sums / Σ counts, such as a mean over tokens, with its interval over documents."""
        return self.of(lambda s, c: s / c, sums_D, counts_D)

    def mean(self, values_D: ArrayLike) -> Interval:
        """Return the mean over documents."""
        values = np.asarray(values_D, dtype=float)
        return self.ratio(values, np.ones_like(values))

    def of(self, function: Callable[..., Any], *sums: ArrayLike) -> Interval:
        """Return a smooth function of sums over documents; it must accept arrays of R values."""
        columns = [np.asarray(column, dtype=float) for column in sums]
        with np.errstate(all="ignore"):
            value = float(function(*(column.sum() for column in columns)))
            if not len(self.counts_RD):
                return Interval(value)
            return percentile_interval(value, np.asarray(function(*(self.counts_RD @ column for column in columns))))

    def quantile(self, values: ArrayLike, document: ArrayLike, share: float, resamples: int = 200) -> Interval:
        """Return a quantile over tokens; ``document`` is the document of each token."""
        values, document = np.asarray(values, dtype=float), np.asarray(document)
        if not len(values):
            return Interval(None)
        order = np.argsort(values, kind="stable")
        ordered, owner = values[order], document[order]
        value = ordered[_position(np.ones(len(ordered)), share)]
        found = [ordered[_position(counts_D[owner], share)] for counts_D in self.counts_RD[:resamples]]
        return percentile_interval(float(value), np.asarray(found)) if found else Interval(float(value))


def jackknife_interval(value: float, left_out: Sequence[float]) -> Interval:
    """Return the interval of a statistic from its values without each document, by Student's t."""
    count = len(left_out)
    if count < 2:
        return Interval(value)
    found = np.asarray(left_out, dtype=float)
    error = math.sqrt((count - 1) / count * float(((found - found.mean()) ** 2).sum()))
    half = float(student_t.ppf(0.975, count - 1)) * error
    return Interval(value, value - half, value + half)


def split_groups(documents: int, most: int = 20) -> list[list[int]]:
    """Divide documents into at most ``most`` interleaved groups."""
    count = min(documents, most)
    return [list(range(first, documents, count)) for first in range(count)]


def _position(weights: Floats, share: float) -> int:
    """Return the index at which the sum of ordered weights first reaches a share of the whole."""
    sums = np.cumsum(weights)
    return int(min(np.searchsorted(sums, share * sums[-1] - 1e-9), len(weights) - 1))


def percentile_interval(value: float, found: Floats) -> Interval:
    """Return a value with the middle 95 % of its resamples."""
    found = found[np.isfinite(found)]
    if not len(found):
        return Interval(value)
    low, high = np.percentile(found, [2.5, 97.5])
    # The value itself is never outside: rounding of a constant must not exclude it.
    return Interval(value, min(float(low), value), max(float(high), value))
