"""Compare finished evaluations of two methods, item by item, from their result files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.results import Record
from balora.evaluation.significance.intervals import COVERAGE, Estimate, estimate, holm_levels, mcnemar
from balora.evaluation.significance.items import Items, items_of_result
from balora.files import read_json

_MUST_AGREE = ("data", "prompting", "generation", "code_prompt", "judge", "judge prompts")
"""Parts of a journal's identity without which two scores are no comparison of models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """Difference of two methods in one score of one task."""

    task: str
    score: str
    own: tuple[float, ...]
    """Score of each model of the first method."""
    other: tuple[float, ...]
    items: int
    difference: Estimate
    low: float
    high: float
    """Ends of the 95 % interval, corrected for all tasks of the comparison by Holm's method."""
    mcnemar: tuple[int, int, float] | None
    """Items that only the first or only the second model has right, and p; for one pair of models and a share of right items."""

    @property
    def verdict(self) -> str:
        """Verdict about the first method: ``higher``, ``lower`` or ``not told apart``."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not told apart"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {**dataclasses.asdict(self), "p": self.difference.p, "verdict": self.verdict}


def compare_evaluations(
    own: Sequence[str | Path], other: Sequence[str | Path], tasks: Sequence[str] = ()
) -> list[TaskComparison]:
    """Compare the main scores of two methods on every task that all of their evaluations have.

    Args:
        own: Evaluations of the first method, one for each seed: run directories, or directories of results.
        other: Evaluations of the second method, in the order of the same seeds.
        tasks: Tasks to compare; all common ones by default.

    Returns:
        A comparison for each task, with intervals corrected for their number.

    Raises:
        BALoraError: An evaluation is missing or unfinished, there is no common task, or the evaluations differ in their rows,
            prompts or generation settings.
    """
    if len(own) != len(other):
        raise BALoraError(
            f"{len(own)} evaluations cannot be paired with {len(other)}. Name one evaluation for each seed on both sides, in the "
            "same order."
        )
    sides = [[_results(Path(path)) for path in paths] for paths in (own, other)]
    every = [results for side in sides for results in side]
    common = [name for name in every[0] if all(name in results for results in every)]
    chosen = list(tasks) or common
    if missing := [name for name in chosen if name not in common]:
        raise BALoraError(
            f"Not every evaluation has the task {missing[0]}. They have {', '.join(common) or 'none'} in common."
        )
    if not chosen:
        raise BALoraError("The evaluations have no task in common. Evaluate both on the same tasks first.")
    found = [_compare(name, *([results[name] for results in side] for side in sides)) for name in chosen]
    levels = holm_levels([one.difference.p for one in found])
    ends = [one.difference.interval(1 - level) for one, level in zip(found, levels, strict=True)]
    return [dataclasses.replace(one, low=low, high=high) for one, (low, high) in zip(found, ends, strict=True)]


def _results(path: Path) -> dict[str, Record]:
    """Read the result files of a run directory or a directory of results."""
    directory = path / "evaluation" if (path / "evaluation").is_dir() else path
    if not directory.is_dir():
        raise BALoraError(f"There is no directory {path}. Give a run directory, or a directory of results.")
    found = {}
    for file in sorted(directory.glob("*.json")):
        content = read_json(file, "Evaluate the model again.")
        if isinstance(content, dict) and {"task", "scores", "samples"} <= content.keys():
            found[str(content["task"])] = content
    if not found:
        raise BALoraError(f"{directory} has no finished evaluation. Run `balora evaluate` on this model first.")
    return found


def _compare(task: str, own: Sequence[Record], other: Sequence[Record]) -> TaskComparison:
    """Compare one task; the ends of the interval are those of this comparison alone."""
    first = own[0]
    for result in (*own, *other):
        changed = [key for key in _MUST_AGREE if _identity(result).get(key) != _identity(first).get(key)]
        if changed:
            raise BALoraError(
                f"The evaluations on {task} differ in {', '.join(changed)}, so their scores are not comparable. Evaluate both in "
                "the same way."
            )
    score = str(first["scores"]["main"])
    items: list[list[Items]] = []
    for side in (own, other):
        found = [items_of_result(result) for result in side]
        kept = [one for one in found if one is not None and score in one.scores]
        if len(kept) < len(side):
            raise BALoraError(f"The results of {task} have no {score} by item, so the evaluations cannot be compared.")
        items.append(kept)
    if any(one.ids != items[0][0].ids for side in items for one in side):
        raise BALoraError(
            f"The evaluations on {task} have other rows, perhaps by another --limit. Evaluate both on the same."
        )
    values = [[float(result["scores"][score]) for result in side] for side in (own, other)]
    gaps = [a - b for a, b in zip(*values, strict=True)]
    difference = estimate(gaps, items[0], items[1], score)
    if difference is None:
        raise BALoraError(f"{task} has too few rows for an interval. Evaluate more rows.")
    low, high = difference.interval(COVERAGE)
    right = [side[0].binary.get(score) for side in items]
    pair = None
    if len(own) == 1 and right[0] is not None and right[1] is not None:
        pair = mcnemar(right[0].tolist(), right[1].tolist())
    return TaskComparison(
        task=task, score=score, own=tuple(values[0]), other=tuple(values[1]), items=len(items[0][0].ids),
        difference=difference, low=low, high=high, mcnemar=pair,
    )  # fmt: skip


def _identity(result: Mapping[str, Any]) -> Mapping[str, Any]:
    identity: Mapping[str, Any] = result.get("identity") or {}
    return identity


def lines(comparisons: Sequence[TaskComparison]) -> list[str]:
    """Format comparisons for a terminal, with what they cover."""
    header = ["task", "score", "first", "second", "difference", "95% interval", "", "p"]
    table = [header]
    for one in comparisons:
        own, other = (sum(side) / len(side) for side in (one.own, one.other))
        interval = f"[{one.low:+.4f}, {one.high:+.4f}]"
        gap = f"{one.difference.mean:+.4f} (se {one.difference.error:.4f})"
        table.append(
            [one.task, one.score, f"{own:.4f}", f"{other:.4f}", gap, interval, one.verdict, f"{one.difference.p:.3g}"]
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    for one in comparisons:
        if one.mcnemar is not None:
            gained, lost, p = one.mcnemar
            differing = f"only the first is right on {gained}, only the second on {lost} of {one.items}"
            text.append(f"{one.task}: {differing}; McNemar's p {p:.3g}.")
    seeds, count = len(comparisons[0].own), len(comparisons)
    covers = (
        "These two models, on items like those of the test set. Other seeds of the same methods may differ by more."
        if seeds == 1
        else f"Other seeds ({seeds} were compared) and other items like those of the test set."
    )
    plural = "" if count == 1 else "s"
    return [*text, f"The intervals are corrected for {count} comparison{plural} (Holm). They cover: {covers}"]


def to_json(comparisons: Sequence[TaskComparison]) -> str:
    """Return the comparisons as JSON."""
    return json.dumps([one.to_dict() for one in comparisons], indent=1) + "\n"
