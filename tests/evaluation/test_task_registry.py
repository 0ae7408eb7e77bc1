"""Registry of the tasks: it is light, and it agrees with the tasks' code."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from balora.evaluation.registry import GROUPS, TASKS, describe_tasks
from balora.evaluation.tasks.glue import DATASETS
from balora.evaluation.tasks.task import Task

IMPORTS = """
import sys
import balora.evaluation
from balora.evaluation.registry import describe_tasks
describe_tasks()
print(*(name for name in ("torch", "transformers", "peft", "datasets", "sklearn") if name in sys.modules))
"""


def test_the_list_of_tasks_imports_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("entry", TASKS.values(), ids=TASKS)
def test_every_entry_names_a_task_class(entry) -> None:
    module, _, name = entry.task_class.partition(":")
    assert issubclass(getattr(importlib.import_module(f"balora.evaluation.tasks.{module}"), name), Task)


def test_the_entries_of_glue_agree_with_its_datasets() -> None:
    assert GROUPS["glue"] == tuple(DATASETS)
    for name, dataset in DATASETS.items():
        assert TASKS[name].summary == f"GLUE, {dataset.folder}: {dataset.main}"


def test_every_task_and_group_is_described_in_one_line() -> None:
    assert [line.split()[0] for line in describe_tasks()] == [*TASKS, *GROUPS]


def test_the_old_path_of_pass_at_k_warns_and_works() -> None:
    module = importlib.import_module("balora.evaluation.pass_at_k")
    with pytest.warns(DeprecationWarning, match=r"balora\.evaluation\.scoring\.pass_at_k\.pass_at_k"):
        assert module.pass_at_k(samples=4, correct=1, k=2) == 0.5
