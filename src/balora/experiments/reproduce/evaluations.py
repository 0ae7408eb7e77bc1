"""What an experiment's runs are evaluated on, and what of it is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balora.data.hub import looks_local
from balora.experiments.compare import EvaluationPlan
from balora.experiments.reproduce.paths import Places

MT_BENCH = "mt_bench"
_PROGRAMS = ("humaneval", "mbpp")


def evaluated_on(*tasks: str) -> Callable[[Places], EvaluationPlan]:
    """Whole tasks, from the hub, as the paper has them.

    Args:
        tasks: Names that `balora evaluate` knows.
    """

    def plan(places: Places) -> EvaluationPlan:
        options: dict[str, Any] = {}
        if MT_BENCH in tasks and places.judge is not None:
            options["judge"] = dict(places.judge)
        return EvaluationPlan(tasks=tasks, options=options)

    return plan


def few_of_gsm8k(places: Places) -> EvaluationPlan:
    """Some questions of GSM8K for the small scale, with answers as short as its models write."""
    options = {
        "data": {"gsm8k": places.data("gsm8k/test.jsonl")},
        "limit": 50,
        "max_new_tokens": 128,
        "batch_size": 25,
        "device": "cpu",
    }
    return EvaluationPlan(tasks=("gsm8k",), options=options)


def missing_for(plan: EvaluationPlan | None) -> list[str]:
    """What an evaluation needs that is not on this machine, in words."""
    if plan is None:
        return []
    found = [
        f"evaluation data of {task}: {place}: no such file or folder"
        for task, place in plan.options.get("data", {}).items()
        if looks_local(place, (".jsonl",)) and not Path(place).exists()
    ]
    if MT_BENCH in plan.tasks and not plan.options.get("judge"):
        found.append("a judge of MT-Bench's answers (--judge-url, --judge-model); without one its runs have no score")
    if set(_PROGRAMS) & set(plan.tasks) and shutil.which("bwrap") is None:
        found.append("bubblewrap, in which generated programs are run; without it HumanEval and MBPP give no score")
    return found
