"""Simulations of two methods on a test set, to see how often an interval excludes 0.

    PYTHONPATH=src python tests/helpers/simulated_methods.py 2000

prints the table of docs/explanation/statistics.md.
"""

from __future__ import annotations

import sys

import numpy as np

from balora.evaluation.significance.intervals import estimate
from balora.evaluation.significance.items import Items

ITEMS, SEEDS = 1319, 3
NAMES = tuple(map(str, range(ITEMS)))


def two_methods(rng: np.random.Generator, gap: float, seed_spread: float) -> tuple[list[Items], list[Items]]:
    """Two methods on GSM8K's number of items: items differ in difficulty, methods in the items that they like, seeds at random."""
    difficulty, liked = rng.normal(0, 1.5, ITEMS), rng.normal(0, 0.5, ITEMS)

    def answers(extra) -> Items:
        right = difficulty + extra + rng.normal(0, seed_spread) + rng.normal(0, 1.0, ITEMS) > 0
        return Items.of_values(NAMES, {"accuracy": right})

    return [answers(gap + liked) for _ in range(SEEDS)], [answers(0.0) for _ in range(SEEDS)]


def found(repeats: int, gap: float, seed_spread: float) -> tuple[float, float, float]:
    """Share of simulations in which an interval excludes 0: over seeds and items, Student's over seeds, the range of the seeds.

    The range of three values is the interval of the percentile bootstrap over three seeds.
    """
    rng, crossed, student, bootstrap = np.random.default_rng(1), 0, 0, 0
    for _ in range(repeats):
        own, other = two_methods(rng, gap, seed_spread)
        values = [a.value("accuracy") - b.value("accuracy") for a, b in zip(own, other, strict=True)]
        both, seeds = estimate(values, own, other, "accuracy"), estimate(values)
        crossed += both is not None and both.p < 0.05
        student += seeds is not None and seeds.p < 0.05
        bootstrap += min(values) > 0 or max(values) < 0
    return crossed / repeats, student / repeats, bootstrap / repeats


if __name__ == "__main__":
    for spread in (0.0, 0.05, 0.1, 0.3):
        for effect in (0.0, 0.15):
            print(spread, effect, *(f"{share:.1%}" for share in found(int(sys.argv[1]), effect, spread)), flush=True)
