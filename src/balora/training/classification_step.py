"""One micro-batch through teacher, student and objective, for classifiers and regressors.

Shapes: N examples, K of them held to the teacher, D classes, d pooled size.
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
from balora.models.adapted_model import evaluating
from balora.models.classifier_head import pooled_features
from balora.objective import Objective
from balora.regularizers import consistency
from balora.teacher.logit_cache import LogitCache
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.initial_checks import NO_TERMS, rounding
from balora.training.subsampling import SequenceMask, select_rows

logger = logging.getLogger("balora")


class ClassificationStep:
    """Sequence classifiers and regressors: logits, and pooled features where a target asks for them."""

    def __init__(
        self, model: nn.Module, objective: Objective, teacher: PretrainedTeacher, memory: LogitCache | None = None
    ) -> None:
        self.model = model
        self.objective = objective
        self.teacher = teacher
        self.memory = memory
        self._rows_checked = False

    def count_items(self, labels: Tensor) -> Tensor:
        """Labelled examples of a micro-batch, as a scalar tensor."""
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
        held: SequenceMask | None = None,
    ) -> tuple[LossParts, dict[str, Tensor], Any]:
        """LossParts of one micro-batch, the logits' variance (METHOD 6.15), and the model's outputs."""
        held = held or SequenceMask()
        skipped = weights["consistency"] > 0 and held.nobody
        if skipped:
            weights = {**weights, "consistency": 0.0}
        teacher_KD = self._teacher(model, inputs, len(labels), held) if weights["consistency"] > 0 else None
        features_Nd = None
        if self.objective.needs_features:
            with pooled_features(self.model, inputs) as caught:
                outputs = model(**inputs)
            features_Nd = caught[-1]
        else:
            outputs = model(**inputs)
        logits_ND = outputs.logits
        self._check_rows(logits_ND.shape[0])
        parts = self.objective.classification(
            logits_ND,
            labels,
            teacher_KD,
            features_Nd,
            weights,
            num_items=num_items,
            share=share,
            keep_prob=held.keep,
            consistency_rows=None if held.rows is None else held.rows.to(logits_ND.device),
        )
        if skipped:  # of nobody the term is 0, and counts as that in the mean
            parts = dataclasses.replace(parts, consistency=torch.zeros_like(parts.task))
        spread = logits_ND.detach().float().var(0, correction=0).mean()
        return parts, {"logit_variance": spread}, outputs

    def _teacher(self, model: nn.Module, inputs: dict[str, Any], count: int, held: SequenceMask) -> Tensor:
        """The pre-trained model's logits of the rows that are held, from memory where it has them."""

        def ask(rows: list[int]) -> Tensor:
            with self.teacher.active():
                logits_KD: Tensor = model(**select_rows(inputs, torch.tensor(rows), count)).logits
                return logits_KD

        rows = held.numbers(count)
        if self.memory is None or held.keys is None or len(held.keys) != count:
            return ask(rows)
        return self.memory.recall([held.keys[row] for row in rows], lambda new: ask([rows[at] for at in new]))

    def _check_rows(self, rows: int) -> None:
        """Say once when the batches are too small for the spectral term to move (METHOD 6.3)."""
        config = self.objective.config
        rows *= world_size() if self.objective.across_processes else 1
        if not self._rows_checked and config.spectral > 0 and config.spectral_rank >= rows:
            notice = (
                f"The spectral term is constant: with {rows} rows in a batch and spectral_rank {config.spectral_rank} the ratio of "
                "eq. 7 is 1 whatever the model does, so its gradient is 0. "
                f"Choose spectral_rank below {rows}, or a larger per_device_train_batch_size."
            )
            logger.warning(notice)
            self.objective.notices.append(notice)
        self._rows_checked = True

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool
    ) -> tuple[Tensor, Any]:
        """Mean task loss over the batch and the logits."""
        logits = model(**inputs).logits
        parts = self.objective.classification(logits, labels, None, None, NO_TERMS)
        return parts.loss, SequenceClassifierOutput(loss=parts.loss, logits=logits)

    def start_divergence(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[float, float]:
        """KL(teacher ‖ student) in eval mode, for regression the squared difference, and what rounding allows."""
        with self.teacher.active():
            teacher_ND = model(**inputs).logits.float()
        with evaluating(self.model):
            student_ND = model(**inputs).logits.float()
            if self.objective.task == "regression":
                return float((student_ND - teacher_ND).square().mean()), rounding(self.model)
            return float(consistency(student_ND, teacher_ND, 1.0)), rounding(self.model)
