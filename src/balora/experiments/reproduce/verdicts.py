"""Sentences about differences: which variants are better than a baseline, and which cannot be told apart from it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from balora.experiments.compare import Comparison, Group, summarise
from balora.experiments.compare.statistics import Difference
from balora.experiments.compare.tables import explain_intervals, verdict_of

Correct = Callable[[Difference], Difference]
"""Function that returns a difference with its interval corrected for all comparisons of a page."""


def differences_to(
    comparison: Comparison, score: str, baseline: str | None = None, among: Sequence[str] = ()
) -> list[tuple[str, Difference]]:
    """Return the variants that have a difference to a baseline.

    Args:
        comparison: Comparison with the runs.
        score: Name of the score.
        baseline: Variant to compare with; the comparison's baseline by default.
        among: Variants to return; all by default.
    """
    baseline = baseline or comparison.baseline
    groups = comparison.groups
    if baseline != comparison.baseline:
        groups = summarise(comparison.rows, [score], baseline, comparison.items)
    return [
        (group.variant, named_difference(comparison, group, score, baseline))
        for group in groups
        if score in group.differences and (not among or group.variant in among)
    ]


def named_difference(comparison: Comparison, group: Group, score: str, baseline: str | None = None) -> Difference:
    """Return a group's difference in a score to a baseline (default: the comparison's), with a name of its own."""
    name = f"{id(comparison)} {group.variant} {group.axes} {score} {baseline or comparison.baseline}"
    return dataclasses.replace(group.differences[score], name=name)


def verdict(
    comparison: Comparison,
    score: str,
    baseline: str | None = None,
    among: Sequence[str] = (),
    correct: Correct = lambda difference: difference,
) -> str:
    """Say which variants differ from a baseline: their corrected interval excludes 0. A loss is better when smaller.

    ``correct`` applies the correction of the page; by default the intervals are those of the comparison. For the other arguments
    see `differences_to`.

    Returns:
        ``compared with X: better: A (+0.1000); worse: none; not told apart: C.`` Variants without an interval, such as those with
        a single seed, are listed separately.
    """
    lists: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": [], "no interval": []}
    for variant, difference in differences_to(comparison, score, baseline, among):
        word = verdict_of(correct(difference), score)
        told = f"{quoted(variant)} ({difference.mean:+.4f})"
        lists[word].append(told if word in ("better", "worse") else quoted(variant))
    if not lists["no interval"]:
        del lists["no interval"]
    statements = "; ".join(f"{label}: {', '.join(names) or 'none'}" for label, names in lists.items())
    return f"compared with {quoted(baseline or comparison.baseline or 'nothing')}: {statements}."


def difference_sign(difference: Difference) -> int | None:
    """Return 1 or -1 if the interval lies above or below 0, 0 if it contains 0, None without an interval."""
    if difference.low is None or difference.high is None:
        return None
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def interval_caution(differences: Iterable[Difference]) -> str:
    """Say what the intervals of a page cover."""
    return explain_intervals(list(differences), "page")


def quoted(variant: str) -> str:
    """Return a variant's name, formatted as code if it has a comma or a colon, because the sentence has those too."""
    return f"`{variant}`" if set(variant) & set(",:") else variant
