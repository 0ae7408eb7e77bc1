"""Comparisons without training: made-up rows, and an engine that trains in the test's own process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare import Comparison, Row, summarise, worker

ABOUT = {
    "provenance": {"time": "now", "versions": {}, "hardware": {"device": "cpu", "cores": 1}},
    "data_digests": [], "jobs": 1, "engine": "local", "seeds": [0, 1],
}  # fmt: skip


def made_up_row(variant: str, seed: int, scores: Mapping[str, float], **more: Any) -> Row:
    """A finished run."""
    given = {"run": f"{variant}-{seed}", "method": "pissa", "regularized": True, "axes": {}, "provenance": {}, **more}
    return Row(variant=variant, seed=seed, status="finished", scores=dict(scores), **given)


def made_up(
    values: Mapping[str, Sequence[float] | Mapping[str, Sequence[float]]],
    baseline: str | None,
    score: str = "accuracy",
) -> Comparison:
    """A comparison from the values of each variant's seeds: of one score, or by score."""
    by_score = {name: found if isinstance(found, Mapping) else {score: found} for name, found in values.items()}
    rows = [
        made_up_row(name, seed, {key: line[seed] for key, line in found.items()})
        for name, found in by_score.items()
        for seed in range(len(next(iter(found.values()))))
    ]
    return comparison_of(rows, baseline)


def comparison_of(rows: Sequence[Row], baseline: str | None, folder: Path | None = None) -> Comparison:
    scores = list(dict.fromkeys(name for row in rows for name in row.scores))
    groups = summarise(rows, scores, baseline)
    return Comparison(groups=groups, rows=rows, scores=scores, baseline=baseline, about=ABOUT, directory=folder)


class InProcessEngine:
    """The runs of `LocalEngine`, without the seconds of imports that a new process takes."""

    jobs = 1

    def __call__(
        self, tasks: Sequence[worker.Task], started: Callable[[worker.Task], None]
    ) -> Iterator[tuple[worker.Task, int]]:
        for task in tasks:
            started(task)
            with task.log.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                status = worker.run_task(task)
            yield task, status
