"""One micro-batch through teacher, student and objective, for classifiers and regressors.

Shapes: N examples, K of them with the consistency term, D classes, d pooled size.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from balora.losses import LossParts
from balora.losses.collectives import world_size
from balora.models.classifier_head import pooled_features
from balora.objective import Objective
from balora.teacher.logit_cache import LogitCache
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.subsampling import SequenceMask, select_rows
from balora.training.train_step import TASK_LOSS_ONLY

logger = logging.getLogger("balora")


class ClassificationStep:
    """`TrainStep` of sequence classifiers and regressors: logits, and pooled features if a target needs them."""

    def __init__(
        self, model: nn.Module, objective: Objective, teacher: PretrainedTeacher, logit_cache: LogitCache | None = None
    ) -> None:
        self.model = model
        self.objective = objective
        self.teacher = teacher
        self.logit_cache = logit_cache
        self._batch_size_checked = False

    def count_items(self, labels: Tensor) -> Tensor:
        """Return the number of labelled examples as a scalar tensor."""
        return torch.tensor(labels.shape[0]) if labels.is_floating_point() else labels.ne(-100).sum()

    def train(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        *,
        num_items: Tensor | None,
        share: float,
        sequence_mask: SequenceMask | None = None,
    ) -> tuple[LossParts, dict[str, Tensor], Any]:
        """Compute the loss of one micro-batch (see `TrainStep`); the further statistic is the logits' variance (METHOD 6.15)."""
        sequence_mask = sequence_mask or SequenceMask()
        skipped = weights["consistency"] > 0 and sequence_mask.is_empty
        if skipped:
            weights = {**weights, "consistency": 0.0}
        teacher_KD = (
            self._teacher_logits(model, inputs, len(labels), sequence_mask) if weights["consistency"] > 0 else None
        )
        features_Nd = None
        if self.objective.needs_features:
            with pooled_features(self.model, inputs) as captured:
                outputs = model(**inputs)
            features_Nd = captured[-1]
        else:
            outputs = model(**inputs)
        logits_ND = outputs.logits
        self._check_batch_size(logits_ND.shape[0])
        parts = self.objective.classification(
            logits_ND,
            labels,
            teacher_KD,
            features_Nd,
            weights,
            num_items=num_items,
            share=share,
            keep_prob=sequence_mask.keep_prob,
            consistency_rows=None if sequence_mask.rows is None else sequence_mask.rows.to(logits_ND.device),
        )
        if skipped:  # a micro-batch without a selected sequence still counts in the mean of the term
            parts = dataclasses.replace(parts, consistency=torch.zeros_like(parts.task))
        variance = logits_ND.detach().float().var(0, correction=0).mean()
        return parts, {"logit_variance": variance}, outputs

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool
    ) -> tuple[Tensor, Any]:
        """Return the mean task loss of a batch, and outputs with logits."""
        logits = model(**inputs).logits
        parts = self.objective.classification(logits, labels, None, None, TASK_LOSS_ONLY)
        return parts.loss, SequenceClassifierOutput(loss=parts.loss, logits=logits)

    def target_logits(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        """Return the logits of all examples, N × D."""
        logits_ND: Tensor = model(**inputs).logits
        return logits_ND

    def _teacher_logits(
        self, model: nn.Module, inputs: dict[str, Any], count: int, sequence_mask: SequenceMask
    ) -> Tensor:
        """Return the pre-trained model's logits of the selected rows, from the cache if it has them; K × D."""

        def compute(rows: list[int]) -> Tensor:
            with self.teacher.active():
                logits_KD: Tensor = model(**select_rows(inputs, torch.tensor(rows), count)).logits
                return logits_KD

        rows = sequence_mask.row_numbers(count)
        if self.logit_cache is None or sequence_mask.row_keys is None or len(sequence_mask.row_keys) != count:
            return compute(rows)
        keys = [sequence_mask.row_keys[row] for row in rows]
        return self.logit_cache.get_or_compute(keys, lambda missing: compute([rows[index] for index in missing]))

    def _check_batch_size(self, rows: int) -> None:
        """Warn once if the batches are too small for the spectral term to have a gradient (METHOD 6.3)."""
        config = self.objective.config
        rows *= world_size() if self.objective.across_processes else 1
        if not self._batch_size_checked and config.spectral > 0 and config.spectral_rank >= rows:
            notice = (
                f"The spectral term is constant: with {rows} rows in a batch and spectral_rank {config.spectral_rank} the ratio of "
                "eq. 7 is 1 whatever the model does, so its gradient is 0. "
                f"Choose spectral_rank below {rows}, or a larger per_device_train_batch_size."
            )
            logger.warning(notice)
            self.objective.notices.append(notice)
        self._batch_size_checked = True
