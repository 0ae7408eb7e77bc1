"""The regularized objective inside a transformers Trainer: one mixin for ours and for trl's.

Per micro-batch: batch → teacher (no gradient) → student → hidden states or logits → objective → parts. The Trainer keeps
everything else: optimizer, schedule, precision, devices, evaluation, logging targets.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers.trainer_utils import rotate_checkpoints

from balora.config import RegularizationConfig
from balora.errors import BALoraError
from balora.methods.adapt import load_trainable
from balora.methods.start import remember_start, start_of, trainable
from balora.objective import Objective, all_finite
from balora.teacher import PretrainedTeacher
from balora.training import checkpoint as ckpt
from balora.training.logit_memory import LogitMemory, memory_for
from balora.training.meter import PartsMeter
from balora.training.probe import fit_head
from balora.training.row_keys import KEYS, KeyedCollator
from balora.training.steps import ClassificationStep, GenerationStep, infer_task
from balora.training.subsampling import Subsampling
from balora.training.teacher_cache import TeacherCache

logger = logging.getLogger("balora")

# A mixin: at run time it stands before whichever Trainer it is mixed into.
if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class RegularizedMixin(_Base):
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
        self.memory = memory_for(self.objective, teacher_cache, self.accelerator.num_processes)
        step = GenerationStep if self.objective.generates else ClassificationStep
        self.step = step(unwrapped, self.objective, self.teacher, self.memory)  # type: ignore[arg-type]
        self.draws = Subsampling(regularization, self.args.seed, self.args.process_index)
        self.meter = PartsMeter(self.task)
        self.loss_is_scaled_for_ga = True  # by num_items and share, see compute_loss
        self._start_checked = False
        self._origin: ckpt.Origin | None = None

    def _probe_head(self) -> None:
        """Fit the head before the teacher is taken, so that student and teacher both start from it (METHOD 6.5)."""
        with torch.random.fork_rng():
            score = fit_head(
                self.model, self.get_eval_dataloader(self.train_dataset), regression=self.task == "regression"
            )
        start = start_of(self.model)
        if start is not None:
            remember_start(self.model, method=start.method, shifts_base=start.shifts_base, seed=start.seed)
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
        self.meter.add(parts, weights, share, **extra)
        return (parts.loss, outputs) if return_outputs else parts.loss

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
        if self.state.global_step > 0 or not self.objective.needs_teacher:
            return
        divergence, allowed = self.step.start_divergence(model, inputs, labels)
        if not divergence <= allowed:
            raise BALoraError(
                f"The teacher is not the model that training starts from: the KL divergence between them is {divergence:.3g} "
                f"nats where rounding explains {allowed:.0e}. Likely causes: the adapter was trained, merged or switched off "
                "after balora.adapt, or the forward is random in eval mode. Adapt a freshly loaded model."
            )

    def _divergence(self, name: str, step: int) -> str:
        last = ckpt.newest(Path(self.args.output_dir))
        after = f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."
        return (
            f"The {name} became NaN or infinite at step {step}. {after} Lower the learning rate or that term's weight, or use "
            "bfloat16 or float32 in place of float16."
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, but nothing where a resumed run has no step left: it would take one more, and be another run."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

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

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write to the side, seal, rename; rotate old ones only when the new one is whole."""
        run = Path(self.args.output_dir)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self.staged() as staging:
                self._staging = staging
                super()._save_checkpoint(model, trial)
                folder = staging / f"checkpoint-{self.state.global_step}"
                self._complete(folder)
        finally:
            self._staging = None
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def staged(self) -> AbstractContextManager[Path]:
        """The folder beside the run's results to write one into; the main process makes it and moves it into place."""
        return ckpt.staged(
            Path(self.args.output_dir), main=self.args.should_save, wait=self.accelerator.wait_for_everyone
        )

    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _complete(self, folder: Path) -> None:
        if self.state.best_global_step == self.state.global_step:
            # The Trainer saw the staging folder; the state must name the place where the checkpoint will be.
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / folder.name)
        if self.args.should_save:
            ckpt.write_origin(folder, self.origin())
            if isinstance(self.memory, LogitMemory):
                self.memory.save(folder)
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def origin(self) -> ckpt.Origin:
        """Where the run started; computed once, as the frozen weights do not change."""
        if self._origin is None:
            self._origin = ckpt.origin_of(self.model, self.teacher.initial, self._facts())
        return self._origin

    def _facts(self) -> dict[str, Any]:
        """What a load needs to know beside the tensors: the frozen weights' dtype and the names of the classes."""
        facts: dict[str, Any] = {"dtype": str(self.model.dtype).removeprefix("torch.")}
        if self.task == "classification":
            facts["labels"] = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        return facts

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        broken = next((name for name, p in trainable(self.model) if not bool(p.isfinite().all())), None)
        if broken is not None:
            raise BALoraError(self._divergence(f"weight {broken}", self.state.global_step))
        super()._save(output_dir, state_dict=state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        # A pickle that nothing here reads: the settings are in the run's config.
        (folder / "training_args.bin").unlink(missing_ok=True)
        start = start_of(self.model)
        if start is not None and start.shifts_base:
            ckpt.guard(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the trained tensors after checking that the folder is whole and the frozen weights are the same."""
        folder = Path(resume_from_checkpoint)
        if not (folder / ckpt.MANIFEST).is_file():
            raise BALoraError(f"{folder} is not a checkpoint that balora wrote ({ckpt.MANIFEST} is missing).")
        ckpt.verify(folder)
        target = self.model if model is None else model
        ckpt.check_origin(target, self.teacher.initial, ckpt.read_origin(folder), folder)
        load_trainable(target, ckpt.read_trained(folder, target))
        if isinstance(self.memory, LogitMemory):
            self.memory.load(folder, self.args.device)

    def _load_best_model(self) -> None:
        load_trainable(self.model, ckpt.read_trained(Path(self.state.best_model_checkpoint), self.model))

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
        if getattr(self, "compute_loss_func", None) is not None:
            raise BALoraError("compute_loss_func would replace the regularized objective; leave it out.")

    def _wants_logits(self) -> bool:
        return not self.objective.generates or not self._loss_only
