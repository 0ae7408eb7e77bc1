"""Registry of the evaluation tasks: names, descriptions, and groups such as ``glue``.

A task's code is imported when the task is evaluated, so that listing the tasks does not import torch.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from balora.errors import BALoraError, suggest, suggest_path
from balora.evaluation import lm_eval_index
from balora.evaluation.options import InvalidOption

if TYPE_CHECKING:
    from balora.evaluation.context import EvaluationContext
    from balora.evaluation.tasks.task import Task

LM_EVAL_PREFIX = "lm_eval:"
"""Prefix for a task of lm-evaluation-harness. It is needed if balora has a task of the same name."""


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """Registry entry of a task."""

    name: str
    summary: str
    task_class: str
    """Module in `balora.evaluation.tasks` and class, such as ``glue:GlueTask``."""

    def load(self, context: EvaluationContext) -> Task:
        """Import the task's code and prepare the task."""
        task_class: type[Task] = pkgutil.resolve_name(f"balora.evaluation.tasks.{self.task_class}")
        return task_class(context, self.name.removeprefix(LM_EVAL_PREFIX))


TASKS = {
    name: TaskEntry(name, summary, task_class)
    for name, summary, task_class in (
        ("cola", "GLUE, CoLA: matthews", "glue:GlueTask"),
        ("sst2", "GLUE, SST-2: accuracy", "glue:GlueTask"),
        ("mrpc", "GLUE, MRPC: accuracy", "glue:GlueTask"),
        ("stsb", "GLUE, STS-B: pearson", "glue:GlueTask"),
        ("qqp", "GLUE, QQP: accuracy", "glue:GlueTask"),
        ("mnli", "GLUE, MNLI: accuracy", "glue:GlueTask"),
        ("mnli_mismatched", "GLUE, MNLI: accuracy", "glue:GlueTask"),
        ("qnli", "GLUE, QNLI: accuracy", "glue:GlueTask"),
        ("rte", "GLUE, RTE: accuracy", "glue:GlueTask"),
        ("gsm8k", "grade-school word problems: accuracy", "math:GSM8KTask"),
        ("math", "MATH, competition problems: accuracy", "math:MathTask"),
        ("math500", "MATH-500, competition problems: accuracy", "math:Math500Task"),
        ("humaneval", "Python functions from their docstrings: pass@k", "code:HumanEvalTask"),
        ("mbpp", "basic Python problems: pass@k", "code:MBPPTask"),
        ("mt_bench", "conversations of two turns, rated 1 to 10 by a judge", "mt_bench:MTBenchTask"),
    )
}
"""Entry of every task of balora, by name."""
GROUPS = {"glue": tuple(entry.name for entry in TASKS.values() if entry.task_class == "glue:GlueTask")}
"""Tasks that a group name selects, by group name."""


def find_tasks(names: Iterable[str], *, task_code: bool = False) -> list[TaskEntry]:
    """Return the entries for task and group names, in order and without duplicates. Unknown names raise BALoraError.

    ``task_code`` allows task files of lm-evaluation-harness that name Python code.
    """
    entries: dict[str, TaskEntry] = {}
    for name in names:
        for task in GROUPS.get(name, (name,)):
            entries[task] = TASKS.get(task) or _lm_eval_entry(task, task_code)
    if not entries:
        raise BALoraError(f"No task was named. The tasks are {', '.join([*TASKS, *GROUPS])}.")
    return list(entries.values())


def _lm_eval_entry(name: str, task_code: bool) -> TaskEntry:
    """Return the entry of a task of lm-evaluation-harness."""
    own_names = [*TASKS, *GROUPS]
    listed = ", ".join(own_names)
    if not lm_eval_index.is_installed():
        raise BALoraError(
            f"There is no task {name!r}.{suggest(name, own_names)} The tasks are {listed}. Tasks of lm-evaluation-harness "
            "need: pip install 'balora[lm-eval]'."
        )
    lm_eval_name = name.removeprefix(LM_EVAL_PREFIX)
    if lm_eval_index.is_yaml_file(lm_eval_name):
        if not task_code and (files := lm_eval_index.task_code(Path(lm_eval_name))):
            raise InvalidOption(
                "The task {name} names Python code (in {files}), which would run on this machine with your rights. If you have "
                "read that code and trust it, give the option `task_code`.",
                name=lm_eval_name,
                files=", ".join(files),
            )
    elif lm_eval_name.endswith((".yaml", ".yml")):
        raise BALoraError(f"There is no task file {lm_eval_name}.{suggest_path(Path(lm_eval_name), '*.y*ml')}")
    elif lm_eval_name not in lm_eval_index.task_names():
        hint = suggest(name, own_names) or suggest(lm_eval_name, lm_eval_index.task_names())
        raise BALoraError(
            f"There is no task {name!r}, neither in balora nor in lm-evaluation-harness.{hint} The tasks of balora are {listed}."
        )
    return TaskEntry(name, "a task of lm-evaluation-harness", "lm_eval:LMEvalTask")


def describe_tasks() -> list[str]:
    """Return one line per task and group, for display."""
    lines = {name: entry.summary for name, entry in TASKS.items()}
    lines |= {name: ", ".join(tasks) for name, tasks in GROUPS.items()}
    width = max(map(len, lines))
    return [f"{name:<{width}}  {summary}" for name, summary in lines.items()]
