"""Results of one model on every item of a test set, and its scores as functions of them.

Every score here is a function of sums over the items: an accuracy is a ratio of two sums, Matthews' correlation a function of the
confusion counts, Pearson's correlation a function of five sums. A score of resampled items therefore costs one product with the
number of times that each item was drawn.

Shapes: N items, F features of an item, C classes, R resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Function of sums over items (… × F) that returns the score (…)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Results of one model, item by item."""

    ids: tuple[str, ...]
    """Names of the items. Two models are compared by item only if their names are equal, in the same order."""
    features_NF: np.ndarray
    """Numbers of each item, float64."""
    scores: Mapping[str, Statistic]
    """Scores by name, as functions of the sums of ``features_NF``."""
    binary: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Right or wrong by item (N booleans) for the scores that are a share of right items."""

    def value(self, score: str) -> float:
        """Return a score over all items."""
        return float(self.scores[score](self.features_NF.sum(0)))

    @classmethod
    def of_values(cls, ids: Sequence[str], values: Mapping[str, Sequence[float]]) -> Items:
        """Return items whose scores are means of values, such as right (1) and wrong (0).

        Example:
            >>> Items.of_values(["a", "b"], {"accuracy": [True, False]}).value("accuracy")
            0.5
        """
        columns = [np.asarray(value, dtype=np.float64) for value in values.values()]
        features_NF = np.stack([np.ones(len(ids)), *columns], axis=-1)
        binary = {
            name: column.astype(bool)
            for name, column in zip(values, columns, strict=True)
            if np.isin(column, (0.0, 1.0)).all()
        }
        return cls(tuple(ids), features_NF, {name: _ratio(n + 1, 0) for n, name in enumerate(values)}, binary)

    @classmethod
    def of_losses(cls, ids: Sequence[str], losses: Sequence[float], targets: Sequence[int]) -> Items:
        """Return items with the score ``loss``: the sum of the losses of all target tokens, divided by their number.

        Example:
            >>> Items.of_losses(["a", "b"], [2.0, 6.0], [1, 3]).value("loss")
            2.0
        """
        features_NF = np.stack([np.asarray(losses, np.float64), np.asarray(targets, np.float64)], axis=-1)
        return cls(tuple(ids), features_NF, {"loss": _ratio(0, 1)})

    @classmethod
    def of_classes(cls, ids: Sequence[str], labels: Sequence[Any], predicted: Sequence[Any]) -> Items:
        """Return items with the scores ``accuracy``, ``f1_macro``, ``matthews`` and ``recall_CLASS``.

        An answer that is no class counts as a wrong class of its own.

        Example:
            >>> items = Items.of_classes("abcd", ["no", "no", "yes", "yes"], ["no", "yes", "yes", "yes"])
            >>> items.value("accuracy"), items.value("recall_no"), round(items.value("matthews"), 4)
            (0.75, 0.5, 0.5774)
        """
        true_classes = sorted(set(labels), key=str)
        classes = [*true_classes, *sorted(set(predicted) - set(labels), key=str)]
        size = len(classes)
        cell_N = [classes.index(true) * size + classes.index(own) for true, own in zip(labels, predicted, strict=True)]
        features_NF = np.zeros((len(labels), size * size))
        features_NF[np.arange(len(labels)), cell_N] = 1.0
        functions: dict[str, Statistic] = {
            "accuracy": lambda sums: _accuracy(_confusion(sums, size)),
            "f1_macro": lambda sums: _f1_macro(_confusion(sums, size)),
            "matthews": lambda sums: _matthews(_confusion(sums, size)),
        }
        functions |= {f"recall_{name}": _recall(n, size) for n, name in enumerate(true_classes)}
        right_N = np.array([true == own for true, own in zip(labels, predicted, strict=True)])
        return cls(tuple(ids), features_NF, functions, {"accuracy": right_N})

    @classmethod
    def of_numbers(cls, ids: Sequence[str], labels: Sequence[float], predicted: Sequence[float]) -> Items:
        """Return items with the scores ``pearson`` and ``mse``. Spearman's correlation is not a function of sums."""
        x_N, y_N = np.asarray(labels, np.float64), np.asarray(predicted, np.float64)
        features_NF = np.stack([np.ones_like(x_N), x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N, (x_N - y_N) ** 2], -1)
        return cls(tuple(ids), features_NF, {"pearson": _pearson, "mse": _ratio(6, 0)})


def items_from_dict(content: Mapping[str, Any]) -> Items | None:
    """Read the content of a run's ``items.json``; return None if its kind is unknown."""
    ids, kind = content.get("ids", ()), content.get("kind")
    if kind == "losses":
        return Items.of_losses(ids, content["loss"], content["targets"])
    if kind == "classes":
        return Items.of_classes(ids, content["label"], content["predicted"])
    return Items.of_numbers(ids, content["label"], content["predicted"]) if kind == "numbers" else None


def items_of_result(result: Mapping[str, Any]) -> Items | None:
    """Return the items of a task's result file (``TASK.json``); None if the task has no scores by item.

    Several programs for one problem are one item. Scores that are not functions of the items are left out.
    """
    samples: Sequence[Mapping[str, Any]] = result.get("samples") or ()
    if not samples:
        return None
    ids, first = [str(sample["id"]) for sample in samples], samples[0]
    if "correct" in first:
        answered = [sample.get("extracted") is not None for sample in samples]
        return Items.of_values(ids, {"accuracy": [sample["correct"] for sample in samples], "answered": answered})
    if "passed" in first:
        problems: dict[str, list[bool]] = {}
        for name, sample in zip(ids, samples, strict=True):
            problems.setdefault(name.partition("/")[0], []).append(bool(sample["passed"]))
        return Items.of_values(list(problems), {"pass@1": [sum(own) / len(own) for own in problems.values()]})
    if "label" in first and all(_prediction(sample) is not None for sample in samples):
        labels, predicted = [sample["label"] for sample in samples], [_prediction(sample) for sample in samples]
        if isinstance(labels[0], str):
            return Items.of_classes(ids, labels, [str(value) for value in predicted])
        return Items.of_numbers(ids, labels, [float(str(value)) for value in predicted])
    return _harness_items(ids, samples, result["scores"])


def _harness_items(ids: Sequence[str], samples: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> Items | None:
    """Return the items of a task of lm-eval: it writes each metric of an item under the metric's name."""
    values = {}
    for name in scores:
        found = [sample.get(name, sample.get(name.partition(",")[0])) for sample in samples]
        if all(isinstance(value, int | float) for value in found):
            values[name] = [float(value) for value in found]
    return Items.of_values(ids, values) if values else None


def _prediction(sample: Mapping[str, Any]) -> Any:
    output = sample.get("output")
    if "predicted" in sample:
        return sample["predicted"]
    return output[0] if isinstance(output, list) and len(output) == 1 else None


def _ratio(numerator: int, denominator: int) -> Statistic:
    return lambda sums: sums[..., numerator] / sums[..., denominator]


def _confusion(sums: np.ndarray, size: int) -> np.ndarray:
    return sums.reshape(*sums.shape[:-1], size, size)


def _diagonal(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _accuracy(confusion: np.ndarray) -> np.ndarray:
    return np.asarray(_diagonal(confusion).sum(-1) / confusion.sum((-2, -1)))


def _recall(index: int, size: int) -> Statistic:
    def recall(sums: np.ndarray) -> np.ndarray:
        row = _confusion(sums, size)[..., index, :]
        return np.asarray(_quotient(row[..., index], row.sum(-1)))

    return recall


def _f1_macro(confusion: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the classes that occur, as scikit-learn's ``f1_score(average="macro")``."""
    both = confusion.sum(-1) + confusion.sum(-2)
    return np.asarray(_quotient(2 * _diagonal(confusion), both).sum(-1) / (both > 0).sum(-1))


def _matthews(confusion: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation; 0 if only one class is predicted or true, as in scikit-learn."""
    true, own, total = confusion.sum(-1), confusion.sum(-2), confusion.sum((-2, -1))
    covariance = _diagonal(confusion).sum(-1) * total - (true * own).sum(-1)
    spread = (total**2 - (own**2).sum(-1)) * (total**2 - (true**2).sum(-1))
    return _quotient(covariance, np.sqrt(np.maximum(spread, 0.0)))


def _pearson(sums: np.ndarray) -> np.ndarray:
    count, x, y, xx, yy, xy = (sums[..., n] for n in range(6))
    spread = (count * xx - x * x) * (count * yy - y * y)
    return np.where(spread > 0, _quotient(count * xy - x * y, np.sqrt(np.maximum(spread, 0.0))), np.nan)


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=np.float64), where=denominator > 0)
