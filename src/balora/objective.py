"""The objective: task loss plus the weighted, scheduled regularizers, as parts (eq. 8 and 12).

Token and example means are sums divided by the size of the whole accumulated batch (``num_items``), so that any split into
micro-batches gives the same gradient; batch statistics (covariance, spectrum) are means over micro-batches (``share``), of
each process by itself or of all processes together (``batch_statistics``).
Shapes: N sequences, D classes, M valid tokens, V vocabulary, d hidden or pooled size.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from balora.errors import BALoraError, raise_all
from balora.losses import LossParts, generation_loss, reference_generation_loss
from balora.losses.collectives import process_count
from balora.losses.distributed_statistics import global_covariance, global_spectral_ratio, global_variance_hinge
from balora.regularization import WEIGHTS, RegularizationConfig
from balora.regularizers import (
    consistency,
    consistency_mse,
    covariance,
    schedule_weight,
    spectral_ratio,
    variance_hinge,
)

Task = Literal["generation", "seq2seq", "classification", "regression"]
BATCH_STATISTICS = {
    "generation": ("spectral",),
    "seq2seq": ("spectral",),
    "classification": ("diversity", "spectral", "variance"),
    "regression": ("diversity", "spectral", "variance"),
}
"""LossParts that are a statistic of a micro-batch, not a sum over its items."""


class Objective:
    """Turns a model's outputs into parts, for one task and one set of weights.

    Args:
        config: Weights, schedules, targets.
        task: ``generation`` and ``seq2seq`` share one form, ``classification`` and ``regression`` another.
        num_labels: D; classification and regression only.
        loss_path: ``fused`` (chunked, no logits) or ``plain`` (the formulas over full logits); generation only.

    Raises:
        BALoraError: ``loss_path`` or ``task`` is unknown.
    """

    def __init__(
        self, config: RegularizationConfig, task: Task, *, num_labels: int | None = None, loss_path: str = "fused"
    ) -> None:
        if loss_path not in ("fused", "plain"):
            raise BALoraError(f"loss_path is fused or plain, not {loss_path!r}.")
        if task not in BATCH_STATISTICS:
            raise BALoraError(f"task is one of {', '.join(BATCH_STATISTICS)}, not {task!r}.")
        self.task = task
        self.loss_path = loss_path
        self.notices: list[str] = []
        """What the user has to know of terms that do nothing here, each beginning "The TERM term"."""
        self.config = self._effective(config, num_labels)

    @property
    def generates(self) -> bool:
        """Whether the outputs are tokens."""
        return self.task in ("generation", "seq2seq")

    @property
    def across_processes(self) -> bool:
        """Whether batch statistics are those of all processes together, and there is more than one."""
        return self.config.batch_statistics == "global" and process_count() > 1

    @property
    def needs_teacher(self) -> bool:
        """Whether the pre-trained model's outputs are wanted at all."""
        return self.config.consistency > 0

    @property
    def needs_features(self) -> bool:
        """Whether the pooled features (N × d) are wanted beside the logits."""
        c = self.config
        return not self.generates and (
            ((c.diversity > 0 or c.variance > 0) and c.diversity_target == "features")
            or (c.spectral > 0 and c.spectral_target == "features")
        )

    def weights(self, progress: float) -> dict[str, float]:
        """The scheduled weights at ``progress`` = step / total steps, in [0, 1]."""
        c = self.config
        names = {"consistency": c.consistency_schedule}
        return {
            part: schedule_weight(
                names.get(part, c.focus_schedule), getattr(c, part), progress, warmup=c.focus_warmup, ramp=c.focus_ramp
            )
            for part in WEIGHTS
        }

    def generation(
        self,
        hidden_Md: Tensor,
        labels_M: Tensor,
        teacher_hidden_Md: Tensor | None,
        weights: dict[str, float],
        *,
        num_items: Tensor | int | None = None,
        share: float = 1.0,
        keep: float = 1.0,
        **head: Any,
    ) -> LossParts:
        """LossParts from hidden states that never became logits; ``head`` are further keywords of `generation_loss`.

        ``keep`` is the share of sequences that the consistency mask draws: the term is taken 1 / keep as strong.
        """
        parts = generation_loss(
            hidden_Md,
            labels_M,
            teacher_hidden_MD=teacher_hidden_Md,
            num_items=num_items,
            **self._generation_terms(weights, share, keep),
            **head,
        )
        return _whole(parts, keep)

    def generation_from_logits(
        self,
        logits_MV: Tensor,
        labels_M: Tensor,
        teacher_logits_MV: Tensor | None,
        weights: dict[str, float],
        *,
        num_items: Tensor | int | None = None,
        share: float = 1.0,
        keep: float = 1.0,
        **teacher: Any,
    ) -> LossParts:
        """The plain form over full logits: for checking, and for heads that are not a plain matrix."""
        parts = reference_generation_loss(
            logits_MV,
            labels_M,
            teacher_logits_MV,
            num_items=num_items,
            **self._generation_terms(weights, share, keep),
            **teacher,
        )
        return _whole(parts, keep)

    def classification(
        self,
        logits_ND: Tensor,
        labels_N: Tensor,
        teacher_logits_ND: Tensor | None,
        features_Nd: Tensor | None,
        weights: dict[str, float],
        *,
        num_items: Tensor | int | None = None,
        share: float = 1.0,
        keep: float = 1.0,
        consistency_rows: Tensor | None = None,
    ) -> LossParts:
        """LossParts of eq. 8, or of its regression form (appendix D.2: the consistency is a squared error).

        Args:
            logits_ND: Student scores; D = 1 for regression.
            labels_N: Class numbers (-100 for none: such a row is held to the teacher alone), or scores; N × 1 will do.
            teacher_logits_ND: Of the pre-trained model; None when the consistency weight is 0.
            features_Nd: Pooled features; None unless a target is ``features``.
            weights: From `weights`.
            num_items: Labelled examples in the whole accumulated batch; default those of this one, at least 1.
            share: Weight of this micro-batch among those accumulated, for the batch statistics.
            keep: The share of examples that ``consistency_rows`` draws: the term is taken 1 / keep as strong.
            consistency_rows: Which rows the teacher's logits are of; default all.

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
            num_items = rows if self.task == "regression" else labels_N.ne(-100).sum().clamp(min=1)
        scale = rows / num_items
        raw: dict[str, Tensor] = {}
        if self.task == "regression":
            # One shape for both: mse_loss would broadcast N × 1 against N without an error.
            task = F.mse_loss(logits_ND.reshape(rows), labels_N.reshape(rows).float())
        else:
            # Not the mean over labelled rows: micro-batches with fewer of them would weigh as much as the others.
            task = F.cross_entropy(logits_ND, labels_N.reshape(rows), reduction="sum") / rows
        if weights["consistency"] > 0:
            assert teacher_logits_ND is not None
            held_ND = logits_ND if consistency_rows is None else logits_ND[consistency_rows]
            raw["consistency"] = (scale * len(held_ND) / (rows * keep)) * (
                consistency_mse(held_ND, teacher_logits_ND)
                if self.task == "regression"
                else consistency(held_ND, teacher_logits_ND, self.config.temperature)
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
        values = {part: raw[part].detach() if part in raw else None for part in WEIGHTS}
        return LossParts(loss=loss, task=(scale * task).detach(), **values)

    def _statistic(self, part: str, rows_ND: Tensor) -> Tensor:
        """A batch statistic of this process's rows, or of those of all processes, each of which comes by here."""
        if part == "spectral":
            rank = self.config.spectral_rank
            return global_spectral_ratio(rows_ND, rank) if self.across_processes else spectral_ratio(rows_ND, rank)
        if part == "variance":
            return global_variance_hinge(rows_ND) if self.across_processes else variance_hinge(rows_ND)
        return global_covariance(rows_ND) if self.across_processes else covariance(rows_ND)

    def _generation_terms(self, weights: dict[str, float], share: float, keep: float) -> dict[str, Any]:
        return {
            "consistency": weights["consistency"] / keep,
            "diversity": weights["diversity"],
            "spectral": weights["spectral"] * share,
            "temperature": self.config.temperature,
            "top_k": self.config.top_k,
            "spectral_rank": self.config.spectral_rank,
            "across_processes": self.across_processes,
        }

    def _effective(self, config: RegularizationConfig, num_labels: int | None) -> RegularizationConfig:
        """Switch off the terms that are constants here, and say so: they cost time and change nothing."""
        off: dict[str, Any] = {}
        if self.generates:
            _refuse_classifiers_settings(config)
            return config
        width = num_labels or 1
        if config.spectral > 0 and config.spectral_target == "logits" and config.spectral_rank >= width:
            off["spectral"] = 0.0
            self.notices.append(
                f"The spectral term is constant: with {width} output{'s' if width > 1 else ''} and spectral_rank "
                f"{config.spectral_rank} the ratio of eq. 7 is 1 whatever the model does, so its gradient is 0 and it is switched "
                f"off. Choose {f'spectral_rank below {width}, or ' if width > 1 else ''}spectral_target: features."
            )
        if width == 1 and config.diversity > 0 and config.diversity_target == "logits":
            off["diversity"] = 0.0
            self.notices.append(
                "The diversity term is switched off: one output has no off-diagonal covariance. "
                "diversity_target: features gives it something to act on."
            )
        return dataclasses.replace(config, **off)


def _refuse_classifiers_settings(config: RegularizationConfig) -> None:
    """Nothing would come of them where tokens are generated: there is no new head, and nothing pooled."""
    problems = []
    if config.variance > 0:
        problems.append("regularization.variance is for classification and regression; set it to 0 here.")
    for name, own in (("teacher_head", "initial"), ("diversity_target", "logits"), ("spectral_target", "logits")):
        value = getattr(config, name)
        if value != own:
            problems.append(f"regularization.{name}: {value} is for classification and regression; leave it out here.")
    raise_all(problems, "The regularization settings do not go with the task")


def _whole(parts: LossParts, keep: float) -> LossParts:
    """The consistency as an estimate of that over all sequences, where it is taken over a share of them."""
    if keep == 1.0 or parts.consistency is None:
        return parts
    return dataclasses.replace(parts, consistency=parts.consistency / keep)


def all_finite(parts: LossParts) -> str | None:
    """Name the first part that is NaN or infinite, None when all are finite. Costs one device sync."""
    named = [(f.name, getattr(parts, f.name)) for f in dataclasses.fields(parts)]
    named = [(name, value) for name, value in named if value is not None]
    # The total comes last: a broken part is a better name for the fault than the sum it spoils.
    named.sort(key=lambda item: item[0] == "loss")
    finite = torch.stack([value.detach().float().isfinite() for _, value in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)
