"""Evaluate every run of a comparison after its training, as `balora evaluate RUN` does.

The results are in the ``evaluation`` directory of the run. A file beside them holds the plan and the scores, so that the comparison
does not repeat an evaluation.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.files import read_json, write_text

SCORES = "comparison.json"
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Tasks on which every run of a comparison is evaluated after its training."""

    tasks: tuple[str, ...]
    """Task names of `balora evaluate`."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `balora.evaluation.EvaluationOptions` that differ from their defaults, as JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {"tasks": list(self.tasks), "options": json.loads(json.dumps(dict(self.options)))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationPlan:
        """Read from plain values.

        Example:
            >>> plan = EvaluationPlan(tasks=("gsm8k",), options={"limit": 2})
            >>> EvaluationPlan.from_dict(plan.to_dict()).to_dict() == plan.to_dict()
            True
        """
        return cls(tasks=tuple(values["tasks"]), options=values["options"])

    def check(self) -> None:
        """Refuse an invalid plan before any run is started.

        Raises:
            BALoraError: A task does not exist, or an option is unknown or out of range.
        """
        from balora.evaluation.registry import find_tasks

        find_tasks(self.tasks, task_code=_evaluation_options(self).task_code)


def evaluate_run(run: Path, plan: EvaluationPlan, say: Say, scale: float = 1.0) -> None:
    """Evaluate a finished run and write its scores for the comparison. Samples that are evaluated already are not repeated.

    ``scale`` is the part of the run's change that the evaluated model has.
    """
    # Imported here: a comparison without evaluations does not need these modules.
    from balora.evaluation.evaluate import evaluate
    from balora.evaluation.results import json_safe

    evaluation = evaluate(run, plan.tasks, options=_evaluation_options(plan, scale), say=say)
    results = evaluation.results
    values = {f"{task}/{name}": value for task in results for name, value in _task_scores(results[task])}
    write_text(
        evaluation.folder / SCORES, json.dumps(json_safe({**_identity(plan), "values": values}), indent=1) + "\n"
    )


def read_scores(run: Path, plan: EvaluationPlan, scale: float = 1.0) -> dict[str, float] | None:
    """Read the scores of a run's evaluation by ``task/score``; return None if the run was not evaluated by this plan.

    An undefined score, such as a correlation of constant predictions, is NaN.
    """
    folder = run / "evaluation" if scale == 1 else run / "evaluation" / f"scale-{float(scale)!r}"
    path = folder / SCORES
    record = read_json(path, "Delete it; the samples beside it are kept.") if path.is_file() else {}
    if {key: value for key, value in record.items() if key != "values"} != _identity(plan):
        return None
    return {name: math.nan if value is None else float(value) for name, value in record["values"].items()}


def _identity(plan: EvaluationPlan) -> dict[str, Any]:
    """Return what decides the scores of a run. Code tasks had another prompt by default in an earlier version."""
    is_harness = plan.options.get("code_prompt", "harness") == "harness"
    code = {"code_prompt": "harness"} if is_harness and {"humaneval", "mbpp"} & set(plan.tasks) else {}
    return {**plan.to_dict(), **code}


def _task_scores(result: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """List a task's main score and its other real-valued scores; counts are only in the task's own file."""
    scores = result["scores"]
    main = scores["main"]
    others = [name for name in scores if name not in ("main", main) and isinstance(scores[name], float)]
    return [(name, scores[name]) for name in (main, *others)]


def _evaluation_options(plan: EvaluationPlan, scale: float = 1.0) -> Any:
    from balora.evaluation.options import EvaluationOptions, JudgeOptions

    values = {**plan.options, **({} if scale == 1 else {"scale": scale})}
    try:
        if isinstance(values.get("judge"), Mapping):
            values["judge"] = JudgeOptions(**values["judge"])
        return EvaluationOptions(**values)
    except TypeError as error:  # an unknown or a missing name
        raise BALoraError(f"The evaluation options are invalid: {error}.") from error
