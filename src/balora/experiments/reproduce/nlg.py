"""The paper's benchmark of generation: three training sets, five scores, and their mean; tables 1 and 10."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from balora.experiments.compare import Comparison, Variant
from balora.experiments.compare.tables import markdown_table
from balora.experiments.reproduce.evaluations import evaluated_on
from balora.experiments.reproduce.experiment import Study, from_recipe

SCORES = {
    "metamathqa": ("gsm8k/accuracy", "math/accuracy"),
    "codefeedback": ("humaneval/pass@1", "mbpp/pass@1"),
    "wizardlm-evol-instruct": ("mt_bench/first_turn",),
}
"""By training set, what the paper scores the models by that learnt from it; MT-Bench's first turn alone (section 3.2.1)."""
PERCENT = "Ours are shares from 0 to 1, and MT-Bench's ratings from 1 to 10; the paper's shares are in percent."


def nlg_studies(variants: Sequence[Variant], baseline: str) -> list[Study]:
    """A study for each training set, on LLaMA-2-7B."""
    return [
        Study(
            name=data,
            title=data,
            config=from_recipe(f"llama-2-7b/{data}"),
            variants=variants,
            baseline=baseline,
            score=scores[0],
            further=scores[1:],
            evaluation=evaluated_on(*(score.partition("/")[0] for score in scores)),
        )
        for data, scores in SCORES.items()
    ]


def by_score(studies: Sequence[Study]) -> Iterator[Study]:
    """A study for each score that is shown: where one has several, once for each."""
    for study in studies:
        for score in (study.score, *study.further):
            yield dataclasses.replace(study, score=score)


def mean_table(made: Mapping[str, Comparison], studies: Sequence[Study]) -> str | None:
    """The paper's last column, for the variants that have all five scores: shares in percent, and the rating as it is.

    Returns:
        A table, None where no variant has all scores or these are not the paper's studies.
    """
    if [study.name for study in studies] != list(SCORES):
        return None
    lines = []
    for variant in studies[0].variants:
        means = [_mean(made.get(study.name), variant.name, study.score) for study in by_score(studies)]
        known = [mean for mean in means if mean is not None]
        if len(known) == len(means):
            lines.append([variant.name, f"{sum(known) / len(known):.2f}"])
    return markdown_table(["method", "mean of the five (ours; shares in percent)"], lines) if lines else None


def _mean(comparison: Comparison | None, variant: str, score: str) -> float | None:
    for group in comparison.groups if comparison else ():
        if group.variant == variant and score in group.scores:
            return group.scores[score].mean * (1.0 if score.startswith("mt_bench") else 100.0)
    return None
