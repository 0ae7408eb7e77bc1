"""Evaluate a model on tasks and write the results into a directory."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balora.checkpoints.lock import locked
from balora.errors import BALoraError, suggest
from balora.evaluation.options import EvaluationOptions
from balora.evaluation.registry import GROUPS, LM_EVAL_PREFIX, find_tasks

if TYPE_CHECKING:
    from balora.evaluation.results import Record


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation."""

    folder: Path
    """Directory of the result files."""
    results: dict[str, Record]
    """Content of each task's result file: ``scores``, ``samples`` and provenance, by task name."""

    @property
    def main_scores(self) -> dict[str, float | None]:
        """Main score of each task, by task name."""
        return {name: result["scores"][result["scores"]["main"]] for name, result in self.results.items()}


def evaluate(
    model: str | Path,
    tasks: Sequence[str],
    *,
    output: str | Path | None = None,
    options: EvaluationOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
    distributed: bool = False,
) -> Evaluation:
    """Evaluate a model on tasks. Samples that the output directory already has are kept, not computed again.

    Args:
        model: Run directory, model directory, hub id, or ``reference`` for the reference answers of the data.
        tasks: Names of tasks or groups, such as ``gsm8k`` or ``glue``.
        output: Directory for the results. Default: ``evaluation/`` in the run directory, or ``evaluation/MODEL``.
        options: All other settings.
        say: Function that receives progress messages.
        distributed: Divide the rows among the processes that torchrun or another launcher has started; all must call this
            function. The first process scores the answers and writes the results.

    Returns:
        Scores and samples of every task. ``TASK.json`` in the output directory has the same content.

    Raises:
        BALoraError: The model, a task, the data or an option is invalid. Finished samples stay in the output directory.
    """
    # Imported here because both import torch, which the package must not do when it is imported.
    from balora.evaluation.context import EvaluationContext
    from balora.evaluation.model_under_test import ModelUnderTest
    from balora.training.distributed.joined import joined_processes

    options = options or EvaluationOptions()
    entries = find_tasks(tasks, task_code=options.task_code)
    _check_data_names(options.data, [entry.name for entry in entries])
    model_under_test = ModelUnderTest(str(model), options)
    folder = Path(output) if output is not None else model_under_test.folder
    results: dict[str, Record] = {}
    with contextlib.ExitStack() as stack:
        if distributed and stack.enter_context(joined_processes()) > 0:
            say = _silent  # the first process speaks for all, and has the lock
        else:
            stack.enter_context(locked(folder, "Another process writes results"))
        context = EvaluationContext(model_under_test, options, folder, say, stack)
        for entry in entries:
            say(f"{entry.name}: {entry.summary}")
            start_time = time.monotonic()
            results[entry.name] = entry.load(context).evaluate()
            say(f"  {format_scores(results[entry.name])}  ({time.monotonic() - start_time:.1f} s)")
    return Evaluation(folder, results)


def _silent(line: str) -> None:
    """Do nothing with a progress message."""


def _check_data_names(data: Mapping[str, str], tasks: Iterable[str]) -> None:
    """Refuse data for a task that is not evaluated: a misspelt name would silently evaluate the default data."""
    names = set(tasks)
    names |= {name.removeprefix(LM_EVAL_PREFIX) for name in names} | {n.removesuffix("_mismatched") for n in names}
    names |= {group for group, members in GROUPS.items() if names & set(members)}
    for name in data:
        if name not in names:
            raise BALoraError(
                f"Data were given for {name!r}, but it is not among the tasks to evaluate ({', '.join(sorted(names))})."
                f"{suggest(name, names)}"
            )


def format_scores(result: Record) -> str:
    """Return the scores that are single numbers as one line, the main score first."""
    scores: dict[str, Any] = result["scores"]
    parts = []
    for name in dict.fromkeys([scores["main"], *scores]):
        value = scores[name]
        if value is None:
            parts.append(f"{name} undefined")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            error = result.get("standard_errors", {}).get(name)
            suffix = "" if error is None else f" (se {error:.4f})"
            parts.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4f}{suffix}")
    return "  ".join(parts)
