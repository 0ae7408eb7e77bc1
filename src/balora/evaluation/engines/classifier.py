"""Predict classes or scores with a classification or regression head, and match a model's classes with a task's.

Shapes: B rows, T positions, D classes, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from balora.config.run_config import RunConfig
from balora.data.encoding import limit_of
from balora.errors import BALoraError
from balora.evaluation.model_under_test import Loaded
from balora.loading.pretrained import max_positions


class RowPredictor:
    """Base of the predictors: tokenizes rows into batches of similar length.

    Args:
        loaded: Model and tokenizer.
        max_length: Maximum number of tokens that the user's config allows; the model's positions may allow fewer.
        batch_size: Rows per batch.
    """

    def __init__(self, loaded: Loaded, max_length: int, batch_size: int) -> None:
        self.loaded = loaded
        self.batch_size = batch_size
        positions = max_positions(loaded.model.config)  # type: ignore[arg-type]
        self._max_tokens = limit_of(loaded.tokenizer, max_length, "", positions).tokens

    def _batches(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], Any]]:
        """Yield the indices and the padded tokens of each batch, the longest rows first."""
        tokenizer = self.loaded.tokenizer
        encoded = [tokenizer(*texts, truncation=True, max_length=self._max_tokens) for texts in rows]
        order = sorted(range(len(rows)), key=lambda index: (-len(encoded[index]["input_ids"]), index))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs: Any = tokenizer.pad([encoded[index] for index in batch], padding_side="right", return_tensors="pt")
            yield batch, inputs.to(self.loaded.device)


class ClassifierPredictor(RowPredictor):
    """Predictor that runs a classification or regression model.

    Args:
        loaded: Model and tokenizer.
        settings: Config of the run, whose maximum length is used; None for a plain model.
        batch_size: Rows per batch.

    Raises:
        BALoraError: The model has no classification head.
    """

    def __init__(self, loaded: Loaded, settings: RunConfig | None, batch_size: int) -> None:
        if loaded.task not in ("classification", "regression"):
            raise BALoraError(
                f"The tasks of GLUE need a classifier, and this is a model for {loaded.task}. Train one with task: "
                "classification (or regression), or give the directory of a ...ForSequenceClassification model."
            )
        super().__init__(loaded, 512 if settings is None else settings.data.max_length, batch_size)

    def classes_for(self, classes: Sequence[str], task: str) -> list[str]:
        """Return the task's name for each of the model's classes, in the model's order.

        Raises:
            BALoraError: The model has other classes than the task.
        """
        own = list(self.loaded.labels or ()) if self.loaded.task == "classification" else []
        return match_classes(own, classes, task)

    def require_scores(self, task: str) -> None:
        """Check that the model predicts one number.

        Raises:
            BALoraError: The model predicts classes.
        """
        if self.loaded.task != "regression":
            raise BALoraError(
                f"{task} is scored by a number per row, but the model predicts classes. Train a model with task: regression."
            )

    @torch.inference_mode()
    def predict(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """Compute the logits of every row.

        Args:
            rows: One text or a pair of texts per row.

        Yields:
            Index of the row and its D logits.
        """
        for batch, inputs in self._batches(rows):
            logits_BD = self.loaded.model(**inputs).logits.float()
            yield from zip(batch, logits_BD.tolist(), strict=True)

    @torch.inference_mode()
    def represent(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float], Tensor]]:
        """Compute logits and features of every row.

        The features are the last hidden state of the first token, which is [CLS] in encoders such as BERT.

        Args:
            rows: One text or a pair of texts per row.

        Yields:
            Index of the row, its D logits, and its features (d, float32, on the CPU).
        """
        for batch, inputs in self._batches(rows):
            outputs = self.loaded.model(**inputs, output_hidden_states=True)
            features_Bd = outputs.hidden_states[-1][:, 0].float().cpu()
            yield from zip(batch, outputs.logits.float().tolist(), features_Bd, strict=True)


def match_classes(own: Sequence[str], classes: Sequence[str], task: str) -> list[str]:
    """Return the task's name for each of a model's classes, in the model's order.

    The model's own names decide if they are the task's. Numbers and ``LABEL_0`` mean the task's order.

    Args:
        own: Classes of the model; empty if it predicts a score.
        classes: Classes of the task.
        task: Name of the task, for the error message.

    Raises:
        BALoraError: The model has other classes than the task.

    Example:
        >>> match_classes(["LABEL_0", "LABEL_1"], ["negative", "positive"], "sst2")
        ['negative', 'positive']
    """
    if len(own) == len(classes):
        keys = [name.removeprefix("LABEL_") for name in own]
        if sorted(keys) == sorted(classes):
            return keys
        if sorted(keys) == [str(number) for number in range(len(classes))]:
            return [classes[int(key)] for key in keys]
    model_classes = f"has {', '.join(own)}" if own else "predicts one score"
    raise BALoraError(
        f"{task} has the classes {', '.join(classes)}, but the model {model_classes}. Evaluate a model that was trained for "
        f"{task}."
    )


__all__ = ["ClassifierPredictor", "RowPredictor", "match_classes"]
