"""Linear probe: fit the new classification head on frozen features before training starts.

A new head is random, so a teacher with it would be random as well (method.md, departure 5). With the fitted head, student
and teacher start from the best linear classifier on the features of the pre-trained model. The features are scaled and the
penalty is chosen by cross-validation: under a fixed penalty, the head of a model with small features would stay near zero.
Shapes: N examples, d pooled size, D classes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import nn

from balora.errors import BALoraError
from balora.models.adapted_model import evaluating
from balora.models.classifier_head import final_linear, pooled_features

MAX_ROWS = 8192
"""Largest number of rows for the fit: enough for some thousand coefficients."""
_PENALTY_ROWS = 2048
"""Largest number of rows for the choice of a classifier's penalty. A penalty is a prior on the weights, so a sample is enough."""
_FOLDS = 4
_RIDGE = np.logspace(-2, 6, 33)
"""Candidate penalties of ridge regression, for features of variance 1."""
_LOGISTIC = np.logspace(-5, 1, 7)
"""Candidate inverse penalties of logistic regression (scikit-learn's C), for features of variance 1."""

Gather = Callable[[tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


def fit_head(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    *,
    regression: bool,
    gather: Gather = lambda features_and_labels: features_and_labels,
) -> float:
    """Fit the final linear layer on pooled features of the model with its present weights, and write it into the model.

    Fit a logistic regression (for regression: ridge) on features that are centred and divided by their root mean square
    deviation. The penalty has the smallest loss in cross-validation: leave-one-out for ridge, four folds for classes.

    Args:
        model: Adapted classifier at its initial values.
        batches: Batches with ``labels``; read until `MAX_ROWS` examples are seen.
        regression: Whether the labels are scores.
        gather: Function that turns features and labels of this process into those of all processes, in the same order
            everywhere. Every process fits the head, and the heads must not differ.

    Returns:
        Accuracy, or R² for regression, on the rows of the fit.

    Raises:
        BALoraError: All rows have the same class.
    """
    features_Nd, labels_N = _collect(model, batches, gather)
    head = final_linear(model)
    intercept = head.bias is not None
    # One scale for all features: with a scale for each, rounding noise of nearly constant features would be amplified.
    mean_d = features_Nd.mean(axis=0) if intercept else np.zeros(features_Nd.shape[1])
    scale = float(np.sqrt(((features_Nd - mean_d) ** 2).mean())) or 1.0
    scaled_Nd = (features_Nd - mean_d) / scale
    if regression:
        fitted = RidgeCV(alphas=_RIDGE, fit_intercept=intercept).fit(scaled_Nd, labels_N)
        weight_Dd, bias_D = fitted.coef_[None], np.atleast_1d(fitted.intercept_)
    else:
        fitted, weight_Dd, bias_D = _fit_classifier(scaled_Nd, labels_N, head.out_features, intercept)
    weight_Dd = weight_Dd / scale
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(weight_Dd))
        if intercept:
            head.bias.copy_(torch.as_tensor(bias_D - weight_Dd @ mean_d))
    return float(fitted.score(scaled_Nd, labels_N))


def _fit_classifier(
    scaled_Nd: np.ndarray, labels_N: np.ndarray, outputs: int, intercept: bool
) -> tuple[LogisticRegression, np.ndarray, np.ndarray]:
    """Return the fitted classifier, and its weight and bias for all outputs of the head."""
    classes = np.unique(labels_N)
    if len(classes) < 2:
        raise BALoraError(
            "teacher_head: probe needs at least two classes among the training rows; use teacher_head: initial."
        )

    def fit(inverse_penalty: float, rows: np.ndarray | slice) -> LogisticRegression:
        model = LogisticRegression(C=inverse_penalty, max_iter=1000, fit_intercept=intercept)
        return model.fit(scaled_Nd[rows], labels_N[rows])

    # The rows of each class go to the folds in turn, so that a rare class is not in one fold only.
    order = np.argsort(labels_N, kind="stable")[:: -(-len(labels_N) // _PENALTY_ROWS)]
    folds = [order[first::_FOLDS] for first in range(_FOLDS)]
    splits = [(np.concatenate(folds[:n] + folds[n + 1 :]), fold) for n, fold in enumerate(folds)]
    # Skip a split without validation rows, or with one class to fit on.
    splits = [(train, test) for train, test in splits if len(test) and len(np.unique(labels_N[train])) > 1]
    losses = [sum(_loss(fit(c, train), scaled_Nd[test], labels_N[test]) for train, test in splits) for c in _LOGISTIC]
    logistic = fit(float(_LOGISTIC[int(np.argmin(losses))]), slice(None))
    weight, bias = logistic.coef_, np.broadcast_to(logistic.intercept_, len(logistic.coef_))
    if len(classes) == 2:  # scikit-learn gives the log-odds of the second class; the head has a logit for each
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full_Dd, full_D = np.zeros((outputs, weight.shape[1])), np.full(outputs, bias.min() - 5.0)
    full_Dd[classes], full_D[classes] = weight, bias  # a class without rows is unlikely at first
    return logistic, full_Dd, full_D


def _loss(logistic: LogisticRegression, scaled_Nd: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the sum of the cross-entropies; a class that was not fitted gets the smallest probability."""
    column_N = np.searchsorted(logistic.classes_, labels_N).clip(max=len(logistic.classes_) - 1)
    probability_N = logistic.predict_proba(scaled_Nd)[np.arange(len(labels_N)), column_N]
    probability_N = np.where(logistic.classes_[column_N] == labels_N, probability_N, 0.0)
    return float(-np.log(probability_N.clip(min=1e-9)).sum())


def _collect(model: nn.Module, batches: Iterable[dict[str, Any]], gather: Gather) -> tuple[np.ndarray, np.ndarray]:
    """Return the pooled features and the labels of the first `MAX_ROWS` examples or a few more."""
    device = next(model.parameters()).device
    features, labels, rows = [], [], 0
    with evaluating(model):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            with pooled_features(model, inputs) as captured:
                model(**inputs)
            features_Nd, labels_N = gather((captured[-1].detach(), batch["labels"].to(device)))
            features.append(features_Nd.double().cpu().numpy())
            labels.append(labels_N.cpu().numpy())
            rows += len(labels[-1])
            if rows >= MAX_ROWS:
                break
    return np.concatenate(features), np.concatenate(labels)
