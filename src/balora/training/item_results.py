"""Keep a run's result on every evaluation row, so that two runs can be compared row by row.

``items.json`` in the run directory has the rows' names and, by kind, ``label`` and ``predicted`` (``classes``, ``numbers``) or
``loss`` and ``targets`` (``losses``: sum over a row's target tokens in nats, and their number). A row's name is a digest of
what the model reads and answers, so that rows of other data are noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction

from balora.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from balora.training.trainer import BALoraTrainer

ITEMS = "items.json"


class ItemRecorder:
    """Recorder of one evaluation of a trainer: its predictions, or the losses of its rows.

    ``read`` turns an array of answers as tokens into class numbers or scores; None for a classifier or a regression model.
    """

    def __init__(self, trainer: BALoraTrainer, task: str, read: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self.trainer, self.task, self.read = trainer, task, read
        self.prediction: EvalPrediction | None = None
        self.losses: list[float] = []
        self.targets: list[int] = []

    def evaluate(self) -> dict[str, float]:
        """Evaluate and return the Trainer's metrics."""
        compute, step = self.trainer.compute_metrics, self.trainer.step
        if compute is not None:

            def compute_and_keep(prediction: EvalPrediction) -> dict[str, float]:
                self.prediction = prediction
                return compute(prediction)

            self.trainer.compute_metrics = compute_and_keep
        elif self.trainer.accelerator.num_processes == 1:  # several processes would each keep a part of the rows
            step.row_losses = self._keep_losses
        try:
            return self.trainer.evaluate()
        finally:
            self.trainer.compute_metrics, step.row_losses = compute, None

    def write(self, directory: Path) -> None:
        """Write ``items.json``; nothing if there is no result for every row, or a loss or number is not finite."""
        found = self._content()
        rows: Any = self.trainer.eval_dataset
        values = [value for key in ("label", "predicted", "loss") for value in found.get(key, ())]
        if not found or len(next(iter(found.values()))) != len(rows) or not all(map(math.isfinite, values)):
            return
        kind = "losses" if "loss" in found else "numbers" if isinstance(found["label"][0], float) else "classes"
        content = {"kind": kind, "ids": [_row_name(row) for row in rows], **found}
        write_text(directory / ITEMS, json.dumps(content) + "\n")

    def _keep_losses(self, losses_B: Tensor, targets_B: Tensor) -> None:
        self.losses += [round(value, 6) for value in losses_B.tolist()]
        self.targets += targets_B.tolist()

    def _content(self) -> dict[str, list[Any]]:
        if self.prediction is None:
            return {"loss": self.losses, "targets": self.targets} if self.losses else {}
        predicted, labels = np.asarray(self.prediction.predictions), np.asarray(self.prediction.label_ids)
        if self.read is not None:
            predicted, labels = self.read(predicted), self.read(labels)
        elif self.task == "classification":
            predicted = predicted.argmax(-1)
        is_score = not np.array_equal(labels, labels.astype(int)) or self.task == "regression"
        convert: Callable[[Any], Any] = float if is_score else int
        pairs = {"label": labels.reshape(-1), "predicted": predicted.reshape(-1)}
        return {name: [convert(value) for value in column.tolist()] for name, column in pairs.items()}


def _row_name(row: dict[str, Any]) -> str:
    parts: list[Any] = [row.get(name) for name in ("input_ids", "labels", "label")]
    plain = [part.tolist() if hasattr(part, "tolist") else part for part in parts]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]
