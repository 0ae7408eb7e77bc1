"""Scores of an evaluation during training: accuracy for classes, correlations for scores. Generation has its loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

SCORES = {"classification": ("accuracy", "f1_macro", "matthews"), "regression": ("pearson", "spearman", "mse")}
"""Their names by task, beside the loss that every evaluation has."""


def metrics_for(task: str) -> Callable[[EvalPrediction], dict[str, float]] | None:
    """The scores that fit a task, as the Trainer's ``compute_metrics``; None for generation."""
    return {"classification": classification_scores, "regression": regression_scores}.get(task)


def classification_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, macro-averaged F1 and Matthews' correlation of the likeliest class."""
    return class_scores(np.asarray(prediction.predictions).argmax(-1), np.asarray(prediction.label_ids))


def class_scores(found: np.ndarray, truth: np.ndarray, classes: int | None = None) -> dict[str, float]:
    """Scores of class numbers; F1 is averaged over the first ``classes``, by default over those that occur."""
    labels = None if classes is None else list(range(classes))
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "f1_macro": float(f1_score(truth, found, labels=labels, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(truth, found)),
    }


def regression_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Pearson's and Spearman's correlation, NaN where all predictions are one, and the mean squared error."""
    found, truth = np.asarray(prediction.predictions).reshape(-1), np.asarray(prediction.label_ids).reshape(-1)
    constant = np.ptp(found) == 0 or np.ptp(truth) == 0
    return {
        "pearson": float("nan") if constant else float(pearsonr(found, truth).statistic),
        "spearman": float("nan") if constant else float(spearmanr(found, truth).statistic),
        "mse": float(np.mean((found - truth) ** 2)),
    }
