"""Evaluations of `balora evaluate` for both models, paired by item. They load the models themselves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balora.auditing.intervals import Bootstrap, Interval
from balora.auditing.measure import Found, Measure
from balora.auditing.options import AuditOptions
from balora.errors import BALoraError
from balora.evaluation.evaluate import evaluate
from balora.evaluation.options import EvaluationOptions


def evaluate_pair(base: str, tuned: str, options: AuditOptions, folder: Path, say: Callable[[str], None]) -> Found:
    """Evaluate both models on the tasks. Samples that the folder has already are kept."""
    chosen = EvaluationOptions(
        data=options.task_data, limit=options.task_limit, batch_size=options.batch_size, device=options.device,
        dtype=options.dtype, allow_pickle=options.allow_pickle, trust_remote_code=options.trust_remote_code, seed=options.seed,
    )  # fmt: skip
    results = {}
    for side, model in (("base", base), ("tuned", tuned)):
        try:
            results[side] = evaluate(model, options.tasks, output=folder / side, options=chosen, say=say).results
        except BALoraError as error:
            if side == "base":  # such as a base without the head of the task
                say(f"The base was not evaluated: {error}")
                results[side] = {}
                reason = str(error)
            else:
                raise
    found = Found()
    for task, after in results["tuned"].items():
        before = results["base"].get(task)
        if before is None:
            found.not_measured[f"tasks.{task}, base"] = reason
        measure = paired_scores(task, before, after, options.seed)
        found.measures.append(measure)
        if measure.change is not None and measure.change.low is None:
            found.notes.append(f"tasks.{task}: its main score is no mean over items, so it has no paired interval.")
    return found


def paired_scores(task: str, before: Mapping[str, Any] | None, after: Mapping[str, Any], seed: int) -> Measure:
    """Compare two results of a task: paired by item if its main score is the mean over items, else by the scores alone."""
    name, count = f"tasks.{task}", len(after["samples"])
    label = f"{task}: {after['scores']['main']}"
    items = {side: _item_scores(result) for side, result in (("base", before), ("tuned", after)) if result is not None}
    if before is not None and all(items.values()):
        own, other = items["base"] or {}, items["tuned"] or {}
        both = [key for key in other if key in own]
        bootstrap = Bootstrap(len(both), seed)
        base, tuned = [own[key] for key in both], [other[key] for key in both]
        return Measure(
            name=name, label=label, count=len(both), of="items", base=bootstrap.mean(base), tuned=bootstrap.mean(tuned),
            change=bootstrap.mean([t - b for t, b in zip(tuned, base, strict=True)]),
        )  # fmt: skip
    alone = items.get("tuned")
    tuned_interval = Bootstrap(len(alone), seed).mean(list(alone.values())) if alone else Interval(_main(after))
    if before is None:
        return Measure(name=name, label=label, count=count, of="items", tuned=tuned_interval)
    first, second = _main(before), _main(after)
    difference = None if first is None or second is None else second - first
    return Measure(
        name=name,
        label=label,
        count=count,
        of="items",
        base=Interval(first),
        tuned=Interval(second),
        change=Interval(difference),
    )


def _item_scores(result: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the score of each item, if their mean is the main score; else None."""
    scores: dict[str, float] = {}
    for sample in result["samples"]:
        value = sample.get("correct", sample.get("passed"))
        if value is None and "predicted" in sample and "label" in sample:
            value = sample["predicted"] == sample["label"]
        if value is None:
            return None
        scores[str(sample["id"])] = float(value)
    main = _main(result)
    if not scores or main is None or abs(statistics.fmean(scores.values()) - main) > 1e-6:
        return None
    return scores


def _main(result: Mapping[str, Any]) -> float | None:
    value = result["scores"][result["scores"]["main"]]
    return None if value is None else float(value)
