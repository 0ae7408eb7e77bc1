"""The regularized objective inside a transformers Trainer: one mixin for ours and for trl's.

Per micro-batch: batch → teacher (no gradient) → student → hidden states or logits → objective → parts. The Trainer keeps
everything else: optimizer, schedule, precision, devices, evaluation, logging targets.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from balora.data.collate import shortest_first
from balora.errors import BALoraError
from balora.methods.initial_state import initial_state_of, refresh_initial_state
from balora.methods.registry import Method, find_method
from balora.models.classifier_head import final_linear
from balora.objective import Objective, all_finite
from balora.regularization import RegularizationConfig
from balora.teacher.cache import TeacherCache
from balora.teacher.logit_cache import logit_cache_for
from balora.teacher.pretrained import PretrainedTeacher
from balora.teacher.row_keys import KEYS, KeyedCollator
from balora.training.callbacks import AfterStep
from balora.training.generation_step import ClassificationStep, GenerationStep, infer_task
from balora.training.initial_checks import refuse_idle_adapters, warn_of_anothers_adapter
from balora.training.linear_probe import MOST_ROWS, fit_head
from balora.training.loss_meter import LossMeter
from balora.training.saving import SavingMixin
from balora.training.sharding_checks import check_sharding
from balora.training.subsampling import Subsampler

logger = logging.getLogger("balora")


class RegularizedMixin(SavingMixin):
    """Put before a `transformers.Trainer` class in the bases.

    Args:
        regularization: Weights, schedules and targets; default the paper's for the model's task.
        loss_path: ``fused`` (no logits are made) or ``plain`` (the formulas over full logits), to check one by the other.
        initial: The trainable tensors' initial values, when ``model`` is no longer at them.
        teacher_cache: ``auto`` keeps a classifier's teacher logits in memory (in one process); ``off`` asks the teacher at
            every step; a `TeacherCache` stands for it in generation.
        teacher_offload: Whether the initial values wait in the host's memory between the teacher's forwards.

    Other arguments are the Trainer's.
    """

    def __init__(
        self,
        *args: Any,
        regularization: RegularizationConfig | None = None,
        loss_path: str = "fused",
        initial: Mapping[str, Tensor] | None = None,
        teacher_cache: TeacherCache | str = "auto",
        teacher_offload: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._refuse_unsupported()
        unwrapped: nn.Module = self.model
        self.task = infer_task(unwrapped)
        if regularization is None:
            classifies = self.task in ("classification", "regression")
            regularization = (
                RegularizationConfig.for_classification() if classifies else RegularizationConfig.for_generation()
            )
        self.regularization = regularization
        num_labels = getattr(unwrapped.config, "num_labels", None)
        self.objective = Objective(regularization, self.task, num_labels=num_labels, loss_path=loss_path)
        for notice in self.objective.notices:
            logger.warning(notice)
        if self.task in ("classification", "regression") and regularization.teacher_head == "probe" and initial is None:
            self._probe_head()
        # Kept once, for the checkpoints and for the teacher alike.
        self.teacher = PretrainedTeacher(unwrapped, initial, offload=teacher_offload)
        self.memory = logit_cache_for(self.objective, teacher_cache, self.accelerator.num_processes)
        step = GenerationStep if self.objective.generates else ClassificationStep
        self.step = step(unwrapped, self.objective, self.teacher, self.memory)  # type: ignore[arg-type]
        self.draws = Subsampler(regularization, self.args.seed, self.args.process_index)
        self.meter = LossMeter(self.task)
        self.loss_is_scaled_for_ga = True  # by num_items and share, see compute_loss
        self._start_checked = False
        start = initial_state_of(unwrapped)
        # Values that are known to be those the adapter started from: the student may be elsewhere, trained before.
        self._is_resumed = initial is not None and start is not None
        if start is None and initial is None and self.objective.needs_teacher:
            warn_of_anothers_adapter(unwrapped)
        self.method: Method | None = find_method(start.method) if start else None
        check_sharding(self.accelerator.state, unwrapped, self.method)
        if self.is_fsdp_enabled:
            self.origin()  # while the weights are whole
        if self.method is not None and self.method.after_step is not None:
            self.add_callback(AfterStep(unwrapped, self.method.after_step))

    def _probe_head(self) -> None:
        """Fit the head before the teacher is taken, so that student and teacher both start from it (METHOD 6.5)."""
        rows = self.train_dataset
        if (
            not isinstance(rows, IterableDataset) and len(rows) > MOST_ROWS
        ):  # of all of them: files may lie class by class
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.args.seed))[:MOST_ROWS]
            rows = Subset(rows, drawn.tolist())
        with torch.random.fork_rng():
            batches = self.get_eval_dataloader(shortest_first(rows))
            regression, gather = self.task == "regression", self.accelerator.gather_for_metrics
            score = fit_head(self.model, batches, regression=regression, gather=gather)
        if self.accelerator.num_processes > 1:  # another machine may round another way
            for tensor in final_linear(self.model).parameters():
                torch.distributed.broadcast(tensor.data, src=0)
        refresh_initial_state(self.model)
        logger.info("teacher_head: probe fits the training rows with %.3f", score)

    def get_train_dataloader(self) -> Any:
        """The Trainer's, with the rows' keys beside each batch where the teacher is remembered by them."""
        collate: Any = self.data_collator  # type: ignore[has-type]
        if self.memory is not None and not isinstance(self.train_dataset, IterableDataset):
            self.data_collator = KeyedCollator(collate)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        """Rows in their order. The Trainer would mix those of an evaluation too where training groups rows by length,
        and predictions would stand beside other rows than theirs.
        """

    # -- the loss ---------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the parts for one micro-batch; in evaluation the task loss alone, as the Trainer has it."""
        inputs = {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
        keys = inputs.pop(KEYS, None)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise BALoraError(f"The batch has no labels, only {', '.join(sorted(inputs))}; see the data collator.")
        if not self.model.training:
            loss, outputs = self.step.evaluate(model, inputs, labels, keep_logits=self._wants_logits())
            return (loss, outputs) if return_outputs else loss
        if not self._start_checked:
            self._check_start(model, inputs, labels)
        weights = self.objective.weights(self.state.global_step / max(1, self.state.max_steps))
        weights["consistency"] *= self.draws.strength(self.state.global_step)
        held = self.draws.held(self.state.global_step, len(labels), keys)
        share = 1.0 / getattr(self, "current_gradient_accumulation_steps", 1)
        # DDP averages gradients over the processes, so a sum over items is divided by their mean number per process.
        items = None if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        parts, extra, outputs = self.step.train(model, inputs, labels, weights, num_items=items, share=share, held=held)
        broken = all_finite(parts)
        if broken is not None:
            name = {"task": "task loss", "loss": "total loss"}.get(broken, f"{broken} term")
            raise BALoraError(self._divergence(name, self.state.global_step + 1))
        loss = parts.loss
        if self.method is not None and self.method.penalty is not None:
            penalty = self.method.penalty(self.model)
            loss, extra = loss + share * penalty, {**extra, "penalty": penalty.detach()}
        self.meter.add(parts, weights, share, **extra)
        return (loss, outputs) if return_outputs else loss

    _loss_only = False

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The Trainer's, noting whether anybody wants the logits, which the fused path does not make."""
        self._loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._loss_only = False

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        """Targets (tokens, or examples) in the whole accumulated batch, on all devices; at least 1."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        count = torch.stack([self.step.count_items(batch["labels"]) for batch in batch_samples]).sum().to(device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp_min(1)

    def _check_start(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> None:
        """Before the first step of a fresh run, teacher and student must be one function."""
        self._start_checked = True
        if self.state.global_step > 0:
            return
        refuse_idle_adapters(self.model)
        if not self.objective.needs_teacher or self._is_resumed:
            return
        divergence, allowed = self.step.start_divergence(model, inputs, labels)
        if not divergence <= allowed:
            raise BALoraError(
                f"The teacher is not the model that training starts from: the KL divergence between them is {divergence:.3g} "
                f"nats where rounding explains {allowed:.0e}. Likely causes: the adapter was trained, merged or switched off "
                "after balora.adapt, or the forward is random in eval mode. Adapt a freshly loaded model."
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, but nothing where a resumed run has no step left: it would take one more, and be another run."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The method's own optimizer where it has one, else the Trainer's."""
        if getattr(self, "optimizer", None) is None and self.method is not None and self.method.optimizer is not None:
            start = initial_state_of(self.model)
            assert start is not None
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            settings = {**settings, "weight_decay": self.args.weight_decay}
            self.optimizer = self.method.optimizer(self.model, kind, settings, start.options.extra)
        return super().create_optimizer(model)

    # -- logging ----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every part and weight, averaged over the logging window, to a training log."""
        if "loss" in logs:
            logs.update(self.meter.drain(lambda values: self._mean_over_processes(values)))
        super().log(logs, start_time)

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.args.device), reduction="mean").cpu()

    # -- what cannot be honoured ------------------------------------------------------------------------------------

    def _refuse_unsupported(self) -> None:
        if self.args.n_gpu > 1:
            raise BALoraError(
                f"{self.args.n_gpu} GPUs in one process (DataParallel) cannot carry this objective. Start with "
                "`accelerate launch` or `torchrun`, one process per GPU, or show one GPU through CUDA_VISIBLE_DEVICES."
            )
        if self.args.label_smoothing_factor:
            raise BALoraError(
                "training.label_smoothing_factor does not go with the regularized objective; set it to 0."
            )
        if getattr(self, "model_init", None) is not None:
            raise BALoraError(
                "model_init would make another model in train() than the one whose initial values are the teacher's. Pass "
                "model=balora.adapt(...), and make a trainer for each trial, or vary settings with `balora compare --vary`."
            )
        if getattr(self, "compute_loss_func", None) is not None:
            raise BALoraError("compute_loss_func would replace the regularized objective; leave it out.")

    def _wants_logits(self) -> bool:
        return not self.objective.generates or not self._loss_only
