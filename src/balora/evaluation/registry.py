"""Every task by name, and what a name such as ``glue`` stands for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

from balora.errors import BALoraError, suggest
from balora.evaluation.context import Session
from balora.evaluation.results import Record
from balora.evaluation.tasks import code, glue, mathematics, mt_bench
from balora.evaluation.tasks import lm_eval as harness


@dataclasses.dataclass(frozen=True)
class Task:
    """Something a model can be measured on."""

    name: str
    summary: str
    evaluate: Callable[[Session], Record]


def _task(evaluate: Callable[..., Record], name: str, summary: str) -> Task:
    return Task(name, summary, functools.partial(evaluate, name=name))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(_task(glue.evaluate_glue, t.name, f"GLUE, {t.folder}: {t.main}") for t in glue.TASKS.values()),
        *(_task(mathematics.evaluate_math, t.name, f"{t.summary}: accuracy") for t in mathematics.TASKS.values()),
        *(_task(code.evaluate_code, t.name, t.summary) for t in code.TASKS.values()),
        _task(mt_bench.evaluate_mt_bench, mt_bench.NAME, "conversations of two turns, rated 1 to 10 by a judge"),
    )
}
GROUPS = {"glue": tuple(glue.TASKS)}
"""Names that stand for several tasks."""


def find_tasks(names: Iterable[str]) -> list[Task]:
    """The tasks by these names, each once, in order: ours first, then those of lm-evaluation-harness.

    Raises:
        BALoraError: There is no such task; the nearest is named.
    """
    found: dict[str, Task] = {}
    for name in names:
        for single in GROUPS.get(name, (name,)):
            found[single] = TASKS.get(single) or _harness_task(single)
    if not found:
        raise BALoraError(f"No task was named. The tasks are {', '.join([*TASKS, *GROUPS])}.")
    return list(found.values())


def _harness_task(name: str) -> Task:
    """A task of lm-evaluation-harness."""
    own = name.removeprefix(harness.PREFIX)
    if not harness.installed():
        known = [*TASKS, *GROUPS]
        raise BALoraError(
            f"There is no task {name!r}.{suggest(name, known)} The tasks are {', '.join(known)}; those of lm-evaluation-harness "
            "need: pip install 'balora[lm-eval]'."
        )
    known = harness.names()
    if own not in known and not harness.is_file(own):
        near = suggest(name, [*TASKS, *GROUPS]) or suggest(own, known)
        raise BALoraError(
            f"There is no task {name!r}, here or in lm-evaluation-harness.{near} balora's own are "
            f"{', '.join([*TASKS, *GROUPS])}."
        )
    return Task(name, "a task of lm-evaluation-harness", functools.partial(harness.evaluate_harness, name=own))


def describe_tasks() -> list[str]:
    """One line per task, for people."""
    width = max(map(len, [*TASKS, *GROUPS]))
    groups = [f"{name:<{width}}  {', '.join(tasks)}" for name, tasks in GROUPS.items()]
    return [f"{task.name:<{width}}  {task.summary}" for task in TASKS.values()] + groups


__all__ = ["GROUPS", "TASKS", "Task", "describe_tasks", "find_tasks"]
