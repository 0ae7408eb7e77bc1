"""Gains of one variant over another on two pre-trained models, and whether they are larger on the noisier one (table 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from balora.experiments.compare import Group, Row, summarise
from balora.experiments.compare.statistics import Difference
from balora.experiments.compare.tables import difference_text, markdown_table
from balora.experiments.reproduce.experiment import Part, Results, Study
from balora.experiments.reproduce.verdicts import difference_sign, quoted

CLEANER, NOISIER = "cleaner", "noisier"
"""First word of a study's name: the pre-trained model that its runs start from."""
_MEAN = "mean over tasks"


def study_name(base_model: str, task: str) -> str:
    """Return the name of the study of a task on a pre-trained model."""
    return f"{base_model}_{task}"


def gain_tables(*pairs: tuple[str, str]) -> Part:
    """Return the part with the gains of each first variant over the second, on either pre-trained model."""

    def part(results: Results) -> list[str]:
        texts = [text for variant, over in pairs for text in _gains(results, variant, over)]
        return ["## Gains on the cleaner and the noisier model", *texts] if texts else []

    return part


def _gains(results: Results, variant: str, over: str) -> Iterator[str]:
    gains = {base_model: list(_gain_rows(results, base_model, variant, over)) for base_model in (CLEANER, NOISIER)}
    gains = {base_model: rows for base_model, rows in gains.items() if rows}
    rows = [row for found in gains.values() for row in found]
    if not rows:
        return
    names = [*(name for name in dict.fromkeys(name for row in rows for name in row.scores) if name != _MEAN), _MEAN]
    zeros = [dataclasses.replace(row, variant=over, scores=dict.fromkeys(row.scores, 0.0)) for row in rows]
    lines, verdicts = [], []
    for base_model, found in gains.items():
        differences = _group(summarise([*found, *zeros], names, over), base_model).differences
        lines.append([base_model, *(difference_text(differences.get(name)) for name in names)])
    if len(gains) == 2:
        between = _group(summarise(rows, names, CLEANER), NOISIER).differences
        lines.append(["noisier minus cleaner", *(difference_text(between.get(name)) for name in names)])
        verdicts = [f"- {name}: {_verdict(between[name])}" for name in names if name in between]
    yield (
        f"Gain of {quoted(variant)} over {quoted(over)} on either model, paired by seed, with its bootstrap interval. The paper "
        "claims a larger gain on the noisier one."
    )
    yield markdown_table(["pre-trained model", *names], lines)
    if verdicts:
        yield "\n".join(verdicts)


def _gain_rows(results: Results, base_model: str, variant: str, over: str) -> Iterator[Row]:
    """Yield a row per seed, whose scores are the gains by task, and their mean if no task is missing."""
    own = [study for study in results.studies if _base_and_task(study)[0] == base_model]
    gains: dict[int, dict[str, float]] = {}
    template: Row | None = None
    for study in own:
        rows = results.comparisons[study.name].rows if study.name in results.comparisons else []
        scores = {(r.variant, r.seed): r.scores.get(study.score) for r in rows if r.status == "finished"}
        for row in rows:
            own_score, other = scores.get((row.variant, row.seed)), scores.get((over, row.seed))
            if row.variant == variant and own_score is not None and other is not None:
                template = row
                gains.setdefault(row.seed, {})[_base_and_task(study)[1]] = own_score - other
    for seed, by_task in gains.items():
        assert template is not None
        mean = {_MEAN: sum(by_task.values()) / len(by_task)} if len(by_task) == len(own) else {}
        yield dataclasses.replace(template, variant=base_model, seed=seed, scores={**by_task, **mean})


def _base_and_task(study: Study) -> tuple[str, str]:
    base_model, _, task = study.name.partition("_")
    return base_model, task


def _group(groups: Sequence[Group], variant: str) -> Group:
    return next(group for group in groups if group.variant == variant)


def _verdict(difference: Difference) -> str:
    """Say whether the gain is larger on the noisier model."""
    sign = difference_sign(difference)
    if sign is None:
        return f"{difference_text(difference)}; one seed has no interval, so the two gains cannot be told apart."
    words = {1: "larger", -1: "smaller", 0: "not clearly different"}[sign]
    student = difference.t_interval
    interval = f"; Student's interval [{student[0]:+.4f}, {student[1]:+.4f}]" if student else ""
    return (
        f"on the noisier model the gain is {words}, by the bootstrap interval of {difference.pairs} seeds "
        f"({difference_text(difference)}{interval})."
    )
