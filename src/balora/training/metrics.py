"""Metrics of an evaluation during training: accuracy for classes, correlations for scores; for generation only the loss."""

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

SCORES = {"classification": ("accuracy", "f1_macro", "matthews"), "regression": ("pearson", "spearman", "mse")}
"""Names of the metrics by task, in addition to the loss of every evaluation."""


def metrics_for(task: str) -> Callable[[EvalPrediction], dict[str, float]] | None:
    """Return the metrics of a task as the Trainer's ``compute_metrics``; None for generation."""
    return {"classification": classification_scores, "regression": regression_scores}.get(task)


def classification_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Compute accuracy, macro-averaged F1 and Matthews' correlation of the most likely class."""
    return class_scores(np.asarray(prediction.predictions).argmax(-1), np.asarray(prediction.label_ids))


def class_scores(predicted: np.ndarray, labels: np.ndarray, classes: int | None = None) -> dict[str, float]:
    """Compute the metrics of class numbers; F1 is averaged over the first ``classes``, default: over those that occur."""
    averaged = None if classes is None else list(range(classes))
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1_macro": float(f1_score(labels, predicted, labels=averaged, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, predicted)),
    }


def regression_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Compute Pearson's and Spearman's correlation (NaN if predictions or labels are constant) and the mean squared error."""
    predicted, labels = np.asarray(prediction.predictions).reshape(-1), np.asarray(prediction.label_ids).reshape(-1)
    constant = np.ptp(predicted) == 0 or np.ptp(labels) == 0
    return {
        "pearson": float("nan") if constant else float(pearsonr(predicted, labels).statistic),
        "spearman": float("nan") if constant else float(spearmanr(predicted, labels).statistic),
        "mse": float(np.mean((predicted - labels) ** 2)),
    }
