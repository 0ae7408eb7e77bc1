"""One micro-batch through teacher, student and objective, for classifiers and regressors.

Shapes: N examples, K examples with the consistency term, D classes, d pooled size.
"""

import logging
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from balora.losses import Logits, LossParts
from balora.losses.collectives import agreed, world_size
from balora.losses.distributed_statistics import global_logit_variance
from balora.models.classifier_head import pooled_features
from balora.objective import Objective
from balora.regularizers import consistency, consistency_mse
from balora.teacher.logit_cache import LogitCache
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.steps.subsampling import SequenceMask, select_rows
from balora.training.steps.train_step import TASK_LOSS_ONLY, TrainStep

logger = logging.getLogger("balora")


class ClassificationStep(TrainStep):
    """`TrainStep` of sequence classifiers and regressors: logits, and pooled features if a target needs them."""

    def __init__(
        self, model: nn.Module, objective: Objective, teacher: PretrainedTeacher, logit_cache: LogitCache | None = None
    ) -> None:
        super().__init__(model, objective, teacher)
        self.logit_cache = logit_cache
        self._batch_size_checked = False

    def count_items(self, labels: Tensor) -> Tensor:
        """Return the number of labelled examples as a scalar tensor."""
        return torch.tensor(labels.shape[0]) if labels.is_floating_point() else labels.ne(-100).sum()

    def _train(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        mask: SequenceMask,
        num_items: Tensor | None,
        share: float,
    ) -> tuple[LossParts, dict[str, Tensor], Any]:
        """Compute the loss of one micro-batch; the further statistic is the variance of the logits (method.md, departure 15)."""
        teacher_KD = self._teacher_logits(model, inputs, len(labels), mask) if weights["consistency"] > 0 else None
        recording = pooled_features(self.model, inputs) if self.objective.needs_features else nullcontext([None])
        with recording as captured:
            outputs = model(**inputs)
        logits_ND, features_Nd, rows_K = outputs.logits, captured[-1], mask.rows
        self._check_batch_size(logits_ND.shape[0])
        if mask.real is not None:
            # The model has run on the repeated rows, because processes may wait for each other in the forward.
            logits_ND, labels = logits_ND[: mask.real], labels[: mask.real]
            features_Nd = None if features_Nd is None else features_Nd[: mask.real]
            if teacher_KD is not None:
                kept = slice(mask.real) if rows_K is None else rows_K < mask.real
                teacher_KD = teacher_KD[kept]
            rows_K = None if rows_K is None else rows_K[rows_K < mask.real]
        parts = self.objective.classification(
            logits_ND,
            labels,
            teacher_KD,
            features_Nd,
            weights,
            num_items=num_items,
            share=share,
            keep_prob=mask.keep_prob,
            consistency_rows=None if rows_K is None else rows_K.to(logits_ND.device),
        )
        detached_ND = logits_ND.detach().float()
        if self.objective.across_processes:
            variance = global_logit_variance(detached_ND)
        else:
            variance = detached_ND.var(0, correction=0).mean() if len(detached_ND) else detached_ND.sum()
        return parts, {"logit_variance": variance}, outputs

    def teacher_on_anchors(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor | None) -> Logits:
        """Return the pre-trained model's logits of a batch of anchors, under the head that training starts from."""
        with self.teacher.active():
            return Logits(model(**inputs).logits.float())

    def hold(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        labels: Tensor | None,
        teacher: Any,
        *,
        temperature: float,
        num_items: float,
    ) -> Tensor:
        """Return the KL divergence of the classes (regression: the squared difference) summed over ``num_items``."""
        logits_ND = model(**inputs).logits.float()
        if self.objective.task == "regression":
            return consistency_mse(logits_ND, teacher.logits_MV) * len(logits_ND) / num_items
        return consistency(logits_ND, teacher.logits_MV, temperature) * len(logits_ND) / num_items

    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool, real: int | None = None
    ) -> tuple[Tensor, Any]:
        """Return the mean task loss over the batch's labelled examples, and outputs with logits."""
        logits_ND = model(**inputs).logits
        parts = self.objective.classification(logits_ND[:real], labels[:real], None, None, TASK_LOSS_ONLY)
        return parts.loss, SequenceClassifierOutput(loss=parts.loss, logits=logits_ND)

    def target_logits(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        """Return the logits of all examples, N × D."""
        logits_ND: Tensor = model(**inputs).logits
        return logits_ND

    def _teacher_logits(self, model: nn.Module, inputs: dict[str, Any], count: int, mask: SequenceMask) -> Tensor:
        """Return the pre-trained model's logits of the selected rows, from the cache if it has them; K × D."""

        def compute(rows: list[int]) -> Tensor:
            with self.teacher.active():
                logits_KD: Tensor = model(**select_rows(inputs, torch.tensor(rows), count)).logits
                return logits_KD

        rows = list(range(count)) if mask.rows is None else mask.rows.tolist()
        keyed = mask.row_keys is not None and len(mask.row_keys) == count
        if self.logit_cache is None or not agreed(keyed, inputs["input_ids"].device):
            return compute(rows)
        assert mask.row_keys is not None
        keys = [mask.row_keys[row] for row in rows]
        return self.logit_cache.get_or_compute(keys, lambda missing: compute([rows[index] for index in missing]))

    def _check_batch_size(self, rows: int) -> None:
        """Warn once if the batches are too small for the spectral term to have a gradient (method.md, departure 3)."""
        config = self.objective.config
        rows *= world_size() if self.objective.across_processes else 1
        if not self._batch_size_checked and config.spectral > 0 and config.spectral_rank >= rows:
            notice = (
                f"The spectral term is constant: with {rows} rows in a batch and spectral_rank {config.spectral_rank} the ratio of "
                "eq. 7 is always 1, so its gradient is 0. "
                f"Choose spectral_rank below {rows}, or a larger per_device_train_batch_size."
            )
            logger.warning(notice)
            self.objective.notices.append(notice)
        self._batch_size_checked = True
