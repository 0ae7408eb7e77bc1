"""Last correction of a run with a budget: the part of its change at which the measured drift is the budget.

The drift is 0 without the change and grows with the part of it that is kept, near 0 with its square.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

TOLERANCE = 0.01
"""Relative distance from the budget at which the search ends."""
MOST_TRIALS = 8
"""Largest number of measurements; two or three are usual."""


@dataclasses.dataclass(frozen=True)
class Drift:
    """A measured drift: its mean in nats per token, and the standard error of the mean over the sequences."""

    mean: float
    error: float

    @classmethod
    def of_groups(cls, sums: Sequence[float], counts: Sequence[float]) -> Drift:
        """Return the mean over all positions from the sums and the numbers of positions of groups of sequences.

        The error is that of a ratio of sums, from the spread of the groups; NaN for a single group.

        Example:
            >>> Drift.of_groups([1.0, 3.0], [2.0, 2.0])
            Drift(mean=1.0, error=0.5)
        """
        total, groups = sum(counts), len(sums)
        mean = sum(sums) / total if total else 0.0
        if groups < 2 or not total:
            return cls(mean, math.nan)
        residuals = sum((value - mean * count) ** 2 for value, count in zip(sums, counts, strict=True))
        return cls(mean, math.sqrt(residuals * groups / (groups - 1)) / total)


def part_within(budget: float, whole: float, measure: Callable[[float], float]) -> tuple[float, float]:
    """Find the largest part a of a change whose drift is within a budget.

    Args:
        budget: Drift that may be reached.
        whole: Drift of the whole change, above the budget.
        measure: Returns the drift at a part in (0, 1).

    Returns:
        (a, its drift). The drift is above the budget by at most 1 %.

    Example:
        >>> part, drift = part_within(0.09, 0.36, lambda a: 0.36 * a**2)
        >>> round(part, 3), round(drift, 3)
        (0.5, 0.09)
    """
    low, high, drift_low, drift_high = 0.0, 1.0, 0.0, whole
    for _ in range(MOST_TRIALS):
        # Straight between the square roots, in which a drift that grows with the square is a line.
        roots = [math.sqrt(max(value, 0.0)) for value in (budget, drift_low, drift_high)]
        part = low + (high - low) * (roots[0] - roots[1]) / max(roots[2] - roots[1], 1e-12)
        part = min(max(part, low + 0.05 * (high - low)), high - 0.05 * (high - low))
        drift = measure(part)
        if abs(drift / budget - 1.0) <= TOLERANCE:
            return part, drift
        if drift > budget:
            high, drift_high = part, drift
        else:
            low, drift_low = part, drift
    return low, drift_low
