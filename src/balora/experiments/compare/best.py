"""The best configuration by each score, and the configurations that are not told apart from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from balora.experiments.compare.plan import configuration_label
from balora.experiments.compare.rows import TRAIN_LOSS, Row
from balora.experiments.compare.statistics import Group, difference_of
from balora.experiments.compare.tables import Comparison, is_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The best mean of a score, and what the other configurations are to it."""

    score: str
    group: int
    """Index of the best configuration among the comparison's groups."""
    open: tuple[int, ...]
    """Indices of the configurations that are not told apart from the best: the interval of the difference contains 0, or no
    interval can be had."""
    worse: tuple[int, ...]
    """Indices of the configurations whose difference to the best excludes 0."""
    comparisons: int
    """Number of comparisons that the intervals are corrected for."""


def find_best(comparison: Comparison) -> dict[str, Best]:
    """Find the best configuration by each score that at least two configurations have; the training loss is no such score.

    The best is chosen by looking at the results, so every pair of configurations might have been the one that is compared. The
    intervals are therefore corrected for all pairs and all scores of the table (Bonferroni's method).
    """
    from balora.evaluation.significance.intervals import COVERAGE  # imports scipy

    groups = comparison.groups
    have = {
        score: [n for n, group in enumerate(groups) if score in group.scores]
        for score in comparison.scores
        if score != TRAIN_LOSS
    }
    have = {score: found for score, found in have.items() if len(found) > 1}
    comparisons = sum(len(found) * (len(found) - 1) // 2 for found in have.values())
    members = {n: _members(comparison.rows, group) for n, group in enumerate(groups)}
    result = {}
    for score, found in have.items():
        sign = -1.0 if is_loss(score) else 1.0
        best = max(found, key=lambda n: sign * groups[n].scores[score].mean)
        partners = {row.seed: row for row in members[best]}
        worse = []
        for n in found:
            gap = None if n == best else difference_of(members[n], partners, score, comparison.items)
            interval = gap.interval(1 - (1 - COVERAGE) / comparisons) if gap is not None else None
            if interval is not None and not interval[0] <= 0 <= interval[1]:
                worse.append(n)
        unclear = tuple(n for n in found if n != best and n not in worse)
        result[score] = Best(score=score, group=best, open=unclear, worse=tuple(worse), comparisons=comparisons)
    return result


def describe_best(comparison: Comparison, best: Mapping[str, Best]) -> list[str]:
    """Say for each score which configuration is the best, and which are not told apart from it.

    Returns:
        One sentence for each score; empty if no score has a best.
    """
    return [_sentence(comparison.groups, found) for found in best.values()]


def explain_best(best: Mapping[str, Best]) -> str:
    """Explain the marks of the best in a table; empty if no score has a best."""
    if not best:
        return ""
    count = next(iter(best.values())).comparisons
    corrected = (
        "one comparison" if count == 1 else f"the {count} pairs of the table, because the best was chosen among them"
    )
    return f"Bold: the best mean. †: not told apart from the best, by a 95% interval corrected for {corrected}."


def _sentence(groups: Sequence[Group], best: Best) -> str:
    group = groups[best.group]
    text = f"{best.score}: the best is {_label(group)} with {group.scores[best.score].mean:,.4f}"
    if best.open:
        return f"{text}; not told apart from it: {', '.join(_label(groups[n]) for n in best.open)}."
    return f"{text}; it is told apart from every other."


def _label(group: Group) -> str:
    return configuration_label(group.variant, group.axes)


def _members(rows: Sequence[Row], group: Group) -> list[Row]:
    return [row for row in rows if row.status == "finished" and (row.variant, row.axes) == (group.variant, group.axes)]
