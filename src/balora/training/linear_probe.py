"""A linear probe as the first head: fit the new classification head alone, on frozen features, before anything else learns.

A freshly made head is noise, and a teacher that ends in noise teaches noise (METHOD 6.5). The probe gives student and teacher
the best linear reading of what the pre-trained model already knows. How strongly it is held down is chosen by rows it has not
seen, on features of one size: under a fixed penalty the head of a model with small features would be held at nothing.
Shapes: N examples, d pooled size, D classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import nn

from balora.errors import BALoraError
from balora.models.adapted_model import evaluating
from balora.models.classifier_head import final_linear, pooled_features

MOST_ROWS = 8192
"""Enough to fit some thousand coefficients; more only costs time."""
_CHOOSING = 2048
"""Rows by which a classifier's penalty is chosen: it is a prior on the weights, and does not grow with the rows."""
_FOLDS = 4
_RIDGE = np.logspace(-2, 6, 33)
"""Penalties that are tried, on features of variance 1."""
_LOGISTIC = np.logspace(-5, 1, 7)
"""Likewise, one over the penalty, as scikit-learn has it."""


Gather = Callable[[tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


def fit_head(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    *,
    regression: bool,
    gather: Gather = lambda found: found,
) -> float:
    """Fit the final linear layer on pooled features of the model as it stands, and write it into the model.

    Logistic regression (for regression: ridge), on features centred and divided by their root mean square deviation. The
    penalty is that of the smallest loss on rows left out: each by itself for ridge, a quarter at a time otherwise.

    Args:
        model: An adapted classifier at its initial values.
        batches: With ``labels``; read until `MOST_ROWS` examples are seen.
        regression: Whether the labels are scores.
        gather: From features and labels of this process's batch to those of all processes' batches, in one order: each process
            fits the head, and on a share of the rows it would be another head in each.

    Returns:
        Accuracy, or R² for regression, on the rows it was fitted on.

    Raises:
        BALoraError: The rows hold one class only.
    """
    features_Nd, labels_N = _collect(model, batches, gather)
    head = final_linear(model)
    intercept = head.bias is not None
    # One scale for all features, not each its own: a feature that hardly moves would be rounding blown up.
    middle_d = features_Nd.mean(axis=0) if intercept else np.zeros(features_Nd.shape[1])
    scale = float(np.sqrt(((features_Nd - middle_d) ** 2).mean())) or 1.0
    seen_Nd = (features_Nd - middle_d) / scale
    if regression:
        fitted = RidgeCV(alphas=_RIDGE, fit_intercept=intercept).fit(seen_Nd, labels_N)
        weight_Dd, bias_D = fitted.coef_[None], np.atleast_1d(fitted.intercept_)
    else:
        fitted, weight_Dd, bias_D = _classifier(seen_Nd, labels_N, head.out_features, intercept)
    weight_Dd = weight_Dd / scale
    _write(head, weight_Dd, bias_D - weight_Dd @ middle_d)
    return float(fitted.score(seen_Nd, labels_N))


def _classifier(
    seen_Nd: np.ndarray, labels_N: np.ndarray, outputs: int, intercept: bool
) -> tuple[LogisticRegression, np.ndarray, np.ndarray]:
    """The fitted classifier, and its weight and bias for all of the head's outputs."""
    classes = np.unique(labels_N)
    if len(classes) < 2:
        raise BALoraError(
            "teacher_head: probe needs at least two classes among the training rows; use teacher_head: initial."
        )

    def fit(strength: float, rows: np.ndarray | slice) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000, fit_intercept=intercept).fit(seen_Nd[rows], labels_N[rows])

    # Rows of each class by turns into the folds, so that a rare one is not missing from all but one.
    order = np.argsort(labels_N, kind="stable")[:: -(-len(labels_N) // _CHOOSING)]
    folds = [order[first::_FOLDS] for first in range(_FOLDS)]
    losses = [
        sum(
            _loss(fit(strength, kept), seen_Nd[left_out], labels_N[left_out])
            for kept, left_out in _splits(folds, labels_N)
        )
        for strength in _LOGISTIC
    ]
    logistic = fit(float(_LOGISTIC[int(np.argmin(losses))]), slice(None))
    weight, bias = logistic.coef_, np.broadcast_to(logistic.intercept_, len(logistic.coef_))
    if len(classes) == 2:  # scikit-learn gives the log-odds of the second class; the head has a score for each
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full_Dd, full_D = np.zeros((outputs, weight.shape[1])), np.full(outputs, bias.min() - 5.0)
    full_Dd[classes], full_D[classes] = weight, bias  # a class that was not seen starts unlikely
    return logistic, full_Dd, full_D


def _splits(folds: list[np.ndarray], labels_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows left out, by turns, as long as there is something to tell apart and something to ask."""
    for number, left_out in enumerate(folds):
        kept = np.concatenate([fold for other, fold in enumerate(folds) if other != number])
        if len(left_out) and len(np.unique(labels_N[kept])) > 1:
            yield kept, left_out


def _loss(logistic: LogisticRegression, seen_Nd: np.ndarray, labels_N: np.ndarray) -> float:
    """Sum of the cross-entropies; a class that was not fitted on is as unlikely as anything gets."""
    place_N = np.searchsorted(logistic.classes_, labels_N).clip(max=len(logistic.classes_) - 1)
    chance_N = logistic.predict_proba(seen_Nd)[np.arange(len(labels_N)), place_N]
    chance_N = np.where(logistic.classes_[place_N] == labels_N, chance_N, 0.0)
    return float(-np.log(chance_N.clip(min=1e-9)).sum())


def _collect(model: nn.Module, batches: Iterable[dict[str, Any]], gather: Gather) -> tuple[np.ndarray, np.ndarray]:
    device = next(model.parameters()).device
    features, labels, rows = [], [], 0
    with evaluating(model):
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            with pooled_features(model, inputs) as caught:
                model(**inputs)
            features_Nd, labels_N = gather((caught[-1].detach(), batch["labels"].to(device)))
            features.append(features_Nd.double().cpu().numpy())
            labels.append(labels_N.cpu().numpy())
            rows += len(labels[-1])
            if rows >= MOST_ROWS:
                break
    return np.concatenate(features), np.concatenate(labels)


@torch.no_grad()
def _write(head: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    head.weight.copy_(torch.as_tensor(weight))
    if head.bias is not None:
        head.bias.copy_(torch.as_tensor(bias))
