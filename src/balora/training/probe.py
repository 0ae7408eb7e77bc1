"""A linear probe as the first head: fit the new classification head alone, on frozen features, before anything else learns.

A freshly made head is noise, and a teacher that ends in noise teaches noise (METHOD 6.5). The probe gives student and teacher
the best linear reading of what the pre-trained model already knows. Shapes: N examples, d pooled size, D classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from balora.errors import BALoraError
from balora.methods.start import evaluating
from balora.pooled import final_linear, pooled_features

MOST_ROWS = 8192
"""Enough to fit some thousand coefficients; more only costs time."""


def fit_head(model: nn.Module, batches: Iterable[dict[str, Any]], *, regression: bool) -> float:
    """Fit the final linear layer on pooled features of the model as it stands, and write it into the model.

    Logistic regression (for regression: ridge) with scikit-learn's default penalty.

    Args:
        model: An adapted classifier at its initial values.
        batches: With ``labels``; read until `MOST_ROWS` examples are seen.
        regression: Whether the labels are scores.

    Returns:
        Accuracy, or R² for regression, on the rows it was fitted on.

    Raises:
        BALoraError: The rows hold one class only.
    """
    features_Nd, labels_N = _collect(model, batches)
    head = final_linear(model)
    if regression:
        ridge = Ridge(fit_intercept=head.bias is not None).fit(features_Nd, labels_N)
        _write(head, ridge.coef_[None], np.atleast_1d(ridge.intercept_))
        return float(ridge.score(features_Nd, labels_N))
    classes = np.unique(labels_N)
    if len(classes) < 2:
        raise BALoraError(
            "teacher_head: probe needs at least two classes among the training rows; use teacher_head: initial."
        )
    logistic = LogisticRegression(max_iter=1000, fit_intercept=head.bias is not None).fit(features_Nd, labels_N)
    weight, bias = logistic.coef_, logistic.intercept_
    if len(classes) == 2:  # scikit-learn gives the log-odds of the second class; the head has a score for each
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full = np.zeros((head.out_features, weight.shape[1])), np.full(head.out_features, bias.min() - 5.0)
    full[0][classes], full[1][classes] = weight, bias  # a class that was not seen starts unlikely
    _write(head, *full)
    return float(logistic.score(features_Nd, labels_N))


def _collect(model: nn.Module, batches: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    device = next(model.parameters()).device
    features, labels, rows = [], [], 0
    with evaluating(model):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            with pooled_features(model, inputs) as caught:
                model(**inputs)
            features.append(caught[-1].float().cpu().numpy())
            labels.append(batch["labels"].cpu().numpy())
            rows += len(labels[-1])
            if rows >= MOST_ROWS:
                break
    return np.concatenate(features), np.concatenate(labels)


@torch.no_grad()
def _write(head: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    head.weight.copy_(torch.as_tensor(weight))
    if head.bias is not None:
        head.bias.copy_(torch.as_tensor(bias))
