"""`TrainStep`: the interface between the trainers and what they do with one micro-batch, for each kind of model."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.losses import LossParts
from balora.methods.layers.peft_lora import task_type
from balora.models.adapted_model import base_model_of
from balora.objective import Objective, Task
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.steps.subsampling import SequenceMask

TASK_LOSS_ONLY = {"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}
"""Weights of an evaluation: the loss is the task loss."""


class TrainStep(abc.ABC):
    """One micro-batch through teacher, student and objective. ``model`` is the student, not wrapped for several devices."""

    def __init__(self, model: nn.Module, objective: Objective, teacher: PretrainedTeacher) -> None:
        self.model = model
        self.objective = objective
        self.teacher = teacher

    @abc.abstractmethod
    def count_items(self, labels: Tensor) -> Tensor:
        """Return the number of targets of a micro-batch (tokens or labelled examples) as a scalar tensor."""

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
        """Compute the loss of one micro-batch.

        Args:
            model: Student, as the Trainer wraps it for several devices.
            inputs: Model inputs without the labels.
            labels: Labels of the micro-batch; -100 at positions to ignore.
            weights: Weights of the regularizers at this step.
            num_items: Number of targets in the accumulated batch; default: in this micro-batch.
            share: Weight of this micro-batch among the accumulated ones, for batch statistics.
            sequence_mask: Sequences that carry the consistency term; default: all.

        Returns:
            The parts of the loss, further statistics to log, and the model's outputs.
        """
        mask = sequence_mask or SequenceMask()
        skipped = weights["consistency"] > 0 and mask.is_empty
        if skipped:
            weights = {**weights, "consistency": 0.0}
        parts, statistics, outputs = self._train(model, inputs, labels, weights, mask, num_items, share)
        if skipped:  # no sequence was selected in this micro-batch, so the term is 0 and still counts in the mean
            parts = dataclasses.replace(parts, consistency=torch.zeros_like(parts.task))
        return parts, statistics, outputs

    @abc.abstractmethod
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
        """Compute what `train` returns; the mask selects at least one sequence if the consistency weight is positive."""

    def head_learns(self) -> bool:
        """Return whether the student's head may differ from the pre-trained one, for outputs that are taken before the head."""
        return False

    @abc.abstractmethod
    def teacher_on_anchors(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor | None) -> Any:
        """Return the pre-trained model's outputs at the compared positions of a batch of anchors."""

    @abc.abstractmethod
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
        """Return the divergence of the student from ``teacher`` on a batch of anchors: a sum over ``num_items``, on the graph."""

    row_losses: Callable[[Tensor, Tensor], None] | None = None
    """Function that gets the loss of each row of an evaluation batch (sum over its targets, nats), and its number of targets."""

    @abc.abstractmethod
    def evaluate(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, keep_logits: bool, real: int | None = None
    ) -> tuple[Tensor, Any]:
        """Return the mean task loss over the targets of a batch's first ``real`` rows (default: all), and outputs.

        The outputs have logits if ``keep_logits``, or always if they are small.
        """

    @abc.abstractmethod
    def target_logits(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
        """Return logits at some or all targets of the batch, for comparing teacher and student."""


def infer_task(model: nn.Module) -> Task:
    """Infer the task of a model from its class and its head.

    Raises:
        BALoraError: Neither a language model nor a single-label classifier.
    """
    base = base_model_of(model)
    main_input = getattr(base, "main_input_name", "input_ids")
    if main_input != "input_ids":
        raise BALoraError(
            f"{type(base).__name__} reads {main_input} and not text, and training is on text. Give a model that reads input_ids."
        )
    kind = getattr(task_type(base), "value", None)
    if kind == "SEQ_CLS":
        problem_type, num_labels = getattr(base.config, "problem_type", None), base.config.num_labels
        if problem_type == "multi_label_classification":
            raise BALoraError(
                "Multi-label classification is not supported: the paper's terms are for one label per row."
            )
        if problem_type == "regression" and num_labels > 1:
            raise BALoraError(
                f"Regression to {num_labels} scores per row is not supported; load the model with num_labels=1."
            )
        return "regression" if num_labels == 1 else "classification"
    if kind == "SEQ_2_SEQ_LM":
        return "seq2seq"
    if kind == "CAUSAL_LM":
        return "generation"
    raise BALoraError(
        f"{type(base).__name__} is neither a causal nor a sequence-to-sequence language model nor a sequence classifier. Load "
        "it through AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForSequenceClassification."
    )
