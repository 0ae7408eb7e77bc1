"""The form most of the paper's tables have: a row per variant, a column per data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import scipy.stats

from balora.experiments.compare import Comparison, Group, summarise
from balora.experiments.compare.statistics import COVERAGE, Difference
from balora.experiments.compare.tables import cell_text, difference_text, markdown_table
from balora.experiments.reproduce.experiment import Study

LOWER_IS_BETTER = ("loss", "mse", "mae")
CAPTION = "Mean ± standard deviation over seeds; below it the difference to {baseline}, paired by seed, and its bootstrap interval."
_STAR = (
    "A star marks those that Student's interval, which knows how little so few numbers say, excludes too. Where many variants are "
    "compared, some will have one by chance."
)


def columns_table(made: Mapping[str, Comparison], studies: Sequence[Study], corner: str = "method") -> str:
    """One row per variant, one column per study: the study's score, and below it the difference to its baseline.

    Args:
        made: The comparisons by study; those not made yet have empty cells.
        studies: In the order of the columns.
        corner: What the rows are.
    """
    names = list(dict.fromkeys(variant.name for study in studies for variant in study.variants))
    found = {key: {group.variant: group for group in comparison.groups} for key, comparison in made.items()}
    lines = [[name, *(_cell(found.get(s.name, {}).get(name), s.score) for s in studies)] for name in names]
    return markdown_table([corner, *(f"{study.title} ({study.score})" for study in studies)], lines)


def verdict(made: Comparison, score: str, baseline: str | None = None, among: Sequence[str] = ()) -> str:
    """Which variants differ from a baseline beyond their interval, in words made from the numbers.

    Args:
        made: The comparison.
        score: By which; a loss is better when smaller.
        baseline: The variant compared with, that of the comparison by default.
        among: Only these variants; all by default.

    Returns:
        ``against X: better: A (+0.1000*), B (+0.0500); worse: none; not told apart: C.`` Better and worse are beyond the bootstrap
        interval, with a star (written for Markdown) beyond Student's too. Variants with one pair follow in a list of their own.
    """
    baseline = baseline or made.baseline
    groups = made.groups if baseline == made.baseline else summarise(made.rows, [score], baseline)
    sign = -1 if is_loss(score) else 1
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    single: list[str] = []
    for group in groups:
        gap = group.differences.get(score)
        if gap is None or (among and group.variant not in among):
            continue
        if gap.low is None or gap.high is None:
            single.append(f"`{group.variant}`" if "," in group.variant else group.variant)
            continue
        low, high = sorted((sign * gap.low, sign * gap.high))
        name = f"`{group.variant}`" if "," in group.variant else group.variant
        words = f"{name} ({gap.mean:+.4f}{_star(gap)})"
        if low > 0:
            better.append(words)
        elif high < 0:
            worse.append(words)
        else:
            unclear.append(name)
    lists = [("better", better), ("worse", worse), ("not told apart", unclear)]
    lists += [("only one pair, so no interval", single)] if single else []
    return f"against {baseline}: " + "; ".join(f"{word}: {', '.join(names) or 'none'}" for word, names in lists) + "."


def caution(made: Mapping[str, Comparison]) -> str:
    """How far the intervals of a page can be trusted, by the fewest pairs that any of them has."""
    groups = [group for comparison in made.values() for group in comparison.groups]
    pairs = min((gap.pairs for group in groups for gap in group.differences.values() if gap.pairs > 1), default=1)
    if pairs < 2:
        return "One seed has no interval: what differs by chance cannot be told here."
    return (
        f"With {pairs} seeds a bootstrap interval is too narrow: under pure chance one in {round(1 / by_chance(pairs))} would "
        f"exclude 0. {_STAR}"
    )


def by_chance(pairs: int) -> float:
    """How often the bootstrap's 95 % interval of a mean difference excludes 0 where there is none, for normal differences.

    The interval is the mean ± 1.96 times the standard error that divides by n in place of n - 1; Student's t knows how often that
    is passed. Up to three pairs, the interval spans the values themselves, so that it excludes 0 where all have one sign: 1 / 2
    with two, 1 / 4 with three, for any symmetric distribution.

    Args:
        pairs: n, at least 2.

    Returns:
        A probability.

    Example:
        >>> [round(by_chance(pairs), 2) for pairs in (2, 3, 10)]
        [0.5, 0.25, 0.1]
    """
    if pairs <= 3:  # a resample of one value alone has a chance of at least 1 in 27, above the tail of 1 in 40
        return 2.0 ** (1 - pairs)
    reach = scipy.stats.norm.ppf((1 + COVERAGE) / 2) * math.sqrt((pairs - 1) / pairs)
    return float(2 * scipy.stats.t.sf(reach, pairs - 1))


def is_loss(score: str) -> bool:
    """Whether a score is better when it is smaller.

    Example:
        >>> is_loss("loss"), is_loss("accuracy")
        (True, False)
    """
    return score.rsplit("/", 1)[-1].rsplit("_", 1)[-1] in LOWER_IS_BETTER


def _cell(group: Group | None, score: str) -> str:
    if group is None:
        return ""
    text = cell_text(group.scores.get(score), group.finished)
    return f"{text}<br>{difference_text(group.differences[score])}" if score in group.differences else text


def _star(gap: Difference) -> str:
    low, high = gap.t_interval or (0.0, 0.0)
    return r"\*" if low * high > 0 else ""  # bare, two of them would set what is between in italics
