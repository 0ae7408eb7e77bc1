"""Maps and scores of a classifier's features, after training on balanced and on imbalanced classes (figure 3).

The features of the same balanced evaluation rows are extracted from every run. One seed is drawn as t-SNE maps; all seeds are
scored: silhouette of the true classes, and recall of the class that is rare in the imbalanced training rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from balora.experiments.compare import Comparison, summarise
from balora.experiments.compare.tables import difference_text, markdown_table
from balora.experiments.reproduce.experiment import Results, Study
from balora.experiments.reproduce.features import Features, load_or_extract
from balora.experiments.reproduce.parts import findings, scores_table
from balora.experiments.reproduce.variants import FITTED_HEAD
from balora.plots.tsne import EmbeddingPanel, embedding_figure

BALANCED, IMBALANCED = "balanced", "imbalanced"
"""Names of the two studies."""
RARE = ("low", "contradiction")
"""Class that is rare after imbalance: at the small scale, in the paper."""
MAIN_SCORES = 4
"""Number of scores, of those in the table, that the findings mention."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A study with the features of its finished runs."""

    study: Study
    comparison: Comparison
    """Comparison whose scores are those of the features."""
    features: Mapping[str, Features]
    """Features by the run's name."""

    @classmethod
    def of(cls, study: Study, comparison: Comparison, directory: Path) -> Measured:
        """Extract and score the features of every finished run; they are cached below ``directory``."""
        assert comparison.directory is not None
        features = {
            row.run: load_or_extract(
                comparison.directory / "runs" / row.run, directory / "features" / study.name / f"{row.run}.safetensors"
            )
            for row in comparison.rows
            if row.status == "finished"
        }
        rows = [
            dataclasses.replace(row, scores=features[row.run].scores()) if row.run in features else row
            for row in comparison.rows
        ]
        scores = list(dict.fromkeys(name for row in rows if row.run in features for name in row.scores))
        groups = summarise(rows, scores, study.baseline)
        return cls(study, dataclasses.replace(comparison, rows=rows, groups=groups, scores=scores), features)


def feature_maps(results: Results) -> list[str]:
    """Return the findings, the maps of one seed, and the scores over all seeds."""
    measured = [
        Measured.of(study, results.comparisons[study.name], results.directory)
        for study in results.studies
        if study.name in results.comparisons
    ]
    measured = [one for one in measured if one.features]
    if not measured:
        return ["No run is finished yet."]
    classes = next(iter(measured[0].features.values())).classes
    rare = rare_class(classes)
    names = ["silhouette", f"recall_{rare}", f"auc_{rare}", "accuracy"]
    names += [f"recall_{name}" for name in classes if name != rare]
    first, *tables = score_parts(measured, names, results)
    return [first, *tables[:1], *_maps(measured, classes, rare, results), *tables[1:]]


def rare_class(classes: Sequence[str]) -> str:
    """Return the class that is rare after imbalance.

    Example:
        >>> rare_class(["entailment", "neutral", "contradiction"])
        'contradiction'
    """
    return next(name for name in classes if name in RARE)


def _maps(measured: Sequence[Measured], classes: Sequence[str], rare: str, results: Results) -> list[str]:
    """Draw the maps of the first seed that has a finished run."""
    seed = next(row.seed for one in measured for row in one.comparison.rows if row.run in one.features)
    shown = [variant.name for variant in measured[0].study.variants if variant.name != FITTED_HEAD.name]
    figure_rows = []
    for one in measured:
        panels: dict[str, EmbeddingPanel] = {}
        for row in one.comparison.rows:
            if row.seed == seed and row.run in one.features and row.variant in shown:
                features, scores = one.features[row.run], row.scores
                caption = f"silhouette {scores['silhouette']:.2f}, recall of {rare} {scores[f'recall_{rare}']:.2f}"
                truth = features.labels_N.numpy()
                panels[row.variant] = EmbeddingPanel(
                    title=row.variant, caption=caption, points=features.map(), classes=truth
                )
        figure_rows.append((one.study.title, [panels.get(name) for name in shown]))
    written = embedding_figure(figure_rows, classes, results.directory / results.experiment.name)
    return [
        "## Maps",
        f"![Maps of features by method and condition]({written[0].name})",
        "Each point is an evaluation row; all panels show the same rows. Its position is a t-SNE map (perplexity 30, 1,000 "
        f"iterations, seed 42) of the first token of the last hidden layer, after training with seed {seed}. Distances between "
        "groups mean little in such a map. The silhouette is measured on the features themselves, by cosine distance, with the "
        "true classes as clusters: 1 is well separated, 0 mixed, below 0 nearer to another class than to its own. If a class is "
        "never predicted, its recall is 0, and the area under its ROC curve (auc) still says whether its rows can be told "
        "apart: 0.5 is chance.",
    ]


def score_parts(measured: Sequence[Measured], names: Sequence[str], results: Results) -> list[str]:
    """Return the findings, the table of every score in both conditions, and the changes that imbalance makes.

    Args:
        measured: One or both conditions.
        names: Scores in order; the findings mention the first four.
        results: Results of the experiment, with the runs' own scores.
    """
    comparisons = {one.study.name: one.comparison for one in measured}

    def scored(names: Sequence[str]) -> Results:
        studies = [dataclasses.replace(one.study, score=name) for name in names for one in measured]
        return dataclasses.replace(results, studies=studies, comparisons=comparisons)

    parts = [*findings()(scored(names[:MAIN_SCORES])), *scores_table()(scored(names))]
    return [*parts, *_changes(measured, names[:MAIN_SCORES])] if len(measured) > 1 else parts


def _changes(measured: Sequence[Measured], names: Sequence[str]) -> list[str]:
    """Return the score after imbalanced training minus that after balanced training, by method."""
    lines = []
    for variant in measured[0].study.variants:
        rows = [
            dataclasses.replace(row, variant=one.study.name)
            for one in measured
            for row in one.comparison.rows
            if row.variant == variant.name
        ]
        groups = {group.variant: group.differences for group in summarise(rows, names, BALANCED)}
        changes = groups.get(IMBALANCED, {})
        lines.append([variant.name, *(difference_text(changes.get(name)) for name in names)])
    return [
        "Change by imbalance: the score after imbalanced training minus that after balanced training, paired by seed.",
        markdown_table(["method", *names], lines),
    ]
