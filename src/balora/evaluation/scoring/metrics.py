"""Metrics of classification and regression, computed by scikit-learn and scipy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef, recall_score


def classification_metrics(truth: Sequence[str], found: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Compare the true and the predicted class of every row.

    Returns:
        ``accuracy``, ``matthews`` in [-1, 1], ``f1_macro``, for two classes ``f1`` of the second class, ``recall`` by
        class (None for a class without rows), ``classes``, ``confusion`` with true classes as rows, and ``rows``.

    Example:
        >>> scores = classification_metrics(["no", "no", "yes", "yes"], ["no", "yes", "yes", "yes"], ["no", "yes"])
        >>> scores["accuracy"], scores["recall"], scores["confusion"]
        (0.75, {'no': 0.5, 'yes': 1.0}, [[1, 1], [0, 2]])
    """
    names = list(classes)
    f1 = f1_score(truth, found, labels=names, average=None, zero_division=0)
    recalls = recall_score(truth, found, labels=names, average=None, zero_division=np.nan)
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "matthews": float(matthews_corrcoef(truth, found)),
        "f1_macro": float(f1.mean()),
        **({"f1": float(f1[1])} if len(names) == 2 else {}),
        "recall": {name: None if np.isnan(value) else float(value) for name, value in zip(names, recalls, strict=True)},
        "classes": names,
        "confusion": confusion_matrix(truth, found, labels=names).tolist(),
        "rows": len(truth),
    }


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
