"""Sentences about differences: which variants are better, and how far an interval can be trusted."""

import math
from collections.abc import Iterable, Sequence

import scipy.stats

from balora.experiments.compare import Comparison, summarise
from balora.experiments.compare.statistics import COVERAGE, Difference

LOWER_IS_BETTER = ("loss", "mse", "mae")


def verdict(comparison: Comparison, score: str, baseline: str | None = None, among: Sequence[str] = ()) -> str:
    """Say which variants differ from a baseline by more than their bootstrap interval.

    Args:
        comparison: Comparison with the runs.
        score: Name of the score; a loss is better when smaller.
        baseline: Variant to compare with; the comparison's baseline by default.
        among: Variants to mention; all by default.

    Returns:
        ``compared with X: better: A (+0.1000*), B (+0.0500); worse: none; no clear difference: C.`` A star (escaped for Markdown)
        marks a difference with a Student interval that excludes 0 too. Variants with a single pair are listed separately.
    """
    baseline = baseline or comparison.baseline
    groups = comparison.groups if baseline == comparison.baseline else summarise(comparison.rows, [score], baseline)
    sign = -1 if is_loss(score) else 1
    lists: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": [], "only one pair": []}
    for group in groups:
        difference = group.differences.get(score)
        if difference is None or (among and group.variant not in among):
            continue
        name, direction = quoted(group.variant), difference_sign(difference)
        label = {None: "only one pair", 0: "no clear difference", sign: "better", -sign: "worse"}[direction]
        low, high = difference.t_interval or (0.0, 0.0)
        star = r"\*" if low * high > 0 else ""  # escaped, because Markdown sets text between two bare stars in italics
        lists[label].append(f"{name} ({difference.mean:+.4f}{star})" if direction else name)
    if not lists["only one pair"]:
        del lists["only one pair"]
    statements = "; ".join(f"{label}: {', '.join(names) or 'none'}" for label, names in lists.items())
    return f"compared with {quoted(baseline or 'nothing')}: {statements}."


def difference_sign(difference: Difference) -> int | None:
    """Return 1 or -1 if the bootstrap interval lies above or below 0, 0 if it contains 0, None without an interval."""
    if difference.low is None or difference.high is None:
        return None
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def interval_caution(comparisons: Iterable[Comparison]) -> str:
    """Say how far the intervals of a page can be trusted. The interval with the fewest pairs decides."""
    groups = [group for comparison in comparisons for group in comparison.groups]
    pairs = min((gap.pairs for group in groups for gap in group.differences.values() if gap.pairs > 1), default=1)
    if pairs < 2:
        return "One seed has no interval, so a difference may be chance. Run more seeds (`--seeds`) before you rely on one."
    one_in = round(1 / false_positive_rate(pairs))
    return (
        f"With {pairs} seeds the bootstrap interval is too narrow: without any true difference, one interval in {one_in} would "
        "still exclude 0. A star marks a difference whose Student interval, which is wider with few seeds, excludes 0 too. With "
        "many variants, expect some stars by chance. Run more seeds (`--seeds`) before you rely on a difference."
    )


def false_positive_rate(pairs: int) -> float:
    """Return the probability that the 95 % bootstrap interval excludes 0 although normal differences have mean 0.

    The interval is the mean ± 1.96 standard errors, where the standard error divides by n in place of n - 1; Student's t gives the
    probability that 0 is outside. With two or three pairs the interval is the range of the values. It excludes 0 if all have the
    same sign: with probability 1 / 2 for two and 1 / 4 for three, for any symmetric distribution.

    Args:
        pairs: Number of pairs n, at least 2.

    Example:
        >>> [round(false_positive_rate(pairs), 2) for pairs in (2, 3, 10)]
        [0.5, 0.25, 0.1]
    """
    if pairs <= 3:  # a resample of one value alone has a chance of at least 1 in 27, above the tail of 1 in 40
        return 2.0 ** (1 - pairs)
    reach = scipy.stats.norm.ppf((1 + COVERAGE) / 2) * math.sqrt((pairs - 1) / pairs)
    return float(2 * scipy.stats.t.sf(reach, pairs - 1))


def is_loss(score: str) -> bool:
    """Return True if a smaller score is better.

    Example:
        >>> is_loss("loss"), is_loss("accuracy")
        (True, False)
    """
    return score.rsplit("/", 1)[-1].rsplit("_", 1)[-1] in LOWER_IS_BETTER


def quoted(variant: str) -> str:
    """Return a variant's name, formatted as code if it has a comma or a colon, because the sentence has those too."""
    return f"`{variant}`" if set(variant) & set(",:") else variant
