"""Logits and features of a classifier over texts, and whose classes are whose.

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
from balora.evaluation.model_under_test import LoadedModel
from balora.loading.pretrained import max_positions


class Predictor:
    """Runs a classification or regression model.

    Args:
        loaded: The model.
        settings: The run's, whose length limit is kept; None for a plain model.
        batch_size: Rows at once.

    Raises:
        BALoraError: The model has no classification head.
    """

    def __init__(self, loaded: LoadedModel, settings: RunConfig | None, batch_size: int) -> None:
        if loaded.task not in ("classification", "regression"):
            raise BALoraError(
                f"GLUE's tasks need a classifier, and this is a model for {loaded.task}. Train one with task: classification "
                "(or regression), or give a folder with a ...ForSequenceClassification model."
            )
        self.loaded = loaded
        self.batch_size = batch_size
        positions = max_positions(loaded.model.config)  # type: ignore[arg-type]
        asked = 512 if settings is None else settings.data.max_length
        self._limit = limit_of(loaded.tokenizer, asked, "", positions).tokens

    def classes_for(self, classes: Sequence[str], task: str) -> list[str]:
        """The task's name for each of the model's classes, in the model's order.

        The model's own names decide where they are the task's; numbers and ``LABEL_0`` mean the task's order.

        Raises:
            BALoraError: The model has other classes than the task.
        """
        return match_classes(
            list(self.loaded.labels or ()) if self.loaded.task == "classification" else [], classes, task
        )

    def require_scores(self, task: str) -> list[str]:
        """Make sure that the model predicts one number.

        Raises:
            BALoraError: It predicts classes.
        """
        if self.loaded.task != "regression":
            raise BALoraError(
                f"{task} is scored by a number per row, and the model predicts classes. Train task: regression."
            )
        return ["score"]

    @torch.inference_mode()
    def predict(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """Logits of every row, in batches of like length.

        Args:
            rows: One text or a pair each.

        Yields:
            The row's number and its D logits.
        """
        for batch, inputs in self._batches(rows):
            logits_BD = self.loaded.model(**inputs).logits.float()
            yield from zip(batch, logits_BD.tolist(), strict=True)

    @torch.inference_mode()
    def represent(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float], Tensor]]:
        """Logits and features of every row: the last hidden layer's first token, [CLS] in BERT's kind of encoder.

        Args:
            rows: One text or a pair each.

        Yields:
            The row's number, its D logits, and its features (d, float32, on the CPU).
        """
        for batch, inputs in self._batches(rows):
            outputs = self.loaded.model(**inputs, output_hidden_states=True)
            features_Bd = outputs.hidden_states[-1][:, 0].float().cpu()
            yield from zip(batch, outputs.logits.float().tolist(), features_Bd, strict=True)

    def _batches(self, rows: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], Any]]:
        """The rows' numbers and tokens, the longest first."""
        tokenizer = self.loaded.tokenizer
        encoded = [tokenizer(*texts, truncation=True, max_length=self._limit) for texts in rows]
        order = sorted(range(len(rows)), key=lambda number: (-len(encoded[number]["input_ids"]), number))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs: Any = tokenizer.pad(
                [encoded[number] for number in batch], padding_side="right", return_tensors="pt"
            )
            yield batch, inputs.to(self.loaded.device)


def match_classes(own: Sequence[str], classes: Sequence[str], task: str) -> list[str]:
    """The task's name for each of a model's classes, in the model's order.

    Args:
        own: The model's names; none where it predicts a score.
        classes: The task's.
        task: Its name, for the error.

    Raises:
        BALoraError: They are other classes.

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
    raise BALoraError(
        f"{task} has the classes {', '.join(classes)} and the model {', '.join(own) or 'predicts one score'}. Evaluate a "
        f"model that was trained for {task}."
    )


__all__ = ["Predictor", "match_classes"]
