"""The objective: task loss plus the weighted, scheduled regularizers, as parts (eq. 8 and 12).

Token and example means are sums divided by the size of the accumulated batch (``num_items``), so every split into
micro-batches gives the same gradient. Batch statistics (covariance, variance, spectrum) are means over micro-batches
(``share``), of each process separately or of all processes together (``batch_statistics``).
Shapes: N sequences, D classes, M valid tokens, V vocabulary, d hidden or pooled size.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from balora.deprecation import deprecated_keywords
from balora.errors import BALoraError, raise_all
from balora.losses import HiddenStates, LossParts, LossTerms, generation_loss, reference_generation_loss
from balora.losses.collectives import world_size
from balora.losses.distributed_statistics import global_covariance, global_spectral_ratio, global_variance_hinge
from balora.losses.generation import fused_loss
from balora.losses.loss_parts import Outputs, TaskLoss, Teacher
from balora.losses.reference import reference_loss
from balora.regularization import WEIGHTS, RegularizationConfig
from balora.regularizers import consistency, consistency_mse, covariance, spectral_ratio, variance_hinge
from balora.schedules import schedule_weight

Weights = dict[str, float]
"""Weight of each term by its name."""
Task = Literal["generation", "seq2seq", "classification", "regression"]
BATCH_STATISTICS = {
    "generation": ("spectral",),
    "seq2seq": ("spectral",),
    "classification": ("diversity", "spectral", "variance"),
    "regression": ("diversity", "spectral", "variance"),
}
"""Terms that are a statistic of a micro-batch, not a sum over its items, by task."""


class Objective:
    """Loss of a model's outputs, for one task and one set of regularizers.

    Args:
        config: Weights, schedules, targets.
        task: Task; ``generation`` and ``seq2seq`` use one form of the loss, ``classification`` and ``regression`` another.
        num_labels: D; classification and regression only.
        loss_path: ``fused`` (in chunks, without full logits) or ``plain`` (the formulas over full logits); generation only.

    Raises:
        BALoraError: ``loss_path`` or ``task`` is unknown.
    """

    def __init__(
        self, config: RegularizationConfig, task: Task, *, num_labels: int | None = None, loss_path: str = "fused"
    ) -> None:
        if loss_path not in ("fused", "plain"):
            raise BALoraError(f"loss_path must be fused or plain, not {loss_path!r}.")
        if task not in BATCH_STATISTICS:
            raise BALoraError(f"task must be one of {', '.join(BATCH_STATISTICS)}, not {task!r}.")
        self.task = task
        self.loss_path = loss_path
        self.notices: list[str] = []
        """Sentences about terms that have no effect here, each beginning "The TERM term"."""
        self.config = self._effective(config, num_labels)

    @property
    def generates(self) -> bool:
        """True if the outputs are tokens."""
        return self.task in ("generation", "seq2seq")

    @property
    def across_processes(self) -> bool:
        """True if batch statistics are those of all processes together, and there is more than one process."""
        return self.config.batch_statistics == "global" and world_size() > 1

    @property
    def needs_teacher(self) -> bool:
        """True if any step needs the outputs of the pre-trained model."""
        return self.config.consistency > 0

    @property
    def needs_features(self) -> bool:
        """True if the loss needs the pooled features (N × d) beside the logits."""
        c = self.config
        return not self.generates and (
            ((c.diversity > 0 or c.variance > 0) and c.diversity_target == "features")
            or (c.spectral > 0 and c.spectral_target == "features")
        )

    def weights(self, progress: float) -> dict[str, float]:
        """Return the scheduled weights at ``progress`` = step / total steps, in [0, 1]."""
        c = self.config
        schedules = {part: c.consistency_schedule if part == "consistency" else c.focus_schedule for part in WEIGHTS}
        return {
            part: schedule_weight(schedule, getattr(c, part), progress, warmup=c.focus_warmup, ramp=c.focus_ramp)
            for part, schedule in schedules.items()
        }

    def language_modeling(
        self,
        student: Outputs,
        labels_M: Tensor,
        teacher: Teacher | None,
        weights: Weights,
        *,
        num_items: Tensor | int | None = None,
        share: float = 1.0,
        keep_prob: float = 1.0,
        consistency_mask_M: Tensor | None = None,
        task_loss: TaskLoss | None = None,
    ) -> LossParts:
        """Return the parts of eq. 12: the fused form for hidden states, the reference form for logits.

        Args:
            student: Hidden states with their head or, for a head that is not a :class:`LinearHead`, full logits.
            labels_M: Token that each position is to predict (already shifted); -100 for none.
            teacher: Outputs of the pre-trained model; None if the consistency weight is 0.
            weights: Result of `weights`.
            num_items: Valid tokens in the accumulated batch; default those of this micro-batch.
            share: Weight of this micro-batch among the accumulated ones, for the batch statistics.
            keep_prob: Fraction of the sequences that the mask keeps. The consistency weight is divided by it.
            consistency_mask_M: True at each position of a sequence that the consistency is computed for; default all.
            task_loss: Loss of a target; default that of the config. An evaluation always takes ``nll``.
        """
        form: Callable[..., LossParts] = fused_loss if isinstance(student, HiddenStates) else reference_loss
        terms = self._loss_terms(weights, share, keep_prob, task_loss)
        parts = form(student, labels_M, terms, teacher, num_items, consistency_mask_M)
        return _estimate_over_all(parts, keep_prob)

    def generation(
        self, hidden_Md: Tensor, labels_M: Tensor, teacher_hidden_Md: Tensor | None, weights: Weights, **options: Any
    ) -> LossParts:
        """Deprecated: use :meth:`language_modeling`. ``options``: share, keep and keywords of `generation_loss`."""
        return self._old_form(
            generation_loss, hidden_Md, labels_M, weights, teacher_hidden_MD=teacher_hidden_Md, **options
        )

    def generation_from_logits(
        self, logits_MV: Tensor, labels_M: Tensor, teacher_logits_MV: Tensor | None, weights: Weights, **options: Any
    ) -> LossParts:
        """Deprecated: use :meth:`language_modeling`. ``options``: share, keep and keywords of `reference_generation_loss`."""
        return self._old_form(
            reference_generation_loss, logits_MV, labels_M, weights, teacher_logits_MV=teacher_logits_MV, **options
        )

    def _old_form(
        self, loss: Callable[..., LossParts], outputs: Tensor, labels_M: Tensor, weights: Weights, **options: Any
    ) -> LossParts:
        message = "Objective.generation and Objective.generation_from_logits are now Objective.language_modeling."
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        keep_prob = options.pop("keep", 1.0)
        terms = self._loss_terms(weights, options.pop("share", 1.0), keep_prob)
        return _estimate_over_all(loss(outputs, labels_M, **dataclasses.asdict(terms), **options), keep_prob)

    @deprecated_keywords(keep="keep_prob")
    def classification(
        self,
        logits_ND: Tensor,
        labels_N: Tensor,
        teacher_logits_ND: Tensor | None,
        features_Nd: Tensor | None,
        weights: Weights,
        *,
        num_items: Tensor | int | None = None,
        share: float = 1.0,
        keep_prob: float = 1.0,
        consistency_rows: Tensor | None = None,
    ) -> LossParts:
        """Return the parts of eq. 8, or of its regression form (appendix D.2: the consistency is a squared error).

        Args:
            logits_ND: Logits of the student; D = 1 for regression.
            labels_N: Class numbers, or scores for regression; N or N × 1. A row of class -100 has no task loss, only the
                other terms.
            teacher_logits_ND: Logits of the pre-trained model; None if the consistency weight is 0.
            features_Nd: Pooled features; None unless a target is ``features``.
            weights: Result of `weights`.
            num_items: Labelled examples in the accumulated batch; default those of this micro-batch, at least 1.
            share: Weight of this micro-batch among the accumulated ones, for the batch statistics.
            keep_prob: Fraction of the examples that ``consistency_rows`` keeps. The consistency is divided by it.
            consistency_rows: Rows that ``teacher_logits_ND`` belongs to; default all.

        Raises:
            BALoraError: The labels are not one class number, or one score, per row.
        """
        logits_ND = logits_ND.float()
        rows = logits_ND.shape[0]
        if labels_N.numel() != rows or (self.task == "classification" and labels_N.is_floating_point()):
            raise BALoraError(
                f"{self.task.capitalize()} takes one {'score' if self.task == 'regression' else 'class number'} per row, and the "
                f"labels of {rows} rows are {labels_N.dtype} of shape {tuple(labels_N.shape)}."
            )
        if num_items is None:
            num_items = max(rows, 1) if self.task == "regression" else labels_N.ne(-100).sum().clamp(min=1)
        scale = rows / num_items
        raw: dict[str, Tensor] = {}
        if rows == 0:  # a process that has only repeated rows: every mean is 0, and on the graph
            task = logits_ND.sum()
        elif self.task == "regression":
            # Reshape both: mse_loss would broadcast N × 1 against N without an error.
            task = F.mse_loss(logits_ND.reshape(rows), labels_N.reshape(rows).float())
        else:
            # Not the mean over labelled rows: each micro-batch would have the same weight, however few rows are labelled.
            task = F.cross_entropy(logits_ND, labels_N.reshape(rows), reduction="sum") / rows
        if weights["consistency"] > 0:
            assert teacher_logits_ND is not None
            student_ND = logits_ND if consistency_rows is None else logits_ND[consistency_rows]
            if len(student_ND) == 0:
                raw["consistency"] = logits_ND.sum() * 0.0
            else:
                raw["consistency"] = (scale * len(student_ND) / (rows * keep_prob)) * (
                    consistency_mse(student_ND, teacher_logits_ND)
                    if self.task == "regression"
                    else consistency(student_ND, teacher_logits_ND, self.config.temperature)
                )
        for part in BATCH_STATISTICS[self.task]:
            if weights[part] > 0:
                target = self.config.spectral_target if part == "spectral" else self.config.diversity_target
                matrix = features_Nd if target == "features" else logits_ND
                assert matrix is not None
                raw[part] = self._statistic(part, matrix.float())
        loss = scale * task
        for part, value in raw.items():
            factor = share if part in BATCH_STATISTICS[self.task] else 1.0
            loss = loss + weights[part] * factor * value
        return LossParts(loss, (scale * task).detach(), **{part: value.detach() for part, value in raw.items()})

    def _statistic(self, part: str, rows_ND: Tensor) -> Tensor:
        """Return a batch statistic of the rows of this process or, with global statistics, of all processes."""
        if part == "spectral":
            rank = self.config.spectral_rank
            return global_spectral_ratio(rows_ND, rank) if self.across_processes else spectral_ratio(rows_ND, rank)
        if part == "variance":
            return global_variance_hinge(rows_ND) if self.across_processes else variance_hinge(rows_ND)
        return global_covariance(rows_ND) if self.across_processes else covariance(rows_ND)

    def _loss_terms(
        self, weights: Weights, share: float, keep_prob: float, task_loss: TaskLoss | None = None
    ) -> LossTerms:
        return LossTerms(
            consistency=weights["consistency"] / keep_prob,
            diversity=weights["diversity"],
            spectral=weights["spectral"] * share,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            spectral_rank=self.config.spectral_rank,
            across_processes=self.across_processes,
            task_loss=task_loss or self.config.task_loss,
            consistency_tokens=self.config.consistency_tokens,
        )

    def _effective(self, config: RegularizationConfig, num_labels: int | None) -> RegularizationConfig:
        """Switch off terms that are constant for this task, which would cost time in vain, and add a notice for each."""
        if self.generates:
            _refuse_classification_settings(config)
            return config
        raise_all(
            [
                f"regularization.{name}: {getattr(config, name)} is for generation and seq2seq; leave it out here."
                for name, default in (("task_loss", "nll"), ("consistency_tokens", "all"))
                if getattr(config, name) != default
            ],
            "The regularization settings do not go with the task",
        )
        off: dict[str, Any] = {}
        width = num_labels or 1
        if config.spectral > 0 and config.spectral_target == "logits" and config.spectral_rank >= width:
            off["spectral"] = 0.0
            self.notices.append(
                f"The spectral term is constant: with {width} output{'s' if width > 1 else ''} and spectral_rank "
                f"{config.spectral_rank} the ratio of eq. 7 is 1 for every output, so its gradient is 0 and it is switched "
                f"off. Choose {f'spectral_rank below {width}, or ' if width > 1 else ''}spectral_target: features."
            )
        if width == 1 and config.diversity > 0 and config.diversity_target == "logits":
            off["diversity"] = 0.0
            self.notices.append(
                "The diversity term is switched off: one output has no off-diagonal covariance. "
                "Choose diversity_target: features to use it."
            )
        return dataclasses.replace(config, **off)


def _refuse_classification_settings(config: RegularizationConfig) -> None:
    """Refuse settings that have no effect in generation, which has neither a new head nor pooled features."""
    problems = []
    if config.variance > 0:
        problems.append("regularization.variance is for classification and regression; set it to 0 here.")
    for name, default in (("teacher_head", "initial"), ("diversity_target", "logits"), ("spectral_target", "logits")):
        if (value := getattr(config, name)) != default:
            problems.append(f"regularization.{name}: {value} is for classification and regression; leave it out here.")
    raise_all(problems, "The regularization settings do not go with the task")


def _estimate_over_all(parts: LossParts, keep_prob: float) -> LossParts:
    """Turn the consistency over the kept sequences into an estimate of that over all sequences."""
    if keep_prob == 1.0 or parts.consistency is None:
        return parts
    return dataclasses.replace(parts, consistency=parts.consistency / keep_prob)


def all_finite(parts: LossParts) -> str | None:
    """Return the name of the first part that is NaN or infinite, or None. Waits for the device once."""
    named: dict[str, Tensor] = {name: value for name, value in vars(parts).items() if value is not None}
    named["loss"] = named.pop("loss")  # last, because the name of the faulty term says more than that of the sum
    finite = torch.stack([value.detach().float().isfinite() for value in named.values()]).tolist()
    return next((name for name, good in zip(named, finite, strict=True) if not good), None)
