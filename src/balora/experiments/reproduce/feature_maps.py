"""Features of a classifier, their maps and scores, after training on balanced and on imbalanced classes (figure 3).

The features of the same balanced evaluation rows are extracted from every run. The runs of one seed are drawn as t-SNE maps; all
runs are scored: silhouette of the true classes, and recall of the class that is rare in the imbalanced training rows.

Shapes: N rows, D classes, d hidden size.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.manifold import TSNE
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score, silhouette_score
from torch import Tensor

from balora.data.examples import load_examples
from balora.errors import BALoraError
from balora.evaluation.engines.predictors import ClassifierPredictor
from balora.evaluation.model_under_test import ModelUnderTest
from balora.experiments.compare import Comparison, summarise
from balora.experiments.compare.statistics import Difference
from balora.experiments.compare.tables import difference_text, markdown_table
from balora.experiments.reproduce.experiment import Results, Study, family_of
from balora.experiments.reproduce.parts import findings, scores_table
from balora.experiments.reproduce.variants import FITTED_HEAD
from balora.files import apply_umask
from balora.plots.tsne import EmbeddingPanel, embedding_figure

BALANCED, IMBALANCED = "balanced", "imbalanced"
"""Names of the two studies."""
RARE = ("low", "contradiction")
"""Class that is rare after imbalance: at the small scale, in the paper."""
MAIN_SCORES = 4
"""Number of scores in the findings: the first ones of the table."""
PERPLEXITY, ITERATIONS, SEED = 30, 1000, 42
"""Settings of t-SNE, as in the paper (appendix B)."""
_BATCH = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Features, logits and labels of a run's evaluation rows."""

    features_Nd: Tensor
    """First token of the last hidden layer, in float16."""
    logits_ND: Tensor
    labels_N: Tensor
    """Index of each row's true class."""
    classes: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        """Measure how well the classes are separated and predicted.

        Returns:
            ``silhouette`` of the features with the true classes as clusters (cosine distance, in [-1, 1]), ``accuracy``, and for
            each class ``recall_CLASS`` and ``auc_CLASS``, the area under the ROC curve of the class's probability. The area shows
            whether the classes can be separated even if a class is never predicted. An undefined score is NaN.
        """
        labels_N, predicted_N = self.labels_N.numpy(), self.logits_ND.argmax(-1).numpy()
        features_Nd, probabilities_ND = self.features_Nd.float().numpy(), self.logits_ND.float().softmax(-1).numpy()
        indices = list(range(len(self.classes)))
        recalls = recall_score(labels_N, predicted_N, labels=indices, average=None, zero_division=np.nan)
        is_defined = 1 < len(np.unique(labels_N)) < len(labels_N)
        silhouette = silhouette_score(features_Nd, labels_N, metric="cosine") if is_defined else np.nan
        scores = {"silhouette": silhouette, "accuracy": accuracy_score(labels_N, predicted_N)}
        scores |= {f"recall_{name}": recall for name, recall in zip(self.classes, recalls, strict=True)}
        for n, name in enumerate(self.classes):
            own_N = labels_N == n
            scores[f"auc_{name}"] = roc_auc_score(own_N, probabilities_ND[:, n]) if 0 < own_N.mean() < 1 else np.nan
        return {name: float(score) for name, score in scores.items()}

    def map(self) -> np.ndarray:
        """Return the features in two dimensions (N × 2), by t-SNE.

        The perplexity is 30 as in the paper; with fewer than 91 rows it is (N - 1) / 3.

        Reference: van der Maaten & Hinton, Visualizing data using t-SNE, 2008.
        """
        perplexity = min(PERPLEXITY, (len(self.labels_N) - 1) / 3)
        tsne = TSNE(n_components=2, perplexity=perplexity, max_iter=ITERATIONS, random_state=SEED)
        return np.asarray(tsne.fit_transform(self.features_Nd.float().numpy()))


def load_or_extract(run: Path, path: Path) -> Features:
    """Read a run's features from ``path`` if it was made from the same weights; else extract them and write the file.

    Raises:
        BALoraError: The run cannot be loaded, is not a classification run, or has no evaluation rows.
    """
    model = ModelUnderTest(str(run))
    weights = str(model.identity["weights"])
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["weights"] == weights:
                return Features(
                    features_Nd=file.get_tensor("features"),
                    logits_ND=file.get_tensor("logits"),
                    labels_N=file.get_tensor("truth"),
                    classes=tuple(json.loads(metadata["classes"])),
                )
    features = _extract(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    tensors = {"features": features.features_Nd, "logits": features.logits_ND, "truth": features.labels_N}
    save_file(tensors, scratch, metadata={"weights": weights, "classes": json.dumps(features.classes)})
    apply_umask(scratch)
    scratch.replace(path)
    return features


def _extract(model: ModelUnderTest) -> Features:
    config = model.settings
    assert config is not None
    loaded = model.load(None)
    examples = load_examples(config.data, config.task, config.seed, head=loaded.labels)
    if examples.eval is None or examples.label_names is None:
        raise BALoraError(f"{model.name} has no evaluation rows with classes, so no features can be extracted from it.")
    texts: Sequence[Sequence[str]] = [
        [row[name] for name in ("text", "text_pair") if row.get(name) is not None] for row in examples.eval
    ]
    predictor = ClassifierPredictor(loaded, config, _BATCH)
    rows = sorted(predictor.represent(texts), key=lambda row: row[0])  # the predictor sorts rows by length
    return Features(
        features_Nd=torch.stack([features for _, _, features in rows]).half(),
        logits_ND=torch.tensor([logits for _, logits, _ in rows]),
        labels_N=torch.tensor(examples.eval["labels"]),
        classes=examples.label_names,
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """A study with the features of its finished runs."""

    study: Study
    comparison: Comparison
    """Comparison with the scores of the features in place of the runs' own scores."""
    features: Mapping[str, Features]
    """Features of each run by its name."""

    @classmethod
    def of(cls, study: Study, comparison: Comparison, directory: Path) -> Measured:
        """Extract and score the features of every finished run; they are cached below ``directory``."""
        assert comparison.directory is not None
        runs, cached = comparison.directory / "runs", directory / "features" / study.name
        finished = [row.run for row in comparison.rows if row.status == "finished"]
        features = {run: load_or_extract(runs / run, cached / f"{run}.safetensors") for run in finished}
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
                features, recall = one.features[row.run], row.scores[f"recall_{rare}"]
                caption = f"silhouette {row.scores['silhouette']:.2f}, recall of {rare} {recall:.2f}"
                points, labels = features.map(), features.labels_N.numpy()
                panels[row.variant] = EmbeddingPanel(title=row.variant, caption=caption, points=points, classes=labels)
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
    """Return the findings, the table of every score in both conditions, and the changes by imbalance.

    ``measured`` has one or both conditions. ``names`` are the scores in order; the findings mention the first four.
    """
    comparisons = {one.study.name: one.comparison for one in measured}

    def scored(names: Sequence[str]) -> Results:
        studies = [dataclasses.replace(one.study, score=name) for name in names for one in measured]
        return dataclasses.replace(results, studies=studies, comparisons=comparisons)

    shown = [(findings(), scored(names[:MAIN_SCORES])), (scores_table(), scored(names))]
    changes = _changes(measured, names[:MAIN_SCORES]) if len(measured) > 1 else {}
    family = family_of(shown) + tuple(gap for found in changes.values() for gap in found.values())
    parts = [text for part, own in shown for text in part(dataclasses.replace(own, family=family))]
    return [*parts, *_changes_text(changes, names[:MAIN_SCORES], dataclasses.replace(results, family=family))]


def _changes_text(changes: Mapping[str, Mapping[str, Difference]], names: Sequence[str], results: Results) -> list[str]:
    if not changes:
        return []
    lines = []
    for variant, found in changes.items():
        corrected = {name: results.correct(gap) for name, gap in found.items()}
        lines.append([variant, *(difference_text(corrected.get(name)) for name in names)])
    return [
        "Change by imbalance: the score after imbalanced training minus that after balanced training, paired by seed.",
        markdown_table(["method", *names], lines),
    ]


def _changes(measured: Sequence[Measured], names: Sequence[str]) -> dict[str, Mapping[str, Difference]]:
    """Return the score after imbalanced training minus that after balanced training, by method, then by score."""
    found: dict[str, Mapping[str, Difference]] = {}
    for variant in measured[0].study.variants:
        rows = [
            dataclasses.replace(row, variant=one.study.name)
            for one in measured
            for row in one.comparison.rows
            if row.variant == variant.name
        ]
        by_condition = {group.variant: group.differences for group in summarise(rows, names, BALANCED)}
        found[variant.name] = {
            name: dataclasses.replace(gap, name=f"change by imbalance: {variant.name}, {name}")
            for name, gap in by_condition.get(IMBALANCED, {}).items()
        }
    return found
