"""`balora evaluate`: a model, some tasks, a folder of results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.lock import locked
from balora.errors import BALoraError, suggest
from balora.evaluation.context import Session
from balora.evaluation.model_under_test import ModelUnderTest
from balora.evaluation.options import EvaluationOptions
from balora.evaluation.registry import GROUPS, Task, find_tasks
from balora.evaluation.results import Record


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came of it."""

    folder: Path
    results: dict[str, Record]
    """By task: ``scores``, ``samples`` and where they come from, as they were written."""

    @property
    def main_scores(self) -> dict[str, float | None]:
        """The one figure of every task."""
        return {name: result["scores"][result["scores"]["main"]] for name, result in self.results.items()}


def evaluate(
    model: str | Path,
    tasks: Sequence[str],
    *,
    output: str | Path | None = None,
    options: EvaluationOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Measure a model on tasks; where results are there already, go on from them.

    Args:
        model: A run's folder, a model's folder, a hub id, or ``reference`` for the data's own answers.
        tasks: Names, such as ``gsm8k`` or ``glue``.
        output: The folder of the results; default ``evaluation/`` in the run, or ``evaluation/MODEL``.
        options: Everything else.
        say: Takes lines for the user.

    Returns:
        Scores and samples; the same is in ``TASK.json`` in the folder.

    Raises:
        BALoraError: Bad input. What was done before stays.
    """
    options = options or EvaluationOptions()
    wanted = find_tasks(tasks)
    _check_places(options.data, wanted)
    subject = ModelUnderTest(str(model), options)
    folder = Path(output) if output is not None else subject.folder
    results: dict[str, Record] = {}
    with locked(folder, "Another process writes results"), Session(subject, options, folder, say) as session:
        for task in wanted:
            say(f"{task.name}: {task.summary}")
            started = time.monotonic()
            results[task.name] = task.evaluate(session)
            say(f"  {describe(task, results[task.name])}  ({time.monotonic() - started:.1f} s)")
    return Evaluation(folder, results)


def _check_places(places: Mapping[str, str], tasks: Sequence[Task]) -> None:
    """Refuse data for a task that is not evaluated: most likely its name is misspelt, and other data would be taken."""
    names = {task.name for task in tasks}
    names |= {name.removeprefix("lm_eval:") for name in names} | {name.removesuffix("_mismatched") for name in names}
    names |= {group for group, members in GROUPS.items() if names & set(members)}
    for name in places:
        if name not in names:
            raise BALoraError(
                f"Data were given for {name!r}, which is not among the tasks ({', '.join(sorted(names))}).{suggest(name, names)}"
            )


def describe(task: Task, result: Record) -> str:
    """The scores that are single numbers, in one line, the main one first."""
    scores: dict[str, Any] = result["scores"]
    main = scores["main"]
    rest = [name for name in scores if name not in (main, "main")]
    return "  ".join(f"{name} {shown(scores[name])}" for name in [main, *rest] if _is_number(scores[name]))


def shown(value: float | None) -> str:
    """A score for people."""
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


__all__ = ["Evaluation", "describe", "evaluate"]
