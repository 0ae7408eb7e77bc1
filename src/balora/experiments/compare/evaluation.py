"""Evaluation within a comparison: what every finished run is measured on, as `balora evaluate` does it, and the scores.

The results are those of `balora evaluate RUN`, in the folder ``evaluation/`` of the run. Beside them lies what was asked for and
what came of it, so that a comparison knows which runs it need not measure again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from balora.errors import BALoraError
from balora.files import write_text

MEASURED = "comparison.json"
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What each run of a comparison is evaluated on, once it is trained."""

    tasks: tuple[str, ...]
    """Names that `balora evaluate` knows."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    """What differs from the defaults of `balora.evaluation.EvaluationOptions`, by name and as JSON has it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"tasks": list(self.tasks), "options": json.loads(json.dumps(dict(self.options)))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationPlan:
        """From plain values.

        Example:
            >>> plan = EvaluationPlan(tasks=("gsm8k",), options={"limit": 2})
            >>> EvaluationPlan.from_dict(plan.to_dict()).to_dict() == plan.to_dict()
            True
        """
        return cls(tasks=tuple(values["tasks"]), options=values["options"])

    def check(self) -> None:
        """Refuse what cannot be asked, before any run is made.

        Raises:
            BALoraError: There is no such task, or an option is not one or makes no sense.
        """
        from balora.evaluation.registry import find_tasks

        find_tasks(self.tasks)
        _options(self)


def evaluate_run(run: Path, plan: EvaluationPlan, say: Say) -> None:
    """Measure a finished run, going on from the results that are there, and note the scores for the comparison.

    Raises:
        BALoraError: A task cannot be measured. What was measured before stays.
    """
    # Imported here: a comparison without evaluations need not wait for it.
    from balora.evaluation.evaluate import evaluate
    from balora.evaluation.results import json_safe

    found = evaluate(run, plan.tasks, options=_options(plan), say=say)
    values = {f"{task}/{name}": value for task, result in found.results.items() for name, value in _scores(result)}
    record = {**plan.to_dict(), "values": values}
    write_text(found.folder / MEASURED, json.dumps(json_safe(record), indent=1) + "\n")


def measured(run: Path, plan: EvaluationPlan) -> dict[str, float] | None:
    """The scores that a run's evaluation gave, by ``task/score``; None where it has not been made, or another was.

    A score that is undefined (a correlation where all predictions are one) is NaN.
    """
    path = run / "evaluation" / MEASURED
    try:
        record = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise BALoraError(f"{path} is damaged ({error}). Delete it; the samples beside it are kept.") from error
    if {key: record.get(key) for key in ("tasks", "options")} != plan.to_dict():
        return None
    return {name: math.nan if value is None else float(value) for name, value in record["values"].items()}


def _scores(result: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """A task's scores that are shares, means or correlations, the main one first; counts are left to its own file."""
    scores = result["scores"]
    main = scores["main"]
    rest = [name for name in scores if name not in ("main", main) and isinstance(scores[name], float)]
    return [(name, scores[name]) for name in (main, *rest)]


def _options(plan: EvaluationPlan) -> Any:
    from balora.evaluation.options import EvaluationOptions, JudgeOptions

    values = dict(plan.options)
    try:
        if isinstance(values.get("judge"), Mapping):
            values["judge"] = JudgeOptions(**values["judge"])
        return EvaluationOptions(**values)
    except TypeError as error:  # a name that is none of theirs
        raise BALoraError(f"The evaluation cannot be made so: {error}.") from error
