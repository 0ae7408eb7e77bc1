"""Figure 3: what class imbalance does to a classifier's features, under LoRA, PiSSA and BA-LoRA.

Each method is trained on balanced classes and on classes 100:10:1; the features of the same balanced evaluation rows are then
taken from each run, mapped by t-SNE and measured: silhouette of the true classes, recall of the class that became rare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare import Comparison, Row, Variant, summarise
from balora.experiments.compare.tables import difference_text, markdown_table
from balora.experiments.reproduce.columns import CAPTION, caution, columns_table, verdict
from balora.experiments.reproduce.experiment import Experiment, Study, from_recipe
from balora.experiments.reproduce.features import Features, features_of
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.reported import reported_markdown
from balora.experiments.reproduce.similarity import CLASSES, THREE_CLASSES, prepared_file
from balora.experiments.reproduce.small import LORA_RATE, at_rate, minilm_on
from balora.experiments.reproduce.table4 import FITTED_HEAD, ours
from balora.plots.tsne import EmbeddingPanel, embedding_figure

BASELINE = "pissa"
BALANCED, IMBALANCED = "balanced", "imbalanced"
RARE = ("low", "contradiction")
"""The class that becomes rare: at the small scale, in the paper."""
ROWS = 1110
"""To learn from at the small scale, in either condition: 370 of each class, or about 1,000, 100 and 10."""
OURS = ours("CDVS")
VARIANTS = [Variant.parse("lora"), Variant.parse(BASELINE), Variant.parse("balora")]
_FEATURES = "features"


def minilm_on_similarity(places: Places, **data: Any) -> dict[str, Any]:
    """The small scale's task: is a pair of sentences of low, middle or high similarity."""
    values = minilm_on(places)
    values["data"] = {
        "train": prepared_file(places, "train"),
        "eval": prepared_file(places, "dev"),
        "text": ["sentence1", "sentence2"],
        "label": "label",
        "labels": list(CLASSES),
        "max_length": 48,
        **data,
    }
    values["training"] |= {"num_train_epochs": 2}
    return values


def _balanced(places: Places) -> dict[str, Any]:
    return minilm_on_similarity(places, subsample=ROWS)


def _imbalanced(places: Places) -> dict[str, Any]:
    return minilm_on_similarity(places, subsample=3000, imbalance={"middle": 0.1, "low": 0.01})


SMALL = [
    Study(
        name=name,
        title=title,
        config=config,
        variants=[at_rate(VARIANTS[0], LORA_RATE), *VARIANTS[1:], FITTED_HEAD, OURS],
        baseline=BASELINE,
        score="accuracy",
        seconds=40.0,
    )
    for name, title, config in ((BALANCED, "balanced", _balanced), (IMBALANCED, "100:10:1", _imbalanced))
]
_EPOCHS = {"num_train_epochs": 3}  # appendix B says so of the imbalanced set; of the balanced one nothing
PAPER = [
    Study(
        name=name,
        title=title,
        config=from_recipe("roberta-base/mnli", training=_EPOCHS, data=data),
        variants=VARIANTS,
        baseline=BASELINE,
        score="accuracy",
    )
    for name, title, data in (
        (BALANCED, "balanced", {}),
        (IMBALANCED, "100:10:1", {"imbalance": {"neutral": 0.1, "contradiction": 0.01}}),
    )
]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A study whose runs' features were measured."""

    study: Study
    comparison: Comparison
    """With the scores of the features in place of the runs' own."""
    features: Mapping[str, Features]
    """By the run's name."""

    @classmethod
    def of(cls, study: Study, made: Comparison, folder: Path) -> Measured:
        """Measure every finished run; features are kept below ``folder``."""
        assert made.directory is not None
        done = [row.run for row in made.rows if row.status == "finished"]
        kept = folder / _FEATURES / study.name
        features = {run: features_of(made.directory / "runs" / run, kept / f"{run}.safetensors") for run in done}
        rows = [
            dataclasses.replace(row, scores=features[row.run].scores()) if row.run in features else row
            for row in made.rows
        ]
        scores = list(dict.fromkeys(name for row in rows if row.run in features for name in row.scores))
        groups = summarise(rows, scores, study.baseline)
        return cls(study, dataclasses.replace(made, rows=rows, groups=groups, scores=scores), features)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the runs."""
        return next(iter(self.features.values())).classes


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """The maps of one seed, and the measures over all seeds."""
    measured = [Measured.of(study, made[study.name], folder) for study in studies if study.name in made]
    measured = [one for one in measured if one.features]
    if not measured:
        return ["No run is finished yet."]
    rare = rare_class(measured[0].classes)
    names = ["silhouette", f"recall_{rare}", f"auc_{rare}", "accuracy"]
    names += [f"recall_{name}" for name in measured[0].classes if name != rare]
    return [*_maps(measured, rare, folder), *tables(measured, names), reported_markdown("figure3")]


def rare_class(classes: Sequence[str]) -> str:
    """The class that the imbalanced condition makes rare.

    Example:
        >>> rare_class(["entailment", "neutral", "contradiction"])
        'contradiction'
    """
    return next(name for name in classes if name in RARE)


def _maps(measured: Sequence[Measured], rare: str, folder: Path) -> list[str]:
    """The figure, of the first seed that any run has."""
    seed = next(row.seed for one in measured for row in one.comparison.rows if row.run in one.features)
    shown = [variant for variant in measured[0].study.variants if variant.name != FITTED_HEAD.name]
    lines = []
    for one in measured:
        runs = {row.variant: row for row in one.comparison.rows if row.seed == seed and row.run in one.features}
        panels = [_panel(runs[v.name], one, rare) if v.name in runs else None for v in shown]
        lines.append((one.study.title, panels))
    written = embedding_figure(lines, measured[0].classes, folder / "figure3")
    return [
        f"![Maps of features by method and condition]({written[0].name})",
        "Each point is an evaluation row, the same rows in all panels; its place is a t-SNE map (perplexity 30, 1,000 iterations, "
        f"seed 42) of the last hidden layer's first token, after training with seed {seed}. Distances between groups mean little "
        "in such a map; the silhouette is measured on the features themselves, by cosine distance, with the true classes as "
        "clusters: 1 is wide apart, 0 mixed, below 0 nearer to another class than to its own. Where a class is never predicted, so "
        "that its recall is 0, the area under its ROC curve (auc) still tells whether its rows stand out: 0.5 is chance.",
    ]


def _panel(row: Row, one: Measured, rare: str) -> EmbeddingPanel:
    found = one.features[row.run]
    caption = f"silhouette {row.scores['silhouette']:.2f}, recall of {rare} {row.scores[f'recall_{rare}']:.2f}"
    return EmbeddingPanel(title=row.variant, caption=caption, points=found.map(), classes=found.truth_N.numpy())


def tables(measured: Sequence[Measured], names: Sequence[str]) -> list[str]:
    """Every score in both conditions, what imbalance changes, and what differs from PiSSA.

    Args:
        measured: One or both conditions.
        names: Scores in order; of the first four it is said what differs.
    """
    made = {one.study.name: one.comparison for one in measured}
    columns = [dataclasses.replace(one.study, score=name) for name in names for one in measured]
    words = [f"- {one.study.title}, {name}, {verdict(one.comparison, name)}" for name in names[:4] for one in measured]
    parts = [columns_table(made, columns), CAPTION.format(baseline=BASELINE), caution(made), "\n".join(words)]
    return [*parts, *_changes(measured, names[:4])] if len(measured) > 1 else parts


def _changes(measured: Sequence[Measured], names: Sequence[str]) -> list[str]:
    """What imbalance changes for each method: the imbalanced run minus the balanced one of the same seed."""
    lines = []
    for variant in measured[0].study.variants:
        rows = [
            dataclasses.replace(row, variant=one.study.name)
            for one in measured
            for row in one.comparison.rows
            if row.variant == variant.name
        ]
        found = (group for group in summarise(rows, names, BALANCED) if group.variant == IMBALANCED)
        gaps = next((group.differences for group in found), {})
        lines.append([variant.name, *(difference_text(gaps.get(name)) for name in names)])
    return [
        "What imbalance changes: the score after imbalanced training minus that after balanced training, paired by seed.",
        markdown_table(["method", *names], lines),
    ]


FIGURE3 = Experiment(
    name="figure3",
    title="Class imbalance and the features",
    source="section 3.2.3, figure 3, and appendix B",
    reported=(
        "Our copy has no numbers of the paper's figure; its text says that LoRA's and PiSSA's features degrade under imbalance and "
        "BA-LoRA's stay well separated."
    ),
    small=SMALL,
    paper=PAPER,
    limits=(
        "MiniLM-L6 (22 million parameters) on some 1,110 short pairs of STS-B, cut into three classes by their rated similarity "
        "(low: at most 1.5; middle: 2 to 3.25; high: 4 and above; pairs between are left out), in place of RoBERTa-base on MNLI's "
        "393 thousand. Either condition has as many rows; the rare class, low, has about ten of them. 570 evaluation rows, 190 of "
        "each class; two epochs where the paper has three. LoRA has a learning rate of its own, from a pilot on SST-2. The rows "
        "called ours start from a fitted head, which does something by itself: what their terms do is seen against ours: none, "
        "which has that head and no terms."
    ),
    show=show,
    prepare=THREE_CLASSES,
)
