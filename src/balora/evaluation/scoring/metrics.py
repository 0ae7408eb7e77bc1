"""Metrics of classification and regression, computed by scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef, recall_score


def classification_metrics(truth: Sequence[str], found: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Return the confusion matrix and the metrics that follow from it.

    Args:
        truth: True class of every row.
        found: Predicted class of every row.
        classes: All classes, in the order of the matrix.

    Returns:
        ``accuracy``, ``matthews`` in [-1, 1], ``f1_macro``, for two classes ``f1`` of the second class, ``recall`` by
        class (None for a class without rows), ``classes``, ``confusion`` with true classes as rows, and ``rows``.

    Example:
        >>> scores = classification_metrics(["no", "no", "yes", "yes"], ["no", "yes", "yes", "yes"], ["no", "yes"])
        >>> scores["accuracy"], scores["recall"], scores["confusion"]
        (0.75, {'no': 0.5, 'yes': 1.0}, [[1, 1], [0, 2]])
    """
    names = list(classes)
    recalls = recall_score(truth, found, labels=names, average=None, zero_division=np.nan)
    scores: dict[str, Any] = {
        "accuracy": float(accuracy_score(truth, found)),
        "matthews": float(matthews_corrcoef(truth, found)),
        "f1_macro": float(f1_score(truth, found, labels=names, average="macro", zero_division=0)),
    }
    if len(names) == 2:
        positive = [name == names[1] for name in truth], [name == names[1] for name in found]
        scores["f1"] = float(f1_score(*positive, zero_division=0))
    scores["recall"] = {
        name: None if np.isnan(value) else float(value) for name, value in zip(names, recalls, strict=True)
    }
    scores["classes"] = names
    scores["confusion"] = confusion_matrix(truth, found, labels=names).tolist()
    return {**scores, "rows": len(truth)}


def regression_metrics(truth: Sequence[float], found: Sequence[float]) -> dict[str, Any]:
    """Return Pearson's and Spearman's correlation and the mean squared error.

    Returns:
        ``pearson`` and ``spearman`` in [-1, 1], None if one side is constant or there is a single row; ``mse`` and ``rows``.

    Example:
        >>> scores = regression_metrics([1.0, 2.0, 3.0], [2.0, 4.0, 9.0])
        >>> round(scores["pearson"], 3), scores["spearman"]
        (0.971, 1.0)
    """
    constant = len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(found) == 0
    return {
        "pearson": None if constant else float(pearsonr(truth, found).statistic),
        "spearman": None if constant else float(spearmanr(truth, found).statistic),
        "mse": float(np.mean((np.asarray(truth) - np.asarray(found)) ** 2)),
        "rows": len(truth),
    }
