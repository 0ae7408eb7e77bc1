"""`BALoraTrainer`: transformers' Trainer with the regularized objective.

Per micro-batch: batch → teacher (no gradient) → student → hidden states or logits → objective → parts. The Trainer keeps
everything else: optimizer, learning-rate schedule, precision, devices, evaluation, logging targets.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset
from transformers import Trainer, TrainerCallback

from balora.anchoring.budget import BudgetWeight
from balora.anchors import Anchors
from balora.data.collate import IGNORED, count_packed_tokens, shortest_first
from balora.errors import BALoraError
from balora.methods.initial_state import initial_state_of, refresh_initial_state
from balora.methods.registry import Method, find_method
from balora.models.adapted_model import base_model_of
from balora.models.classifier_head import final_linear
from balora.models.packed_attention import check_packed_attention, is_packed
from balora.objective import Objective, all_finite
from balora.regularization import RegularizationConfig
from balora.teacher.cache import TeacherCache
from balora.teacher.logit_cache import select_caches
from balora.teacher.pretrained import PretrainedTeacher
from balora.teacher.row_keys import KEYS
from balora.training.anchors.anchor_term import AnchorTerm
from balora.training.anchors.anchored_training import AnchoredTrainingMixin
from balora.training.callbacks import AfterOptimizerStep, GradientCheck
from balora.training.data_loaders import DataLoadersMixin
from balora.training.distributed.processes import check_processes, refuse_reentrant_checkpointing
from balora.training.distributed.repeated_rows import REAL_ROWS, num_real_rows, without_repeated_labels
from balora.training.evaluation_loss import EvaluationLossMixin
from balora.training.loss_meter import LossMeter
from balora.training.regularization_argument import changed_regularization, regularization_of
from balora.training.saving import SavingMixin
from balora.training.steps.classification_step import ClassificationStep
from balora.training.steps.generation_step import GenerationStep
from balora.training.steps.linear_probe import MAX_ROWS, fit_head
from balora.training.steps.subsampling import Subsampler
from balora.training.steps.train_step import TrainStep, infer_task
from balora.training.trainer_checks import (
    NO_GRADIENT,
    NO_TARGET,
    check_arguments,
    check_initial_teacher,
    check_sharding,
    describe_small_vocabulary,
    refuse_inactive_adapters,
    warn_about_trained_adapter,
)
from balora.training.trials import TrialsMixin

logger = logging.getLogger("balora")
_BOUND = ("method", "_objective", "teacher", "teacher_cache", "logit_cache", "step", "anchor_term", "_origin")
"""Attributes of a trainer that hold its model, or what was computed from it."""


class RegularizedTrainerMixin(TrialsMixin, SavingMixin, AnchoredTrainingMixin, EvaluationLossMixin, DataLoadersMixin):
    """Mixin of `BALoraTrainer` with its arguments; place it before a `transformers.Trainer` class in the bases."""

    def __init__(
        self,
        *args: Any,
        regularization: RegularizationConfig | Mapping[str, Any] | str | bool | None = None,
        loss_path: str = "fused",
        initial: Mapping[str, Tensor] | None = None,
        teacher_cache: TeacherCache | str = "auto",
        teacher_offload: bool = False,
        anchors: Anchors | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_processes(self.accelerator)
        check_arguments(self)
        refuse_reentrant_checkpointing(self.args, self.accelerator)
        self._regularization_argument, self._loss_path = regularization, loss_path
        self._teacher_cache_argument, self._teacher_offload = teacher_cache, teacher_offload
        self.anchors = anchors
        self.anchor_store: Path | None = None
        """Directory of generated anchors that several runs share; None for none."""
        self.loss_is_scaled_for_ga = True  # by num_items and share, see compute_loss
        self._bind({}, initial)

    def _bind(self, changes: Mapping[str, Any], initial: Mapping[str, Tensor] | None = None) -> None:
        """Make everything that belongs to the model: task, objective, teacher, step and callbacks.

        Args:
            changes: Fields of the regularization that a trial of a search changes.
            initial: Initial values of the trainable tensors; None for those that the model has now.
        """
        self._release()
        self._is_bound = True
        model: nn.Module = self.model
        loss_path, teacher_cache = self._loss_path, self._teacher_cache_argument
        self.task = infer_task(model)
        classifies = self.task in ("classification", "regression")
        initial_state = initial_state_of(model)
        self.method: Method | None = find_method(initial_state.method) if initial_state else None
        own = self.method.objective if self.method is not None else None
        regularization = regularization_of(self._regularization_argument, self.task, own)
        self.regularization = regularization = changed_regularization(regularization, changes)
        num_labels = getattr(model.config, "num_labels", None)
        self._objective = Objective(regularization, self.task, num_labels=num_labels, loss_path=loss_path)
        if (notice := describe_small_vocabulary(model, self._objective)) is not None:
            self._objective.notices.append(notice)
        for notice in self._objective.notices:
            logger.warning(notice)
        if classifies and regularization.teacher_head == "probe" and initial is None:
            self._fit_head()
        # The teacher and the checkpoints use the same copy of the initial values.
        self.teacher = PretrainedTeacher(model, initial, offload=self._teacher_offload)
        self.teacher_cache, self.logit_cache = select_caches(self._objective, teacher_cache)
        if self.logit_cache is not None:
            self.logit_cache.device = self.args.device
        self.step: TrainStep = (
            GenerationStep(model, self._objective, self.teacher, self.teacher_cache)
            if self._objective.generates
            else ClassificationStep(model, self._objective, self.teacher, self.logit_cache)
        )
        self.subsampler = Subsampler(regularization, self.args.seed, self.args.process_index)
        self.loss_meter = LossMeter(self.task)
        budget = regularization.consistency_budget
        self.consistency_weight = None if budget is None else BudgetWeight(regularization.consistency, budget)
        self._eval_losses: list[tuple[Tensor, Tensor]] = []  # mean loss and number of targets of each batch
        self.anchor_term: AnchorTerm | None = None
        self._origin = None
        self._initial_state_checked = False
        initial_state = initial_state_of(model)
        # The initial values are those of the adapter, so the student may have been trained already.
        self._is_resumed = initial is not None and initial_state is not None
        if initial_state is None and initial is None and self._objective.needs_teacher:
            warn_about_trained_adapter(model)
        if initial_state is not None:
            self._objective.notices.extend(initial_state.notices)  # adapt has logged them
        if classifies and getattr(base_model_of(model).config.get_text_config(), "output_router_logits", False):
            notice = (
                "output_router_logits has no effect: a classifier returns no load-balancing loss, so none is added."
            )
            logger.warning(notice)
            self._objective.notices.append(notice)
        if not self.is_deepspeed_enabled:  # which keeps gradients elsewhere
            self._bound_callbacks.append(GradientCheck(model, self._objective.notices))
        check_sharding(self.accelerator.state, model, self.method)
        if self.is_fsdp_enabled:
            self.origin()  # needs the weights before FSDP shards them
        if self.method is not None and self.method.after_step is not None:
            self._bound_callbacks.append(AfterOptimizerStep(model, self.method.after_step))
        for callback in self._bound_callbacks:
            self.add_callback(callback)

    _bound_callbacks: list[TrainerCallback]

    def _release(self) -> None:
        """Drop everything that belongs to the model."""
        for callback in getattr(self, "_bound_callbacks", ()):
            self.remove_callback(callback)
        self._bound_callbacks = []
        for name in _BOUND:
            if name in self.__dict__:
                delattr(self, name)

    def _fit_head(self) -> None:
        """Fit the head before the teacher copies it, so that student and teacher both start from it (method.md, departure 5)."""
        rows = self.train_dataset
        if not isinstance(rows, IterableDataset) and len(rows) > MAX_ROWS:
            # Sampled from all rows: a file may be sorted by class.
            sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.args.seed))[:MAX_ROWS]
            rows = Subset(rows, sample.tolist())
        with torch.random.fork_rng():
            batches = self.get_eval_dataloader(shortest_first(rows))
            regression, gather = self.task == "regression", self.accelerator.gather_for_metrics
            score = fit_head(self.model, batches, regression=regression, gather=gather)
        if self.accelerator.num_processes > 1:  # processes on different machines may round differently
            for tensor in final_linear(self.model).parameters():
                torch.distributed.broadcast(tensor.data, src=0)
        refresh_initial_state(self.model)
        logger.info("teacher_head: probe fits the training rows with %.3f", score)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the weighted sum of the parts of one micro-batch; in evaluation, the task loss alone."""
        inputs = {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
        row_keys, real = inputs.pop(KEYS, None), inputs.pop(REAL_ROWS, None)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise BALoraError(f"The batch has no labels, only {', '.join(sorted(inputs))}. Check the data collator.")
        if not self.model.training:
            keep_logits = not (self._objective.generates and self._loss_only)
            real = num_real_rows(self.accelerator, self._eval_rows, len(labels), self.args.eval_batch_size)
            loss, outputs = self.step.evaluate(model, inputs, labels, keep_logits=keep_logits, real=real)
            self._eval_losses.append((loss.detach().float(), self.step.count_items(labels[:real])))
            return (loss, outputs) if return_outputs else loss
        self._tokens = self._tokens + count_tokens(inputs, labels, self.task)
        if not self._initial_state_checked:
            self._check_initial_state(model, inputs, labels)
        step = self.state.global_step
        weights = self._objective.weights(step / max(1, self.state.max_steps))
        if self.consistency_weight is not None:
            weights["consistency"] = self.consistency_weight.advance(
                step, self._mean_over_processes, self.state.max_steps
            )
        weights["consistency"] *= self.subsampler.step_factor(step)
        sequence_mask = self.subsampler.next_mask(step, len(labels), row_keys)
        if real is not None:
            sequence_mask = dataclasses.replace(sequence_mask, real=real)
        share = 1.0 / getattr(self, "current_gradient_accumulation_steps", 1)
        # DDP averages gradients over the processes, so a sum over items is divided by their mean number per process.
        items = None if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        parts, extra, outputs = self.step.train(
            model, inputs, labels, weights, num_items=items, share=share, sequence_mask=sequence_mask
        )
        broken = all_finite(parts)
        if broken is not None:
            name = {"task": "task loss", "loss": "total loss"}.get(broken, f"{broken} term")
            raise BALoraError(self._nonfinite_message(name, step + 1))
        if self.consistency_weight is not None and parts.consistency is not None:
            self.consistency_weight.add(step, parts.consistency)
        loss = parts.loss
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise BALoraError(NO_GRADIENT)
        if self._holds and self.is_deepspeed_enabled:
            held = self._anchor_loss(model)
            loss = loss if held is None else loss + held
        if self.method is not None and self.method.penalty is not None:
            penalty = self.method.penalty(self.model)
            loss, extra = loss + share * penalty, {**extra, "penalty": penalty.detach()}
        self.loss_meter.add(parts, weights, share, **extra)
        return (loss, outputs) if return_outputs else loss

    _num_targets: Tensor | int = 0

    _tokens: Tensor | int = 0

    def take_tokens(self) -> int:
        """Return the tokens, without padding, that were trained on since the last call, estimated over all processes."""
        tokens, self._tokens = int(self._tokens) * self.accelerator.num_processes, 0
        return tokens

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """Count the targets (tokens or examples) of the accumulated batch on all devices; at least 1."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        newest = batch_samples[-1]
        real = num_real_rows(
            self.accelerator, self._train_rows, len(newest["labels"]), self._rows_per_process(self._train_batch_size)
        )
        if real is not None:
            newest[REAL_ROWS] = real
            if self._objective.generates:
                newest["labels"] = without_repeated_labels(newest["labels"], real)
        counts = [self.step.count_items(batch["labels"][: batch.get(REAL_ROWS)]) for batch in batch_samples]
        count = torch.stack(counts).sum().to(device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count).sum()
        self._num_targets = self._num_targets + count
        return count.clamp_min(1)

    def _check_initial_state(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> None:
        """Before the first step of a new run, check that the adapter can learn and that the teacher equals the student."""
        self._initial_state_checked = True
        if self.state.global_step > 0:
            return
        refuse_inactive_adapters(self.model)
        if self.task == "generation" and is_packed(inputs):
            check_packed_attention(self.model, len(labels), forward=model)
        if self._objective.needs_teacher and not self._is_resumed:
            check_initial_teacher(self.step, model, inputs, labels)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Skip the epoch if a resumed run has no step left; the Trainer would take one step too many.

        A first epoch without a step, or without a target, raises `BALoraError`: nothing was learnt.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        is_first, self._num_targets = self.state.global_step == 0, 0
        super()._run_epoch(*args, **kwargs)
        if is_first and self.state.global_step == 0:
            raise BALoraError("The run took no step: the training data gave no batch. Check train_dataset.")
        if is_first and not self._num_targets:
            raise BALoraError(NO_TARGET)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Create the method's own optimizer if it has one, otherwise the Trainer's."""
        if getattr(self, "optimizer", None) is None and self.method is not None and self.method.optimizer is not None:
            initial_state = initial_state_of(self.model)
            assert initial_state is not None
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            settings = {**settings, "weight_decay": self.args.weight_decay}
            options = initial_state.options.extra
            self.optimizer = self.method.optimizer(self.model, optimizer_class, settings, options)
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every part and weight, averaged over the logging window, to a training log."""
        if "loss" in logs:
            logs.update(self.loss_meter.drain(self._mean_over_processes))
        super().log(logs, start_time)

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.args.device), reduction="mean").cpu()


def count_tokens(inputs: dict[str, Any], labels: Tensor, task: str) -> Tensor | int:
    """Count the tokens of a micro-batch without its padding, on their device; for seq2seq those of both sides."""
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if mask is None and "position_ids" in inputs and task == "generation":
        return count_packed_tokens(inputs["position_ids"])
    count = mask.detach().sum() if mask is not None and mask.dim() == 2 else 0 if ids is None else ids.numel()
    return count + (labels != IGNORED).sum() if task == "seq2seq" else count


class BALoraTrainer(RegularizedTrainerMixin, Trainer):
    """Fine-tune a causal, sequence-to-sequence, classification or regression model with the three regularizers.

    Args:
        regularization: Weights, schedules and targets of the regularizers: ``"on"``, ``"off"``, a dict of changes to the paper's
            values for the model's task, or a `RegularizationConfig`. Default: the paper's values.
        loss_path: ``fused`` (no logits are computed) or ``plain`` (the formulas over full logits), to check one by the other.
        initial: Initial values of the trainable tensors by name. Required if ``model`` has been trained since it was adapted.
        teacher_cache: ``auto`` caches a classifier's teacher logits in memory; ``off`` runs the teacher at
            every step; a `balora.teacher.cache.TeacherCache` replaces the teacher's forward in generation.
        teacher_offload: Whether the initial values stay in the host's memory between the teacher's forwards.
        anchors: Text on which the model is held to the pre-trained one (`balora.Anchors`); default none.

    All other arguments are `transformers.Trainer`'s. ``model_init``, for `hyperparameter_search`, loads and adapts a model. Causal
    models take unshifted ``labels`` (−100 at positions to ignore); sequence-to-sequence models take ``labels`` and, if the model
    cannot derive them, ``decoder_input_ids`` aligned with them.

    Raises:
        BALoraError: The model or an argument does not fit the objective; during training, a part became NaN or infinite.

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 8 and 12.
    """
