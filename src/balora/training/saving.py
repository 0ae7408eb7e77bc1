"""Checkpoints of the regularized trainers: written completely before they get their name, verified before a load."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import rotate_checkpoints

from balora.anchoring.budget import BudgetWeight
from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.run_directory import RestoreBestCheckpoint, check_resumable, find_best_checkpoint
from balora.config.validation import NO_PUSH
from balora.errors import BALoraError, Interrupted
from balora.files import apply_umask, read_json, write_text
from balora.loading.base_weights import unstored_values
from balora.methods.adaptation import load_trainable
from balora.methods.initial_state import stored_parameters, trainable_parameters
from balora.methods.registry import Method
from balora.models.adapted_model import base_model_of
from balora.models.fsdp import gather_tensors, is_finite, is_sharded, reshard
from balora.teacher.logit_cache import LogitCache
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.anchors.anchor_term import STATE as ANCHOR_STATE
from balora.training.anchors.anchor_term import AnchorTerm
from balora.training.hub import push_trained
from balora.training.stopping import StopRequest

CONSISTENCY_STATE = "consistency_state.json"
"""File of a checkpoint with the consistency weight that follows a budget."""

# At run time the mixin has no base: it is placed before a Trainer class.
if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class SavingMixin(_Base):
    """Saving and loading of `RegularizedTrainerMixin`."""

    teacher: PretrainedTeacher
    task: str
    method: Method | None
    logit_cache: LogitCache | None
    anchor_term: AnchorTerm | None
    consistency_weight: BudgetWeight | None
    _origin: ckpt.InitialWeights | None = None
    _keep_best: RestoreBestCheckpoint | None = None
    _staging: Path | None = None

    def results_directory(self) -> Path:
        """Return the directory of the checkpoints; `TrialsMixin` gives each trial of a search its own."""
        raise NotImplementedError

    stop_request: StopRequest | None = None
    """Set by `balora.training.run.run`, which handles the signals."""
    _epoch_ended_at = -1

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save as the Trainer does after a step or epoch; if a stop is requested, save and stop.

        After the last step of an epoch the stop waits for the work at the end of the epoch, which a resume would skip. After the
        last step of the run it waits for the end of the training.
        """
        step, ends_epoch = self.state.global_step, float(self.state.epoch or 0.0).is_integer()
        stop = self._stop_is_requested() and 0 < step < self.state.max_steps
        if stop and ends_epoch and self._epoch_ended_at != step:
            stop, self._epoch_ended_at = False, step
        if stop:
            self.control.should_log = step > self._globalstep_last_logged
            self.args.save_only_model = False  # a resume needs the state of the optimizer
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if stop:
            if not (self.results_directory() / f"checkpoint-{step}").is_dir():
                self._save_checkpoint(self.model, trial=None)
            raise Interrupted

    def _stop_is_requested(self) -> bool:
        """Return whether any process has got a signal: all must stop after the same step."""
        if self.stop_request is None:
            return False
        requested = self.stop_request.signal_number is not None
        if self.accelerator.num_processes == 1:
            return requested
        count = torch.tensor(int(requested), device=self.args.device)
        return bool(self.accelerator.reduce(count, reduction="sum") > 0)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write to a staging directory, seal, rename; delete old checkpoints only after the new one is complete."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self.staged() as staging:
                self._staging = staging
                super()._save_checkpoint(model, trial)
                self._complete(staging / f"checkpoint-{self.state.global_step}")
        finally:
            self._staging = None
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(self.results_directory()),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def staged(self) -> AbstractContextManager[Path]:
        """Return a staging directory in the run directory; the main process makes it and moves its content into place."""
        wait = self.accelerator.wait_for_everyone
        return ckpt.staged(self.results_directory(), main=self.args.should_save, wait=wait)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _complete(self, checkpoint: Path) -> None:
        """Add balora's own files to the checkpoint that the Trainer has written."""
        if self.state.best_global_step == self.state.global_step:
            # The Trainer recorded the staging directory; the state must name the checkpoint's final path.
            self.state.best_model_checkpoint = str(self.results_directory() / checkpoint.name)
        if self.args.should_save:
            ckpt.write_initial_weights(checkpoint, self.origin())
            if self.method is not None and self.method.state is not None:
                ckpt.write_tensors(self.method.state(self.model), checkpoint / ckpt.METHOD_STATE)
            if self.logit_cache is not None:
                self.logit_cache.save(checkpoint)
            if self.anchor_term is not None:
                write_text(checkpoint / ANCHOR_STATE, json.dumps(self.anchor_term.state()))
            if self.consistency_weight is not None:
                write_text(checkpoint / CONSISTENCY_STATE, json.dumps(self.consistency_weight.state()))
            self.state.save_to_json(str(checkpoint / "trainer_state.json"))
            for pickled in checkpoint.glob("pytorch_model_fsdp*.bin"):  # a second copy of the weights, never read
                pickled.unlink()

    def origin(self) -> ckpt.InitialWeights:
        """Return the record of the initial model; computed once, because the frozen weights do not change."""
        if self._origin is None:
            config = self.model.config
            facts: dict[str, Any] = {"dtype": str(self.model.dtype).removeprefix("torch."), "task": self.task}
            if self.task == "classification":
                facts["labels"] = [config.id2label[number] for number in range(config.num_labels)]
            unstored = unstored_values(self.model)
            if self.is_fsdp_enabled:  # the parameters will be sharded
                unstored = {name: value.clone() for name, value in unstored.items()}
            if unstored:
                facts["vocabulary"] = len(base_model_of(self.model).get_input_embeddings().weight)
            self._origin = ckpt.initial_weights_of(self.model, self.teacher.initial, facts, unstored)
        return self._origin

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Refuse ``push_to_hub=True``, which would upload checkpoints while they are written."""
        raise BALoraError(
            f"push_to_hub is not supported in training: {NO_PUSH} In a script, call trainer.push_to_hub() after the training."
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the trained model in a form that plain peft or transformers reads, with its model card.

        A low-rank method is uploaded as a LoRA on the pre-trained weights, every other method as a merged model; both are
        compared with the trained model first. The repository is ``args.hub_model_id``, or the name of ``args.output_dir``.

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait for the upload; if not, a Future is returned.
            token: Token of the hub; default ``args.hub_token``, or the one that is logged in.
            revision: Branch to commit to; default ``main``.
            private: Whether a new repository is private. Default: ``args.hub_private_repo``, and private if that is None.
            kwargs: None: transformers' fields of the model card are not used, because balora writes its own card.

        Raises:
            BALoraError: A field of the model card was given, or the model could not be exported or uploaded.
        """
        if kwargs:
            raise BALoraError(
                f"push_to_hub has no argument {next(iter(kwargs))} here: balora writes the model card. Leave it out, and edit "
                "README.md on the hub."
            )
        if not self.is_world_process_zero():
            return None
        return push_trained(
            self, commit_message=commit_message, blocking=blocking, token=token, revision=revision, private=private
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the Trainer does. If a script calls this, save the record that `balora.load` needs as well."""
        folder = Path(output_dir or self.args.output_dir)
        result = not _internal_call and self.method is not None and self.args.should_save
        if result:
            (folder / ckpt.MANIFEST).unlink(missing_ok=True)  # if interrupted, the result must count as incomplete
        if is_sharded(self.model):
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)
        if self.args.should_save and not _internal_call:
            apply_umask(*(path for pattern in ckpt.RESULT_FILES for path in folder.glob(pattern)))
        if result:
            ckpt.write_initial_weights(folder, self.origin())
            # Only these files: the folder may be the run directory, and a script may add a tokenizer or scores later.
            ckpt.write_manifest(folder, ckpt.RESULT_FILES)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        broken = next((name for name, p in trainable_parameters(self.model) if not is_finite(p)), None)
        if broken is not None:
            raise BALoraError(self._nonfinite_message(f"weight {broken}", self.state.global_step))
        folder = Path(output_dir or self.args.output_dir)
        if is_sharded(self.model):
            state_dict = self._gathered()
        if ckpt.form_of(self.model) == "tensors":
            tensors = dict(trainable_parameters(self.model)) if state_dict is None else state_dict
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                ckpt.write_tensors(tensors, folder / ckpt.TRAINED)
        else:
            super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save:
            # A pickle that is never read: the run's config has the same arguments.
            (folder / "training_args.bin").unlink(missing_ok=True)

    def _gathered(self) -> dict[str, Tensor]:
        """Gather the tensors to save in the main process: the adapter's, or all if every weight was trained."""
        reshard(self.model)
        if ckpt.form_of(self.model) != "model":
            return gather_tensors(stored_parameters(self.model), keep=self.args.should_save)
        tied = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        buffers = [(name, value) for name, value in self.model.state_dict().items() if name not in tied]
        return gather_tensors([*self.model.named_parameters(), *buffers], keep=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the trained tensors after checking that the checkpoint is complete and the frozen weights are the same."""
        checkpoint = Path(resume_from_checkpoint)
        if not (checkpoint / ckpt.MANIFEST).is_file():
            raise BALoraError(f"{checkpoint} is not a checkpoint that balora wrote ({ckpt.MANIFEST} is missing).")
        ckpt.check_manifest(checkpoint)
        check_resumable(checkpoint)
        best = find_best_checkpoint(checkpoint, self.results_directory(), needed=self.args.load_best_model_at_end)
        target = self.model if model is None else model
        frozen = self.origin().frozen if is_sharded(target) else None
        initial = ckpt.read_initial_weights(checkpoint)
        ckpt.check_initial_weights(target, self.teacher.initial, initial, checkpoint, frozen)
        load_trainable(target, ckpt.read_trained(checkpoint, target))
        if self.method is not None and self.method.restore is not None:
            self.method.restore(target, ckpt.read_tensors(checkpoint / ckpt.METHOD_STATE))
        if self.logit_cache is not None:
            self.logit_cache.load(checkpoint, self.args.device)
        if self.anchor_term is not None:
            self.anchor_term.restore(read_json(checkpoint / ANCHOR_STATE))
        if self.consistency_weight is not None:
            self.consistency_weight.restore(read_json(checkpoint / CONSISTENCY_STATE), self.args.device)
        if self._keep_best is None:
            self._keep_best = RestoreBestCheckpoint()
            self.add_callback(self._keep_best)
        self._keep_best.best = best

    def _load_best_model(self) -> None:
        load_trainable(self.model, ckpt.read_trained(Path(self.state.best_model_checkpoint), self.model))

    def _nonfinite_message(self, name: str, step: int) -> str:
        last = ckpt.newest_checkpoint(self.results_directory())
        checkpoint = f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."
        return (
            f"The {name} became NaN or infinite at step {step}. {checkpoint} Lower the learning rate or that term's weight, or use "
            "bfloat16 or float32 instead of float16."
        )
